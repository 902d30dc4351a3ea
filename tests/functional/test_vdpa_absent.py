"""A vDPA network on a host whose kernel has no vDPA: it says so, and the others work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.asking import make, refusal
from tests.support.daemon import BIN, BLUE, Daemon, running
from vifclient import Client
from vifclient.messages import EndpointPreference, Network, VdpaPreference
from vifclient.retry import NO_RETRY

QUICK = '[networks.quick]\ndriver = "vdpa"\nmanagement_devices = ["nosuch_net"]\nphysical_network = "core"\n'
VDPA = [EndpointPreference(vdpa=VdpaPreference())]
HAS_VDPA = Path("/sys/bus/vdpa/drivers/vhost_vdpa").exists()
REASON = "network quick has no vDPA management device here: nosuch_net isn't there" if HAS_VDPA else "load its module (modprobe v"


@pytest.fixture(scope="module")
def vifd() -> Iterator[Daemon]:
    with running(networks=f"{BLUE}{QUICK}") as daemon:
        yield daemon
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()


@pytest.fixture
def client(vifd: Daemon) -> Iterator[Client]:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        yield client


def quick(client: Client) -> Network:
    return next(one for one in client.get_host_info().networks if one.name == "quick")


def test_the_host_says_why(vifd: Daemon, client: Client) -> None:
    network = quick(client)
    (offer,) = network.offers
    assert (network.network_driver, network.physical_network, offer.available) == ("vdpa", "core", False)
    assert REASON in offer.message


def test_a_request_is_refused_with_the_reason(client: Client) -> None:
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as refused:
        make(client, network="quick", acceptable=VDPA)
    assert REASON in refused.value.message
    assert list(client.list_endpoints()) == []


def test_other_networks_work(client: Client) -> None:
    assert make(client).tap.ifname


def test_doctor_says_what_to_do(vifd: Daemon) -> None:
    argv = [str(BIN / "vifctl"), "--socket", vifd.socket, "doctor", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    findings = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
    assert REASON in findings["network quick"]["problem"]
    assert "vdpa mgmtdev show" in findings["network quick"]["advice"]
