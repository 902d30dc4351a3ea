"""A network whose NIC isn't there: it says so, and the others work."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.asking import make, release_all
from tests.support.daemon import BIN, BLUE, Daemon, running, wait_for
from vifclient import Client
from vifclient.errors import NoAcceptableKind
from vifclient.messages import EndpointKind, EndpointPreference, Network, PciPreference, RequestEndpointRequest
from vifclient.retry import NO_RETRY

FAST = '[networks.fast]\ndriver = "sriov"\npfs = ["nosuch0", "0000:ff:1f.7"]\nphysical_network = "core"\n'
NETWORKS = f"{BLUE}{FAST}"
ID = "11111111-2222-4333-8444-555555555555"


def network(client: Client, name: str = "fast") -> Network:
    return next(one for one in client.get_host_info().networks if one.name == name)


def ask(client: Client) -> None:
    pci = EndpointPreference(pci=PciPreference())
    client.request_endpoint(RequestEndpointRequest(endpoint_id=ID, network="fast", acceptable=[pci]))


def test_the_host_says_which_pf_is_missing(client: Client) -> None:
    fast = network(client)
    assert (fast.network_driver, fast.physical_network) == ("sriov", "core")
    assert [(pf.ifname, pf.address, pf.message) for pf in fast.physical_functions] == [
        ("nosuch0", "", "PF nosuch0 isn't there"),
        ("0000:ff:1f.7", "", "PF 0000:ff:1f.7 isn't there"),
    ]
    assert [EndpointKind.Name(offer.kind) for offer in fast.offers] == ["ENDPOINT_KIND_PCI", "ENDPOINT_KIND_MACVTAP"]
    for offer in fast.offers:
        assert not offer.available
        assert "PF nosuch0 isn't there" in offer.message


def test_a_request_is_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(NoAcceptableKind, match="PF nosuch0 isn't there"):
        ask(client)
    assert list(client.list_endpoints()) == []


def test_other_networks_work(client: Client) -> None:
    assert make(client).tap.ifname


def test_doctor_says_what_to_do(vifd: Daemon) -> None:
    argv = [str(BIN / "vifctl"), "--socket", vifd.socket, "doctor", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    findings = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert findings["PF nosuch0"]["problem"] == "PF nosuch0 isn't there"
    assert "pfs of network fast" in findings["PF nosuch0"]["advice"]


@pytest.fixture
def plain() -> Iterator[Daemon]:
    """A daemon that was started without such a network."""
    with running() as daemon:
        yield daemon


def test_the_first_such_network_takes_a_restart(plain: Daemon) -> None:
    plain.write_config(NETWORKS)
    assert plain.process is not None
    plain.process.send_signal(signal.SIGHUP)
    with Client(plain.socket, retry=NO_RETRY) as client:
        wait_for(lambda: "fast" in {one.name for one in client.get_host_info().networks})
        assert "isn't there" in network(client).offers[0].message
        assert "takes a restart of vifd" in plain.log()
        make(client)
        release_all(client)
