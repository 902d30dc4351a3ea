"""VFs of real drivers: igb's and igbvf's, in an emulated machine with an IOMMU; read back with `ip`, sysfs and VFIO's ioctls."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import vfs
from tests.support.asking import refusal, release_all, state_of
from tests.support.daemon import BIN, Daemon, ip, running, wait_for
from tests.support.vfs import FIRST_PF, KERNEL, SECOND_PF, make_vf
from vifclient import Client
from vifclient.messages import (
    DriftKind,
    Instance,
    LimitsSpec,
    Owner,
    PhysicalFunction,
    PortSpec,
    RateLimit,
    VirtualFunction,
    VirtualFunctionState,
    VlanSpec,
)
from vifclient.retry import NO_RETRY
from vifd.kernel import names
from vifd.model import Kind

ALICE, BOB = 20001, 20002
COUNT = 7
MAC = "52:54:00:12:34:56"
NETWORKS = """
[networks.fast]
driver = "sriov"
pfs = ["eth0", "eth1"]
vfs = 7
"""


@pytest.fixture(scope="module", autouse=True)
def cards() -> None:
    """The machine's cards; elsewhere these tests are skipped."""
    if vfs.pfs() != [FIRST_PF, SECOND_PF]:
        pytest.skip("this isn't the emulated machine")


@pytest.fixture(scope="module")
def host(cards: None) -> Iterator[Daemon]:
    """A daemon of the machine's own namespace, that makes the VFs itself."""
    for pf in (FIRST_PF, SECOND_PF):
        subprocess.run(["ip", "link", "set", pf, "down"], check=True)
    with running(netns="", networks=NETWORKS) as daemon:
        yield daemon
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
    for pf in (FIRST_PF, SECOND_PF):
        vfs.set_count(pf, 0)


@pytest.fixture
def vifd(host: Daemon) -> Iterator[Daemon]:
    """The module's daemon, whose VFs are as new before and after each test."""
    before = [vfs.state(pf) for pf in (FIRST_PF, SECOND_PF)]
    yield host
    print(host.log()[-5000:])
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert [vfs.state(pf) for pf in (FIRST_PF, SECOND_PF)] == before
    assert list((host.devices / "functions").iterdir()) == []


@pytest.fixture
def client(vifd: Daemon) -> Iterator[Client]:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        yield client


def test_vfs_are_made_at_the_start_and_their_pfs_set_up(vifd: Daemon) -> None:
    assert [vfs.count(pf) for pf in (FIRST_PF, SECOND_PF)] == [COUNT, COUNT]
    assert all(int(Path(f"/sys/class/net/{pf}/flags").read_text(), 16) & 1 for pf in (FIRST_PF, SECOND_PF))


def test_a_vf_is_as_it_was_asked_for(vifd: Daemon, client: Client) -> None:
    limits = LimitsSpec(from_vm=RateLimit(rate_bps=100_000_000))
    port = PortSpec(mac=MAC, vlan=VlanSpec(vid=7, qos=3), limits=limits, trusted=True)
    made = make_vf(client, port=port, owner=Owner(uid=ALICE)).pci
    assert made.address == vfs.addresses(made.pf_ifname)[made.vf_index]
    known = vfs.told(made.pf_ifname, made.vf_index)
    assert (known["address"], known["vlan_list"]) == (MAC, [{"vlan": 7, "qos": 3}])
    assert (known["spoofchk"], known["trust"], known["rate"]["max_tx"]) == (True, True, 100)
    assert (vfs.driver(made.address), made.vfio_path) == ("vfio-pci", str(vfs.node(made.address)))
    found = Path(made.vfio_path).stat()
    assert (found.st_uid, found.st_mode & 0o777) == (ALICE, 0o600)


def test_its_owner_opens_it_and_nobody_else(vifd: Daemon, client: Client) -> None:
    address = make_vf(client, owner=Owner(uid=ALICE)).pci.address
    with pytest.raises(AssertionError, match="Permission denied"), vfs.opened(address, BOB):
        pass
    with vfs.opened(address, ALICE):
        pass


def test_qemu_takes_it_as_its_owner(vifd: Daemon, client: Client) -> None:
    address = make_vf(client, owner=Owner(uid=ALICE)).pci.address
    # All memory of a VM with such a device is locked; who runs VMs raises their users' limit.
    become = ["prlimit", "--memlock=unlimited", "setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups"]
    machine = ["-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    argv = [*become, "qemu-system-x86_64", *machine, "-device", f"vfio-pci,host={address},id=vf0"]
    commands = "".join(json.dumps({"execute": command}) + "\n" for command in ("qmp_capabilities", "query-pci", "quit"))
    done = subprocess.run(argv, input=commands, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"qdev_id": "vf0"' in done.stdout


def test_every_vf_is_handed_out_once_and_one_more_is_refused(vifd: Daemon, client: Client) -> None:
    made = [make_vf(client).pci for _ in range(2 * COUNT)]
    assert {one.address for one in made} == {*vfs.addresses(FIRST_PF), *vfs.addresses(SECOND_PF)}
    assert len({one.vfio_path for one in made}) == 2 * COUNT
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        make_vf(client)


@contextlib.contextmanager
def in_namespace(ifname: str, address: str) -> Iterator[str]:
    """Move a netdev to a namespace of its own, as a container's does, and give it an address."""
    netns = f"vifd-test-{ifname[-6:]}"
    subprocess.run(["ip", "netns", "add", netns], check=True)
    try:
        subprocess.run(["ip", "link", "set", ifname, "netns", netns], check=True)
        subprocess.run(["ip", "-n", netns, "address", "add", f"{address}/24", "dev", ifname], check=True)
        subprocess.run(["ip", "-n", netns, "link", "set", ifname, "up"], check=True)
        yield netns
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=True)


def wait_for_carrier(netns: str, ifname: str) -> None:
    wait_for(lambda: "LOWER_UP" in ip(netns, "link", "show", "dev", ifname)[0]["flags"])


def reaches(netns: str, address: str, tries: int) -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", netns, "ping", "-c", str(tries), "-W", "1", address], check=False, capture_output=True
    )
    return done.returncode == 0


@pytest.mark.parametrize(("vids", "talk"), [((7, 7), True), ((7, 8), False)])
def test_vfs_reach_each_other_in_one_vlan_and_not_across(vifd: Daemon, client: Client, vids: Any, talk: bool) -> None:
    # VFs are spread over the cards: of three, two are of one.
    spread = [make_vf(client, acceptable=KERNEL, port=PortSpec(vlan=VlanSpec(vid=vid))) for vid in (vids[0], 9, vids[1])]
    made = [endpoint for endpoint in spread if endpoint.pci.pf_ifname == spread[0].pci.pf_ifname]
    for endpoint in made:
        assert endpoint.pci.ifname == names.device_name(Kind.PCI, endpoint.endpoint_id)
        assert Path(f"/sys/class/net/{endpoint.pci.ifname}/address").read_text().strip() == endpoint.port.mac
    first, second = (endpoint.pci.ifname for endpoint in made)
    with in_namespace(first, "192.0.2.1") as netns, in_namespace(second, "192.0.2.2") as other:
        wait_for_carrier(netns, first)
        wait_for_carrier(other, second)
        assert reaches(netns, "192.0.2.2", 10 if talk else 3) is talk
        release_all(client)  # also out of a namespace


def test_a_vf_that_somebody_uses_is_not_handed_out(vifd: Daemon, client: Client) -> None:
    ifname = vfs.ifname(vfs.addresses(FIRST_PF)[0])
    subprocess.run(["ip", "link", "set", ifname, "up"], check=True)
    made = {make_vf(client).pci.address for _ in range(2 * COUNT - 1)}
    assert made == {*vfs.addresses(FIRST_PF)[1:], *vfs.addresses(SECOND_PF)}
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        make_vf(client)
    subprocess.run(["ip", "link", "set", ifname, "down"], check=True)


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (PortSpec(link_up=False), "refuses the link state down of a VF"),
        (PortSpec(limits=LimitsSpec(from_vm=RateLimit(min_rate_bps=1_000_000))), "refuses the rate 1 to any Mbit/s of a VF"),
        (PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=100_000_000_000))), "refuses the rate 0 to 100000 Mbit/s of a VF"),
        (PortSpec(mtu_bytes=9000), "MTU 9000 is more than PF"),
    ],
)
def test_what_the_card_cant_do_fails_the_request(vifd: Daemon, client: Client, port: PortSpec, words: str) -> None:
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as refused:
        make_vf(client, port=port)
    assert words in refused.value.message


def test_a_living_vf_is_changed(vifd: Daemon, client: Client) -> None:
    made = make_vf(client, port=PortSpec(vlan=VlanSpec(vid=7)))
    client.update_endpoint(made.endpoint_id, PortSpec(vlan=VlanSpec(vid=8)), ["vlan"])
    assert vfs.told(made.pci.pf_ifname, made.pci.vf_index)["vlan_list"] == [{"vlan": 8}]


def test_what_others_change_is_told_and_mended(vifd: Daemon, client: Client) -> None:
    made = make_vf(client, port=PortSpec(vlan=VlanSpec(vid=7)), owner=Owner(uid=ALICE))
    pf, index = made.pci.pf_ifname, str(made.pci.vf_index)
    subprocess.run(["ip", "link", "set", pf, "vf", index, "vlan", "9"], check=True)
    subprocess.run(["ip", "link", "set", pf, "vf", index, "spoofchk", "off"], check=True)
    os.chown(made.pci.vfio_path, 0, 0)
    found = client.check_endpoint(made.endpoint_id, repair=True).drifts
    assert {drift.kind for drift in found} == {
        DriftKind.DRIFT_KIND_VLAN,
        DriftKind.DRIFT_KIND_GUARD,
        DriftKind.DRIFT_KIND_OWNER,
    }
    assert not client.check_endpoint(made.endpoint_id).drifts
    assert Path(made.pci.vfio_path).stat().st_uid == ALICE


def test_a_vf_whose_vm_runs_is_released_when_that_ends(vifd: Daemon, client: Client) -> None:
    made = make_vf(client, owner=Owner(uid=ALICE))
    with vfs.opened(made.pci.address, ALICE):
        with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as refused:
            client.release_endpoint(made.endpoint_id)
        assert "a program has it open" in refused.value.message
        assert state_of(client, made.endpoint_id) == "RELEASING"
        assert Path(made.pci.vfio_path).stat().st_uid == 0
    client.release_endpoint(made.endpoint_id)
    assert vfs.driver(made.pci.address) == "igbvf"


def test_a_vf_that_is_unplugged_is_a_drift_and_comes_back(vifd: Daemon, client: Client) -> None:
    made = make_vf(client, port=PortSpec(mac=MAC))
    vfs.set_count(made.pci.pf_ifname, 0)  # a VF alone can't be taken away: it has no `remove` in sysfs
    (drift,) = client.check_endpoint(made.endpoint_id).drifts
    assert drift.kind == DriftKind.DRIFT_KIND_DEVICE_MISSING
    vfs.set_count(made.pci.pf_ifname, COUNT)
    client.check_endpoint(made.endpoint_id, repair=True)
    assert not client.check_endpoint(made.endpoint_id).drifts
    assert vfs.driver(made.pci.address) == "vfio-pci"
    assert vfs.told(made.pci.pf_ifname, made.pci.vf_index)["address"] == MAC


def test_all_vfs_taken_away_behind_vifds_back(vifd: Daemon, client: Client) -> None:
    made = make_vf(client)
    vfs.set_count(FIRST_PF, 0)
    vfs.set_count(SECOND_PF, 0)
    assert {drift.kind for drift in client.check_endpoint(made.endpoint_id).drifts} == {DriftKind.DRIFT_KIND_DEVICE_MISSING}
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as refused:
        make_vf(client)
    assert "has no VFs" in refused.value.message
    client.release_endpoint(made.endpoint_id)
    vfs.set_count(FIRST_PF, COUNT)
    vfs.set_count(SECOND_PF, COUNT)


def cards_of(client: Client) -> Sequence[PhysicalFunction]:
    return next(network for network in client.get_host_info().networks if network.name == "fast").physical_functions


def functions_of(cards: Sequence[PhysicalFunction]) -> dict[str, VirtualFunction]:
    return {one.address: one for pf in cards for one in pf.virtual_functions}


def test_the_host_tells_of_its_cards_and_who_has_what(vifd: Daemon, client: Client) -> None:
    made = make_vf(client, instance=Instance(numa_node=0))
    cards = cards_of(client)
    assert [(pf.ifname, pf.address, pf.up, pf.total_vfs, pf.message) for pf in cards] == [
        (name, vfs.pf_address(name), True, COUNT, "") for name in (FIRST_PF, SECOND_PF)
    ]
    told = functions_of(cards)
    assert list(told) == [*vfs.addresses(FIRST_PF), *vfs.addresses(SECOND_PF)]
    assert all(str(one.iommu_group) == vfs.node(address).name for address, one in told.items())
    taken = told.pop(made.pci.address)
    in_use, free = VirtualFunctionState.VIRTUAL_FUNCTION_STATE_IN_USE, VirtualFunctionState.VIRTUAL_FUNCTION_STATE_FREE
    assert (taken.state, taken.endpoint_id, taken.driver) == (in_use, made.endpoint_id, "vfio-pci")
    assert {(one.endpoint_id, one.driver) for one in told.values()} == {("", "igbvf")}
    # One that somebody else had is left alone for a minute.
    wait_for(lambda: all(functions_of(cards_of(client))[address].state == free for address in told))


def test_doctor_finds_nothing_where_all_is_well_and_what_is_wrong_where_it_is_not(vifd: Daemon) -> None:
    def findings() -> tuple[int, list[str]]:
        argv = [str(BIN / "vifctl"), "--socket", vifd.socket, "doctor", "--json"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        return done.returncode, [one["problem"] for one in json.loads(done.stdout)["findings"]]

    assert findings() == (0, [])
    subprocess.run(["modprobe", "-r", "vfio-pci"], check=True)
    assert findings() == (1, ["the driver isn't loaded"])
    subprocess.run(["modprobe", "vfio-pci"], check=True)


def test_a_kernel_without_vfio_is_told(vifd: Daemon, client: Client) -> None:
    subprocess.run(["modprobe", "-r", "vfio-pci"], check=True)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as refused:
        make_vf(client)
    assert "modprobe vfio-pci" in refused.value.message
    assert make_vf(client, acceptable=KERNEL).pci.ifname
    subprocess.run(["modprobe", "vfio-pci"], check=True)
