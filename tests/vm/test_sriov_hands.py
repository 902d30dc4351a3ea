"""One VF from hand to hand: whoever dies in between, nothing of its last owner is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import vfs
from tests.support.asking import new_id, refusal, release_all
from tests.support.daemon import Daemon, running, wait_for
from tests.support.restarts import listed
from tests.support.vfs import FIRST_PF, SECOND_PF, make_vf
from vifclient import Client, VifError
from vifclient.messages import Owner, PortSpec, VlanSpec
from vifclient.retry import NO_RETRY

ALICE = 20001
COUNT = 3
MAC = "52:54:00:12:34:56"
NETWORKS = """
[networks.fast]
driver = "sriov"
pfs = ["eth0"]
vfs = ["{address}"]
repair = "report"
"""


@pytest.fixture(scope="module", autouse=True)
def cards() -> None:
    """The machine's cards; elsewhere these tests are skipped."""
    if vfs.pfs() != [FIRST_PF, SECOND_PF]:
        pytest.skip("this isn't the emulated machine")


@pytest.fixture(scope="module")
def host(cards: None) -> Iterator[Daemon]:
    """A daemon of the machine's own namespace, that has one VF."""
    vfs.set_count(FIRST_PF, COUNT)
    with running(netns="", networks=NETWORKS.format(address=vfs.addresses(FIRST_PF)[0])) as daemon:
        yield daemon
        assert daemon.stop() == 0  # its log has a traceback of a helper's whose front was killed
    vfs.set_count(FIRST_PF, 0)


@pytest.fixture
def one(host: Daemon) -> Iterator[Daemon]:
    """The module's daemon, whose VF is as new before and after each test."""
    before = vfs.state(FIRST_PF)
    yield host
    print(host.log()[-5000:])
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert vfs.state(FIRST_PF) == before


def test_a_vf_changes_hands_and_nothing_of_the_last_owner_is_left(one: Daemon) -> None:
    with Client(one.socket, retry=NO_RETRY) as client:
        for number in range(1, 51):
            mac, vlan = f"52:54:00:00:00:{number:02x}", VlanSpec(vid=number) if number % 2 else None
            made = make_vf(client, port=PortSpec(mac=mac, vlan=vlan, trusted=number % 3 == 0), owner=Owner(uid=ALICE + number))
            known = vfs.told(FIRST_PF, 0)
            vid = known.get("vlan_list", [{}])[0].get("vlan", 0)
            assert (known["address"], vid, known["trust"]) == (mac, number if number % 2 else 0, number % 3 == 0)
            assert Path(made.pci.vfio_path).stat().st_uid == ALICE + number
            client.release_endpoint(made.endpoint_id)
            assert vfs.told(FIRST_PF, 0)["address"] != mac


def node_owner(address: str) -> int:
    try:
        return vfs.node(address).stat().st_uid
    except FileNotFoundError:
        return -1


#: By what is to be seen of a VF: when whoever works on it is killed. What is left after any one step, `test_sriov_steps` shows.
BINDING: dict[str, Callable[[Daemon, str], bool]] = {
    "marked": lambda vifd, address: (vifd.devices / "functions" / address).exists(),
    "bound": lambda _, address: vfs.driver(address) == "vfio-pci",
    "given": lambda _, address: node_owner(address) == ALICE,
}
UNBINDING: dict[str, Callable[[Daemon, str], bool]] = {
    "taken back": lambda _, address: node_owner(address) == 0,
    "bound": lambda _, address: vfs.driver(address) == "igbvf",
}


@contextlib.contextmanager
def killed_when(condition: Callable[[], bool], pid: int) -> Iterator[None]:
    """Have a process killed as soon as a condition holds, at the end of the block in any case: it may hold for a moment only."""
    over = threading.Event()

    def watch() -> None:
        try:
            while not (condition() or over.wait(0.005)):
                pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def begin(vifd: Daemon, endpoint_id: str, *, releasing: bool) -> None:
    """Request or release, and lose the answer."""
    with Client(vifd.socket, retry=NO_RETRY) as client, contextlib.suppress(VifError):
        if releasing:
            client.release_endpoint(endpoint_id)
        else:
            make_vf(client, endpoint_id, port=PortSpec(mac=MAC), owner=Owner(uid=ALICE))


@pytest.mark.parametrize("who", ["helper", "front"])
@pytest.mark.parametrize("step", [("bind", step) for step in BINDING] + [("unbind", step) for step in UNBINDING], ids=" ".join)
def test_who_is_killed_at_a_step_of_binding_or_unbinding_leaves_nothing(one: Daemon, who: str, step: tuple[str, str]) -> None:
    before, address, endpoint_id = vfs.state(FIRST_PF), vfs.addresses(FIRST_PF)[0], new_id()
    releasing = step[0] == "unbind"
    condition = (UNBINDING if releasing else BINDING)[step[1]]
    assert one.process is not None
    if releasing:
        begin(one, endpoint_id, releasing=False)
        assert vfs.driver(address) == "vfio-pci"
    with killed_when(lambda: condition(one, address), one.helper_pid if who == "helper" else one.process.pid):
        begin(one, endpoint_id, releasing=releasing)
    one.wait_dead()
    one.start()
    if endpoint_id in listed(one):
        with Client(one.socket, retry=NO_RETRY) as client:
            assert not client.check_endpoint(endpoint_id).drifts
            client.release_endpoint(endpoint_id)
    assert vfs.state(FIRST_PF) == before


def test_a_pf_that_is_down_is_told(one: Daemon) -> None:
    subprocess.run(["ip", "link", "set", FIRST_PF, "down"], check=True)
    with Client(one.socket, retry=NO_RETRY) as client, refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as refused:
        make_vf(client)
    assert "PF eth0 is down, and with it its VFs: ip link set eth0 up" in refused.value.message
    subprocess.run(["ip", "link", "set", FIRST_PF, "up"], check=True)


def test_a_stray_vf_is_given_back_at_the_start(one: Daemon) -> None:
    with Client(one.socket, retry=NO_RETRY) as client:
        address = make_vf(client).pci.address
    one.kill()
    for file in one.state.iterdir():
        file.unlink()
    one.start()
    assert (vfs.driver(address), listed(one)) == ("igbvf", {})


def test_another_number_of_vfs_is_told_and_none_is_destroyed(one: Daemon) -> None:
    known = one.config.read_text()
    one.config.write_text(known.replace("vfs = [", "vfs = 2  # ["))
    assert one.process is not None
    one.process.send_signal(signal.SIGHUP)
    wait_for(lambda: f"PF {FIRST_PF} has {COUNT} VFs, and vfs = 2 says otherwise" in one.log())
    assert vfs.count(FIRST_PF) == COUNT
    with Client(one.socket, retry=NO_RETRY) as client:  # those that there are can be had
        (fast,) = client.get_host_info().networks
        assert all(offer.available and not offer.message for offer in fast.offers)
        assert "vfs = 2 says otherwise" in fast.physical_functions[0].message
    one.config.write_text(known)
