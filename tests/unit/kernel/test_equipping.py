"""What the helper keeps: no capability and no thread more than what is configured takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from oslo_privsep import capabilities
from oslo_privsep.capabilities import Capabilities as Cap

from tests.support.messages import ID
from vifd.kernel import equipping
from vifd.kernel.authority import Authority, BridgeGrant, FunctionGrant, UplinkGrant, VdpaGrant
from vifd.kernel.executor import Tools
from vifd.kernel.nodes import Nodes
from vifd.kernel.sriov.hardware import Hardware, Locks
from vifd.kernel.sriov.inventory import Inventory
from vifd.kernel.sriov.marks import Mark, Marks
from vifd.kernel.sriov.pci import PciBus
from vifd.kernel.sriov.settings import VfSettings
from vifd.kernel.sriov.vfio import VfioNodes
from vifd.kernel.vdpa import marks as vdpa_marks
from vifd.kernel.vdpa.netlink import GenericSocket
from vifd.kernel.vdpa.tools import Vdpa

BLUE, LAN, NET = BridgeGrant("br-blue"), UplinkGrant("eth0"), FunctionGrant(("eth1", "eth2"))
FAST = VdpaGrant(("vdpasim_net",))


@pytest.fixture
def hardware(tmp_path: Path) -> Iterator[Hardware]:
    one = Hardware(Inventory(tmp_path), PciBus(tmp_path), VfioNodes(tmp_path), Marks.prepare(tmp_path), Locks(), set())
    with closing(one):
        yield one


@pytest.fixture
def permitted(monkeypatch: pytest.MonkeyPatch) -> list[Cap]:
    """The capabilities that the process has: the test may change them."""
    found = [Cap.CAP_NET_ADMIN, Cap.CAP_CHOWN, Cap.CAP_MKNOD]
    monkeypatch.setattr(capabilities, "get_caps", lambda: (found, found, []))
    return found


def tools(nodes: Nodes | str, hardware: Hardware | str, vdpa: Vdpa | str = "none") -> Tools:
    return Tools(None, None, None, nodes, None, hardware, vdpa)


def test_capabilities_are_those_of_what_is_configured(hardware: Hardware) -> None:
    nodes = Nodes(Path("/nowhere"), -1, -1)
    assert equipping.needed_capabilities(tools("none", "none")) == [Cap.CAP_NET_ADMIN]
    assert equipping.needed_capabilities(tools("none", hardware)) == [Cap.CAP_NET_ADMIN, Cap.CAP_CHOWN]
    assert equipping.needed_capabilities(tools(nodes, hardware)) == [Cap.CAP_NET_ADMIN, Cap.CAP_MKNOD, Cap.CAP_CHOWN]


@pytest.mark.parametrize(
    ("authority", "calls"),
    [
        ({"blue": BLUE, "lan": LAN}, 1),
        ({"blue": BLUE, "net": NET}, 6),
        ({"net": NET, "same": NET, "more": FunctionGrant(("eth3",))}, 9),
        ({"net": NET, "fast": FAST, "same": FAST}, 9),
        ({"net": FunctionGrant(tuple(f"eth{number}" for number in range(64)))}, 48),
    ],
)
def test_each_card_adds_threads_and_takes_none_of_the_others(authority: Authority, calls: int) -> None:
    assert (equipping.card_calls(authority), equipping.needed_threads(authority)) == (calls, 5 + calls)


def test_without_sriov_networks_nothing_is_prepared(tmp_path: Path, permitted: list[Cap]) -> None:
    words = equipping.prepare_hardware(tmp_path / "vifd", {"blue": BLUE, "lan": LAN})
    assert str(words).startswith("the first network with driver sriov takes a restart of vifd")
    assert not (tmp_path / "vifd").exists()


def test_without_the_capability_it_is_told_what_to_do(tmp_path: Path, permitted: list[Cap]) -> None:
    permitted.remove(Cap.CAP_CHOWN)
    words = "driver sriov takes CAP_CHOWN, which vifd wasn't started with (systemd/sriov.conf)"
    assert equipping.prepare_hardware(tmp_path, {"net": NET}) == words


def test_a_sysfs_that_is_read_only_is_told(tmp_path: Path, permitted: list[Cap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vifd.kernel.sriov.hardware._WRITTEN", (tmp_path,))
    monkeypatch.setattr("os.statvfs", lambda _: type("Flags", (), {"f_flag": 1}))
    words = f"driver sriov takes a {tmp_path} that vifd may write, and it is mounted read-only (systemd/sriov.conf)"
    assert equipping.prepare_hardware(tmp_path, {"net": NET}) == words


def test_a_directory_that_cant_hold_marks_is_told(tmp_path: Path, permitted: list[Cap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vifd.kernel.sriov.hardware._WRITTEN", ())
    (tmp_path / "functions").write_text("")
    assert str(equipping.prepare_hardware(tmp_path, {"net": NET})).startswith("daemon.device_dir: ")


def test_a_vf_that_is_left_of_a_network_can_still_be_given_back(
    tmp_path: Path, permitted: list[Cap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vifd.kernel.sriov.hardware._WRITTEN", ())
    with closing(Marks.prepare(tmp_path)) as marks:
        marks.create("0000:01:10.0", Mark(ID, "0000:01:00.0", "igbvf", "", VfSettings()))
    assert isinstance(equipping.prepare_hardware(tmp_path, {"blue": BLUE}), Hardware)


@pytest.fixture
def generic() -> Iterator[GenericSocket]:
    with closing(GenericSocket()) as one:
        yield one


def is_closed(generic: GenericSocket) -> bool:
    return generic._socket.fileno() < 0


def test_without_vdpa_networks_no_socket_stays(tmp_path: Path, permitted: list[Cap], generic: GenericSocket) -> None:
    words = equipping.prepare_vdpa(generic, tmp_path / "vifd", {"blue": BLUE, "net": NET})
    assert str(words).startswith("the first network with driver vdpa takes a restart of vifd")
    assert is_closed(generic)
    assert not (tmp_path / "vifd").exists()


def test_with_a_vdpa_network_the_helper_may_give_away(tmp_path: Path, permitted: list[Cap], generic: GenericSocket) -> None:
    prepared = equipping.prepare_vdpa(generic, tmp_path / "vifd", {"fast": FAST})
    assert isinstance(prepared, Vdpa)
    assert equipping.needed_capabilities(tools("none", "none", prepared)) == [Cap.CAP_NET_ADMIN, Cap.CAP_CHOWN]
    prepared.close()
    assert is_closed(generic)


def test_vdpa_without_the_capability_is_told(tmp_path: Path, permitted: list[Cap], generic: GenericSocket) -> None:
    permitted.remove(Cap.CAP_CHOWN)
    words = "driver vdpa takes CAP_CHOWN, which vifd wasn't started with (systemd/vdpa.conf)"
    assert equipping.prepare_vdpa(generic, tmp_path, {"fast": FAST}) == words
    assert is_closed(generic)


def test_a_vdpa_device_that_is_left_of_a_network_can_still_be_deleted(
    tmp_path: Path, permitted: list[Cap], generic: GenericSocket
) -> None:
    with closing(vdpa_marks.Marks.prepare(tmp_path)) as marks:
        marks.create("vdvaaaaaaaaaa", vdpa_marks.Mark(ID, "vdpasim_net", 1))
    prepared = equipping.prepare_vdpa(generic, tmp_path, {"blue": BLUE})
    assert isinstance(prepared, Vdpa)
    prepared.close()


def test_a_directory_that_cant_hold_vdpa_marks_is_told(tmp_path: Path, permitted: list[Cap], generic: GenericSocket) -> None:
    (tmp_path / "vdpa").write_text("")
    assert str(equipping.prepare_vdpa(generic, tmp_path, {"fast": FAST})).startswith("daemon.device_dir: ")
    assert is_closed(generic)
