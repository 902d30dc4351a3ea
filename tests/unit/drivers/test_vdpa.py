from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.lives import FakeTime
from tests.support.messages import ID, endpoint_id
from tests.support.vdpa_host import FIRST, SECOND, vdpa_sysfs
from vifd.drivers.vdpa import VdpaDriver, VdpaOptions
from vifd.errors import NetworkFull
from vifd.kernel import names
from vifd.kernel.authority import VdpaGrant
from vifd.kernel.ops import BindVdpa, CreateVdpa, Made
from vifd.kernel.vdpa.inventory import VdpaInventory
from vifd.model import EndpointSpec, Feature, Instance, Kind, Owner, Port, State, TapPreference, VdpaDevice, VdpaPreference

NAME = names.device_name(Kind.VDPA, ID)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return vdpa_sysfs(tmp_path / "sys", FIRST, SECOND)


def driver(sysfs: Path, time: FakeTime | None = None, **options: object) -> VdpaDriver:
    keys = VdpaOptions(**{"management_devices": (FIRST, SECOND)} | options)
    return VdpaDriver("fast", keys, VdpaInventory(sysfs), (time or FakeTime()).now)


def spec(queues: int = 1, *, gid: int | None = None, **fields: object) -> EndpointSpec:
    return EndpointSpec("fast", (VdpaPreference(queues),), Owner(1000, gid), **fields)


def problem(one: VdpaDriver, wanted: EndpointSpec | None = None) -> str:
    (offer,) = one.offers(wanted)
    assert offer.kind is Kind.VDPA
    return offer.unavailable


# --- the configuration


@pytest.mark.parametrize(
    "managers", [(), ("",), ("a/b/c",), ("../x",), ("vdpasim_net ",), ("pci/",), ("/x",), (FIRST, FIRST), ("x" * 64,), ("a#0",)]
)
def test_what_is_wrong_with_the_keys_is_named(managers: tuple[str, ...]) -> None:
    assert [one.field for one in VdpaDriver.check_options(VdpaOptions(managers))] == ["management_devices"]


@pytest.mark.parametrize("manager", ["vdpasim_net", "pci/0000:01:00.2", "auxiliary/mlx5_core.sf.4", "vduse"])
def test_management_devices_are_named_as_vdpa_names_them(manager: str) -> None:
    assert VdpaDriver.check_options(VdpaOptions((manager,))) == []


def test_the_helper_may_use_the_management_devices_that_the_configuration_names() -> None:
    assert VdpaDriver.grant(VdpaOptions((FIRST,), "core", 4, 9000)) == VdpaGrant((FIRST,), 4, 9000)
    assert VdpaDriver.physical_network(VdpaOptions((FIRST,), "core")) == "core"


# --- offers


def test_it_offers_vdpa_without_what_a_nic_cannot_do(sysfs: Path) -> None:
    (offer,) = driver(sysfs).offers(None)
    assert (offer.kind, offer.features, offer.unavailable) == (Kind.VDPA, {Feature.MTU}, "")
    (offer,) = driver(sysfs, queues=4).offers(None)
    assert offer.features == {Feature.MTU, Feature.MULTI_QUEUE}


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("bus/vdpa", "this kernel has no vDPA now: load its module (modprobe vdpa)"),
        ("bus/vdpa/drivers/vhost_vdpa", "load its module (modprobe vhost_vdpa)"),
    ],
)
def test_a_kernel_without_it_says_what_to_load(sysfs: Path, gone: str, words: str) -> None:
    shutil.rmtree(sysfs / gone)
    assert words in problem(driver(sysfs))


def test_one_management_device_is_enough_and_none_is_told(sysfs: Path) -> None:
    shutil.rmtree(sysfs / "devices" / FIRST)
    assert problem(driver(sysfs)) == ""
    shutil.rmtree(sysfs / "bus/pci")
    assert problem(driver(sysfs)) == (
        f"network fast has no vDPA management device here: {FIRST}, {SECOND} isn't there; load its driver"
    )


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (spec(port=Port(mtu_bytes=9001)), "MTU 9001 is more than the 9000 of network fast"),
        (spec(5), "5 queue pairs are more than the 4 of network fast"),
        (spec(gid=36), "leave owner.gid out"),
    ],
)
def test_what_no_device_can_be_is_refused_with_the_reason(sysfs: Path, wanted: EndpointSpec, words: str) -> None:
    one = driver(sysfs, queues=4, mtu=9000)
    assert words in problem(one, wanted)
    assert problem(one, spec(4, port=Port(mtu_bytes=9000))) == ""


# --- picking


def test_devices_are_spread_over_management_devices_and_each_has_its_place(sysfs: Path) -> None:
    one, taken = driver(sysfs), dict[str, State]()
    for _ in range(4):
        taken[one.pick(spec(), taken)] = State.READY
    assert list(taken) == [f"{FIRST}#0", f"{SECOND}#0", f"{FIRST}#1", f"{SECOND}#1"]
    del taken[f"{FIRST}#0"]
    assert one.pick(spec(), taken | {"0000:01:10.0": State.READY}) == f"{FIRST}#0"


def test_a_device_is_near_the_vms_memory_if_one_is(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices/0000:01:00.2/numa_node").write_text("1\n")
    one = driver(sysfs)
    for node, places in {1: [SECOND, SECOND], 7: [FIRST, SECOND], None: [FIRST, SECOND]}.items():
        wanted, taken = spec(instance=Instance(numa_node=node)), dict[str, State]()
        for _ in range(2):
            taken[one.pick(wanted, taken)] = State.READY
        assert [place.partition("#")[0] for place in taken] == places


def test_a_full_management_device_is_left_alone_for_a_minute(sysfs: Path) -> None:
    time = FakeTime()
    one = driver(sysfs, time)
    one.note_unfit(f"{FIRST}#7", "no more")
    assert one.pick(spec(), {}) == f"{SECOND}#0"
    one.note_unfit(f"{SECOND}#0", "none here either")
    with pytest.raises(NetworkFull, match="takes one more device: no more; none here either; release an endpoint of it"):
        one.pick(spec(), {})
    time.advance(61)
    assert one.pick(spec(), {}) == f"{FIRST}#0"


def test_one_that_isnt_there_is_never_picked(sysfs: Path) -> None:
    shutil.rmtree(sysfs / "devices" / FIRST)
    assert driver(sysfs).pick(spec(), {}) == f"{SECOND}#0"


def test_each_management_device_has_a_lane(sysfs: Path) -> None:
    one = driver(sysfs)
    assert one.lane(f"{SECOND}#12") == SECOND
    assert one.lane("vdvaaaaaaaaaa") == "vdvaaaaaaaaaa"


# --- plans


def test_a_plan_makes_a_device_and_gives_it_away(sysfs: Path) -> None:
    planned = driver(sysfs, mtu=9000, queues=2).plan(ID, spec(2, function=f"{SECOND}#3"), VdpaPreference(2))
    port = Port(names.derived_mac(ID), mtu_bytes=9000)
    assert planned.port == port
    assert planned.plan == (CreateVdpa(ID, NAME, "fast", f"{SECOND}#3", port, 2), BindVdpa(ID, NAME, "fast", 1000))


def test_without_a_place_there_is_no_plan(sysfs: Path) -> None:
    with pytest.raises(ValueError, match="has no place"):
        driver(sysfs).plan(ID, spec(), VdpaPreference())
    with pytest.raises(TypeError, match="has no tap"):
        driver(sysfs).plan(ID, spec(function=f"{FIRST}#0"), TapPreference())


def test_a_location_says_the_node_and_the_name(sysfs: Path) -> None:
    other = endpoint_id(2)
    found = driver(sysfs).locate(other, VdpaPreference(2), Made(device_path="/dev/vhost-vdpa-3"))
    assert found == VdpaDevice("/dev/vhost-vdpa-3", names.device_name(Kind.VDPA, other), 2)
