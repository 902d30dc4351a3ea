"""vifctl against a real vifd: changes and checks of endpoints, read back from the kernel."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support.asking import BRIDGE, asked, make
from tests.support.daemon import BIN, REPORTING, Daemon, ip, running, taps
from tests.support.outside import UPLINK, cabled
from vifclient import Client
from vifclient.messages import PortSpec

NETWORKS = REPORTING  # what differs is told, and mended only when it is asked for
PUBLIC, OTHER_PUBLIC, PUBLIC6 = "192.0.2.50", "192.0.2.51", "2001:db8::50"
PUBLICS = f"""
[networks.blue]
driver = "bridge"
bridge = "br-blue"
addresses = ["10.91.0.1/24", "fd00:91::1/64"]
pool = ["10.91.0.5-10.91.0.99", "fd00:91::5-fd00:91::99"]
nat = true
nat_uplink = "{UPLINK}"
public_pool = ["{PUBLIC}", "{OTHER_PUBLIC}", "{PUBLIC6}"]
"""


def vifctl(vifd: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [str(BIN / "vifctl"), "--socket", vifd.socket, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def ask(vifd: Daemon, *arguments: str) -> Any:
    done = vifctl(vifd, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def the_tap(vifd: Daemon) -> Any:
    (tap,) = taps(vifd.netns)
    return tap


def test_a_port_is_asked_for_and_changed(vifd: Daemon) -> None:
    options = ["--mtu", "1200", "--tx-queue-length", "77", "--no-link", "--isolated", "--rate-to-vm", "10M"]
    endpoint = ask(vifd, "request", "blue", *options)["endpoint"]
    tap = the_tap(vifd)
    assert (tap["mtu"], tap["txqlen"], "UP" in tap["flags"]) == (1200, 77, False)
    assert tap["linkinfo"]["info_slave_data"]["isolated"] is True
    done = vifctl(vifd, "update", endpoint["endpoint_id"], "--link", "--no-isolated", "--mtu", "1300", "--pps-from-vm", "1k")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert ["limit", "to", "vm", "10 Mbit/s"] in lines  # what isn't given stays
    assert ["limit", "from", "vm", "1000 frames/s"] in lines
    tap = the_tap(vifd)
    assert (tap["mtu"], tap["txqlen"], "UP" in tap["flags"]) == (1300, 77, True)
    assert tap["linkinfo"]["info_slave_data"]["isolated"] is False
    port = ask(vifd, "update", endpoint["endpoint_id"], "--no-limits")["endpoint"]["port"]
    assert ("limits" in port, port["mtu_bytes"], port["guard"]) == (False, 1300, {"enabled": True})


def test_a_refused_change_changes_nothing(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, port=PortSpec(mtu_bytes=1400))
    done = vifctl(vifd, "update", endpoint.endpoint_id, "--address", "10.91.0.1", "--mtu", "1300")  # the host's own address
    assert (done.returncode, "10.91.0.1" in done.stderr) == (1, True)
    assert client.get_endpoint(endpoint.endpoint_id) == endpoint
    assert the_tap(vifd)["mtu"] == 1400


@pytest.mark.parametrize("ids", [True, False])
def test_what_somebody_changed_is_told_and_mended(vifd: Daemon, client: Client, *, ids: bool) -> None:
    endpoint, other = make(client), make(client)
    named = [endpoint.endpoint_id, other.endpoint_id] if ids else []
    assert vifctl(vifd, "check", *named).returncode == 0
    ip(vifd.netns, "link", "set", endpoint.tap.ifname, "mtu", "1400")
    done = vifctl(vifd, "check", *named)
    assert done.returncode == 1
    _, row = done.stdout.splitlines()
    assert row.split()[:4] == [endpoint.endpoint_id, "mtu", "1500", "1400"]
    assert vifctl(vifd, "show", endpoint.endpoint_id).stdout.count("drift ") == 1
    done = vifctl(vifd, "check", "--repair", *named)
    assert (done.returncode, "mended" in done.stdout) == (0, True)
    assert {tap["mtu"] for tap in taps(vifd.netns)} == {1500}
    assert ask(vifd, "check", *named)["checks"][0]["drifts"] == []


def test_the_host_says_how_it_keeps_limits(vifd: Daemon) -> None:
    mechanism = ask(vifd, "host")["limits_mechanism"]
    assert mechanism in {"LIMITS_MECHANISM_POLICE", "LIMITS_MECHANISM_IFB", "LIMITS_MECHANISM_NFTABLES"}


def test_a_vm_that_runs_here_is_said_to(vifd: Daemon, client: Client) -> None:
    endpoint = client.request_endpoint(asked(acceptable=[BRIDGE])).endpoint
    assert ask(vifd, "activate", endpoint.endpoint_id)["endpoint"]["state"] == "ENDPOINT_STATE_ACTIVE"
    tap = make(client)
    done = vifctl(vifd, "activate", tap.endpoint_id)
    assert (done.returncode, "start its VM first" in done.stderr) == (1, True)


def held(vifd: Daemon) -> set[str]:
    """Which of the public addresses the host answers for."""
    (uplink,) = ip(vifd.netns, "address", "show", "dev", UPLINK)
    return {address["local"] for address in uplink["addr_info"]} & {PUBLIC, OTHER_PUBLIC, PUBLIC6}


def shown(vifd: Daemon, endpoint_id: str) -> str:
    """What `show` says of public addresses; empty: nothing."""
    lines = vifctl(vifd, "show", endpoint_id).stdout.splitlines()
    return "".join(line.removeprefix("public addresses").strip() for line in lines if line.startswith("public addresses"))


def test_public_addresses_are_asked_for_shown_changed_and_given_back() -> None:
    with cabled() as site, running(netns=site.host, networks=PUBLICS) as vifd:
        endpoint = ask(vifd, "request", "blue", "--public-address", PUBLIC, "--public-address", PUBLIC6)["endpoint"]
        endpoint_id = endpoint["endpoint_id"]
        assert (endpoint["port"]["public_addresses"], held(vifd)) == ([PUBLIC, PUBLIC6], {PUBLIC, PUBLIC6})
        (listed,) = ask(vifd, "list")["endpoints"]
        assert listed == ask(vifd, "show", endpoint_id)["endpoint"] == endpoint
        assert shown(vifd, endpoint_id) == f"{PUBLIC}, {PUBLIC6}"
        assert vifctl(vifd, "list").stdout.splitlines()[1].startswith(endpoint_id)
        taken = vifctl(vifd, "request", "blue", "--public-address", PUBLIC)
        assert (taken.returncode, PUBLIC in taken.stderr) == (1, True)
        assert vifctl(vifd, "update", endpoint_id, "--mtu", "1400").returncode == 0  # what isn't given stays
        assert (shown(vifd, endpoint_id), held(vifd)) == (f"{PUBLIC}, {PUBLIC6}", {PUBLIC, PUBLIC6})
        changed = ask(vifd, "update", endpoint_id, "--public-address", OTHER_PUBLIC)["endpoint"]
        assert (changed["port"]["public_addresses"], held(vifd)) == ([OTHER_PUBLIC], {OTHER_PUBLIC})
        assert vifctl(vifd, "update", endpoint_id, "--no-public-addresses").returncode == 0
        assert (shown(vifd, endpoint_id), held(vifd)) == ("", set())
        assert vifctl(vifd, "update", endpoint_id, "--public-address", PUBLIC).returncode == 0
        assert held(vifd) == {PUBLIC}
        assert vifctl(vifd, "release", endpoint_id).returncode == 0
        assert held(vifd) == set()


@pytest.mark.parametrize("address", ["192.0.2.60", "192.0.2.0/24"])
def test_a_public_address_that_isnt_to_be_had_is_refused(address: str) -> None:
    with cabled() as site, running(netns=site.host, networks=PUBLICS) as vifd:
        done = vifctl(vifd, "request", "blue", "--public-address", address)
        assert (done.returncode != 0, address in done.stderr) == (True, True)
        assert (ask(vifd, "list")["endpoints"], held(vifd)) == ([], set())
