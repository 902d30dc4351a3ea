"""Macvtaps on VFs of real drivers, in an emulated machine; read back with `ip`, `tc` and sysfs, and opened as their owner."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import vfs
from tests.support.asking import make, refusal, release_all
from tests.support.daemon import Daemon, running
from tests.support.restarts import restarted
from tests.support.vfs import FIRST_PF, SECOND_PF
from vifclient import Client
from vifclient.messages import (
    DriftKind,
    Endpoint,
    EndpointPreference,
    LimitsSpec,
    MacvtapMode,
    MacvtapPreference,
    Owner,
    PortSpec,
    RateLimit,
    VlanSpec,
)
from vifclient.retry import NO_RETRY
from vifd.kernel import names
from vifd.model import Kind

ALICE, BOB = 20001, 20002
MAC = "52:54:00:12:34:56"
NETWORKS = '[networks.fast]\ndriver = "sriov"\npfs = ["eth0", "eth1"]\nvfs = 7\nrepair = "report"\n'
#: Opens a macvtap's node as a user and group without anything, and sets a queue of it up as QEMU does (linux/if_tun.h).
_OPENER = """
import fcntl, os, struct, sys
uid = int(sys.argv[2])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), 0x400454CA, struct.pack("16sH22x", b"", 0x5002))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Daemon]:
    """A daemon of the machine's own namespace; elsewhere these tests are skipped."""
    if vfs.pfs() != [FIRST_PF, SECOND_PF]:
        pytest.skip("this isn't the emulated machine")
    with running(netns="", networks=NETWORKS) as daemon:
        yield daemon
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
    for pf in (FIRST_PF, SECOND_PF):
        vfs.set_count(pf, 0)


@pytest.fixture
def vifd(host: Daemon) -> Iterator[Daemon]:
    """The module's daemon, whose VFs are as new before and after each test, with nothing on them."""
    before = [vfs.state(pf) for pf in (FIRST_PF, SECOND_PF)]
    yield host
    print(host.log()[-5000:])
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert [vfs.state(pf) for pf in (FIRST_PF, SECOND_PF)] == before
    assert [link for link in links() if link.get("linkinfo", {}).get("info_kind") == "macvtap"] == []
    assert [path.name for path in host.devices.rglob("*") if not path.is_dir()] == []


@pytest.fixture
def client(vifd: Daemon) -> Iterator[Client]:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        yield client


def links() -> list[Any]:
    done = subprocess.run(["ip", "-d", "-j", "link", "show"], check=True, capture_output=True, text=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def link(ifname: str) -> Any:
    return next(one for one in links() if one["ifname"] == ifname)


def qdiscs(ifname: str) -> set[str]:
    done = subprocess.run(["tc", "-j", "qdisc", "show", "dev", ifname], check=True, capture_output=True, text=True)
    return {one["kind"] for one in json.loads(done.stdout)}


def macvtap(client: Client, *, queues: int = 1, mode: str = "UNSPECIFIED", **fields: Any) -> Endpoint:
    preference = MacvtapPreference(queues=queues, mode=MacvtapMode.Value(f"MACVTAP_MODE_{mode}"))
    return make(client, network="fast", acceptable=[EndpointPreference(macvtap=preference)], **fields)


def opens(path: str, uid: int) -> bool:
    argv = [sys.executable, "-I", "-S", "-c", _OPENER, path, str(uid)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert not done.returncode or "Permission denied" in done.stderr, done.stderr
    return not done.returncode


def drifts(client: Client, endpoint: Endpoint, *, repair: bool = False) -> set[str]:
    found = client.check_endpoint(endpoint.endpoint_id, repair=repair).drifts
    return {DriftKind.Name(drift.kind).removeprefix("DRIFT_KIND_") for drift in found}


def vf_of(endpoint: Endpoint) -> tuple[str, int]:
    """The PF and the number of the VF that a macvtap stands on."""
    address = Path(f"/sys/class/net/{endpoint.macvtap.lower_ifname}/device").readlink().name
    return next((pf, vfs.addresses(pf).index(address)) for pf in (FIRST_PF, SECOND_PF) if address in vfs.addresses(pf))


def test_a_macvtap_has_a_vf_for_itself_and_both_are_its_port(vifd: Daemon, client: Client) -> None:
    limits = LimitsSpec(from_vm=RateLimit(rate_bps=1_500_000), to_vm=RateLimit(rate_bps=100_000_000))
    port = PortSpec(mac=MAC, vlan=VlanSpec(vid=7, qos=3), limits=limits, addresses=["192.0.2.1"], trusted=True)
    made = macvtap(client, port=port, owner=Owner(uid=ALICE))
    name, lower = names.device_name(Kind.MACVTAP, made.endpoint_id), names.device_name(Kind.PCI, made.endpoint_id)
    assert (made.macvtap.ifname, made.macvtap.lower_ifname, made.macvtap.mode) == (name, lower, MacvtapMode.MACVTAP_MODE_PASSTHRU)
    found, below, known = link(name), link(lower), vfs.told(*vf_of(made))
    assert (found["link"], found["linkinfo"]["info_data"]["mode"], found["ifindex"]) == (lower, "passthru", made.macvtap.ifindex)
    assert (found["address"], below["address"], known["address"]) == (MAC, MAC, MAC)
    assert ("UP" in found["flags"], "UP" in below["flags"]) == (True, True)
    assert (known["vlan_list"], known["spoofchk"], known["trust"]) == ([{"vlan": 7, "qos": 3}], True, True)
    assert known["rate"]["max_tx"] == 0  # the macvtap keeps the limits
    assert {"tbf", "ingress"} <= qdiscs(name)
    assert made.port.guard.enabled
    ruleset = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
    assert "table netdev vifd" in ruleset
    assert drifts(client, made) == set()
    assert (opens(made.macvtap.device_path, BOB), opens(made.macvtap.device_path, ALICE)) == (False, True)
    client.release_endpoint(made.endpoint_id)
    assert not Path(made.macvtap.device_path).exists()
    assert vfs.driver(vfs.addresses(FIRST_PF)[0]) == "igbvf"


def test_its_queues_are_handed_over(vifd: Daemon, client: Client) -> None:
    made = macvtap(client, queues=2)
    with client.acquire_fds(made.endpoint_id) as queues:
        assert len(queues.fds) == made.macvtap.queues == 2


def test_it_changes_with_its_vf_or_not_at_all(vifd: Daemon, client: Client) -> None:
    made = macvtap(client, port=PortSpec(vlan=VlanSpec(vid=7)))
    name, lower = made.macvtap.ifname, made.macvtap.lower_ifname
    limits = LimitsSpec(from_vm=RateLimit(rate_bps=100_000_000))
    port = PortSpec(vlan=VlanSpec(vid=8), mtu_bytes=1400, limits=limits, link_up=False)
    client.update_endpoint(made.endpoint_id, port, ["vlan", "mtu_bytes", "limits", "link_up"])
    assert vfs.told(*vf_of(made))["vlan_list"] == [{"vlan": 8}]
    assert [(link(one)["mtu"], "UP" in link(one)["flags"]) for one in (name, lower)] == [(1400, False), (1400, True)]
    assert "tbf" in qdiscs(name)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
        client.update_endpoint(made.endpoint_id, PortSpec(vlan=VlanSpec(vid=9), mtu_bytes=9000), ["vlan", "mtu_bytes"])
    assert vfs.told(*vf_of(made))["vlan_list"] == [{"vlan": 8}]
    client.update_endpoint(made.endpoint_id, PortSpec(), ["vlan", "mtu_bytes", "limits", "link_up"])
    assert vfs.told(*vf_of(made))["vlan_list"] == [{}]
    assert [(link(one)["mtu"], "UP" in link(one)["flags"]) for one in (name, lower)] == [(1500, True), (1500, True)]
    assert "tbf" not in qdiscs(name)
    assert drifts(client, made) == set()


def test_what_others_change_of_either_is_told_and_mended(vifd: Daemon, client: Client) -> None:
    made = macvtap(client, port=PortSpec(vlan=VlanSpec(vid=7)), owner=Owner(uid=ALICE))
    pf, index = vf_of(made)
    for change in (f"set {pf} vf {index} vlan 9", f"set {made.macvtap.lower_ifname} mtu 1300", f"set {made.macvtap.ifname} down"):
        subprocess.run(["ip", "link", *change.split()], check=True)
    Path(made.macvtap.device_path).unlink()
    assert drifts(client, made, repair=True) == {"VLAN", "MTU", "LINK_STATE", "OWNER"}
    assert drifts(client, made) == set()
    assert opens(made.macvtap.device_path, ALICE)
    subprocess.run(["ip", "link", "delete", made.macvtap.ifname], check=True)
    assert drifts(client, made, repair=True) == {"DEVICE_MISSING"}
    assert drifts(client, made) == set()
    assert opens(client.get_endpoint(made.endpoint_id).macvtap.device_path, ALICE)


def test_it_outlives_vifd_and_a_stray_one_keeps_its_vf_until_it_is_set_down(vifd: Daemon, client: Client) -> None:
    made = macvtap(client, port=PortSpec(vlan=VlanSpec(vid=7)))
    assert restarted(vifd)[made.endpoint_id] == made
    with Client(vifd.socket, retry=NO_RETRY) as now:
        assert drifts(now, made) == set()
    assert vifd.stop() == 0
    for path in vifd.state.iterdir():
        path.unlink()
    vifd.start()
    assert link(made.macvtap.ifname)["link"] == made.macvtap.lower_ifname
    assert [path.name for path in (vifd.devices / "functions").iterdir()] == [vfs.addresses(FIRST_PF)[0]]
    subprocess.run(["ip", "link", "set", made.macvtap.ifname, "down"], check=True)
    assert restarted(vifd) == {}


def test_another_mode_is_refused(vifd: Daemon, client: Client) -> None:
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as refused:
        macvtap(client, mode="BRIDGE")
    assert "let its mode be passthru" in refused.value.message
