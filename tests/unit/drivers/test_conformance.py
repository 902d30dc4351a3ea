"""The built-in drivers keep what every driver promises; and the suite notices one that doesn't."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec import Struct

from tests.support.nics import two_nics
from tests.support.vdpa_host import vdpa_sysfs
from vifd.drivers.base import NetworkDriver, Planned
from vifd.drivers.bridge import BridgeDriver
from vifd.drivers.direct import DirectDriver
from vifd.drivers.fake import FakeDriver, FakeOptions
from vifd.drivers.sriov import SriovDriver, SriovOptions
from vifd.drivers.vdpa import VdpaDriver, VdpaOptions
from vifd.errors import JournalDamaged, Violation
from vifd.kernel.ops import EnsureBridge
from vifd.kernel.sriov.inventory import Inventory
from vifd.kernel.vdpa.inventory import VdpaInventory
from vifd.model import Kind, Offer, TapDevice, TapPreference
from vifd.testing import NetworkDriverConformance


class TestBridge(NetworkDriverConformance):
    driver = BridgeDriver
    networks = (
        'bridge = "br-blue"',
        'bridge = "br-blue"\nuplink = "eth7"\nmtu = 9000\naddresses = ["10.0.0.1/24"]\npool = ["10.0.0.9"]',
        'bridge = "br-blue"\naddresses = ["10.0.0.1/24"]\nnat = true\nnat_uplink = "eth7"\npublic_pool = ["203.0.113.7"]',
    )
    bad_networks: ClassVar = {
        "bridge": 'bridge = "not/a name"',
        "uplink": 'bridge = "br-blue"\nuplink = "br-blue"',
        "mtu": 'bridge = "br-blue"\nmtu = 67',
        "pool": 'bridge = "br-blue"\npool = ["10.0.0.9"]',
        "nat": 'bridge = "br-blue"\nnat = true',
        "repair": 'bridge = "br-blue"\nrepair = "perhaps"',
    }


class TestDirect(NetworkDriverConformance):
    driver = DirectDriver
    networks = ('uplink = "eth7"', 'uplink = "eth7"\nmtu = 1400\nrepair = "report"')
    bad_networks: ClassVar = {"uplink": 'uplink = "not/a name"', "mtu": 'uplink = "eth7"\nmtu = 70000'}


class OnMadeUpNics(SriovDriver):
    sysfs: ClassVar[Path]

    def __init__(self, network: str, options: SriovOptions) -> None:
        super().__init__(network, options, Inventory(self.sysfs))


class OnMadeUpVdpa(VdpaDriver):
    sysfs: ClassVar[Path]

    def __init__(self, network: str, options: VdpaOptions) -> None:
        super().__init__(network, options, VdpaInventory(self.sysfs))


@pytest.fixture(autouse=True, scope="module")
def _nics(tmp_path_factory: pytest.TempPathFactory) -> None:
    OnMadeUpNics.sysfs = two_nics(tmp_path_factory.mktemp("nics") / "sys").root
    OnMadeUpVdpa.sysfs = vdpa_sysfs(tmp_path_factory.mktemp("vdpa") / "sys", "vdpasim_net", "pci/0000:01:00.2")


class TestSriov(NetworkDriverConformance):
    driver = OnMadeUpNics
    networks = (
        'pfs = ["ens1f0"]',
        'pfs = ["0000:81:00.0", "ens1f0"]\nvlan = 7\nvfs = ["0000:81:10.0-0000:81:10.4"]\nphysical_network = "core"',
        'pfs = ["ens1f0"]\nvfs = 3\nexclude = ["0000:01:10.2"]\nmtu = 9000\nrepair = "report"',
    )
    bad_networks: ClassVar = {
        "pfs": "pfs = []",
        "vfs": 'pfs = ["eth7"]\nvfs = ["eth7"]',
        "exclude": 'pfs = ["eth7"]\nexclude = ["0000:03:10.2-"]',
        "vlan": 'pfs = ["eth7"]\nvlan = 4095',
        "mtu": 'pfs = ["eth7"]\nmtu = 67',
        "physical_network": 'pfs = ["eth7"]\nphysical_network = "a b"',
    }


class TestVdpa(NetworkDriverConformance):
    driver = OnMadeUpVdpa
    networks = (
        'management_devices = ["vdpasim_net"]',
        'management_devices = ["vdpasim_net", "pci/0000:01:00.2"]\nqueues = 4\nmtu = 9000\nphysical_network = "core"',
    )
    bad_networks: ClassVar = {
        "management_devices": 'management_devices = ["not/a/name"]',
        "queues": 'management_devices = ["vdpasim_net"]\nqueues = 0',
        "mtu": 'management_devices = ["vdpasim_net"]\nmtu = 67',
        "repair": 'management_devices = ["vdpasim_net"]\nrepair = "perhaps"',
    }


class TestFake(NetworkDriverConformance):
    driver = FakeDriver
    networks = ("", 'kinds = ["tap", "pci"]\nunavailable = ["pci"]\nmtu = 9000')
    bad_networks: ClassVar = {"kinds": 'kinds = ["tpa"]', "unavailable": 'unavailable = [""]', "mtu": "mtu = 1"}


# --- drivers that break one promise each


class Restless(FakeDriver):
    def plan(self, *arguments: Any) -> Planned:
        planned = super().plan(*arguments)
        return msgspec.structs.replace(planned, port=msgspec.structs.replace(planned.port, mtu_bytes=random.randrange(68, 9000)))


class Curious(FakeDriver):
    def plan(self, *arguments: Any) -> Planned:
        Path("/proc/self/comm").read_text()
        return super().plan(*arguments)


class Forgetful(FakeDriver):
    def plan(self, *arguments: Any) -> Planned:
        planned = super().plan(*arguments)
        return msgspec.structs.replace(planned, port=msgspec.structs.replace(planned.port, isolated=False))


class Greedy(FakeDriver):
    def plan(self, *arguments: Any) -> Planned:
        return msgspec.structs.replace(super().plan(*arguments), plan=(EnsureBridge("conformance"),))


class Disorderly(FakeDriver):
    def plan(self, *arguments: Any) -> Planned:
        return msgspec.structs.replace(super().plan(*arguments), plan=(EnsureBridge("conformance"), EnsureBridge("conformance")))


class Fickle(FakeDriver):
    def offers(self, spec: Any) -> Sequence[Offer]:
        return [msgspec.structs.replace(offer, unavailable=f"no room for {random.random()}") for offer in super().offers(spec)]


class Illegible(FakeDriver):
    def locate(self, endpoint_id: str, preference: Any, made: Any) -> Any:
        return TapDevice("vdt0", 1.5, 1, vnet_hdr=True)  # type: ignore[arg-type]  which is what's wrong


class Silent(FakeDriver):
    def offers(self, spec: Any) -> Sequence[Offer]:
        return [msgspec.structs.replace(offer, unavailable="no") for offer in super().offers(spec)]


class Twofold(FakeDriver):
    def offers(self, spec: Any) -> Sequence[Offer]:
        return [*super().offers(spec), *super().offers(spec)]


class Shy(FakeDriver):
    def offers(self, spec: Any) -> Sequence[Offer]:
        offers = super().offers(spec)
        return offers if spec is None or not spec.port.isolated else offers[:1]


class Crowded(FakeDriver):
    def locate(self, endpoint_id: str, preference: Any, made: Any) -> Any:
        return super().locate("11111111-2222-4333-8444-555555555555", preference, made)


class Confused(FakeDriver):
    def locate(self, endpoint_id: str, preference: Any, made: Any) -> Any:
        return TapDevice("vdt0", 1, 1, vnet_hdr=True)


class SingleQueued(FakeDriver):
    def locate(self, endpoint_id: str, preference: Any, made: Any) -> Any:
        alone = TapPreference() if preference.kind is Kind.TAP else preference
        return super().locate(endpoint_id, alone, made)


class Imposing(FakeDriver):
    def plan(self, *arguments: Any) -> Planned:
        planned = super().plan(*arguments)
        return msgspec.structs.replace(planned, port=msgspec.structs.replace(planned.port, mac="52:54:00:00:00:01"))


class Fragile(FakeDriver):
    async def unbind(self, endpoint: Any) -> None:
        del self._bound[endpoint.endpoint_id]

    async def bind(self, endpoint: Any) -> None:
        self._bound = {endpoint.endpoint_id: True}

    _bound: ClassVar[dict[str, bool]] = {}


class Lenient(FakeDriver):
    @classmethod
    def check_options(cls, options: FakeOptions) -> list[Violation]:
        return []


class Loose(FakeDriver):
    class Options(Struct):
        kinds: tuple[str, ...] = ()

    options = Options


BROKEN: dict[type[NetworkDriver[Any]], str] = {
    Restless: "test_plans_are_pure",
    Curious: "test_plans_are_pure",
    Forgetful: "test_an_option_that_it_offers_is_honoured",
    Greedy: "test_plans_pass_the_privileged_helpers_check",
    Disorderly: "test_plans_are_in_the_order_in_which_they_can_be_undone",
    Fickle: "test_offers_are_the_same_each_time",
    Illegible: "test_an_endpoint_survives_the_journal_and_can_be_told",
    Silent: "test_each_kind_is_offered_once_or_with_the_reason_why_not",
    Twofold: "test_each_kind_is_offered_once_or_with_the_reason_why_not",
    Shy: "test_what_is_asked_for_changes_no_kind_but_only_whether_it_can_be_made",
    Crowded: "test_two_endpoints_have_nothing_in_common",
    Confused: "test_a_location_is_pure_and_of_the_kind_that_was_chosen",
    SingleQueued: "test_queues_that_it_offers_are_there",
    Imposing: "test_a_mac_is_the_callers_or_a_local_one",
    Fragile: "test_the_network_system_may_be_told_twice",
    Lenient: "test_a_wrong_key_is_named",
    Loose: "test_it_has_a_name_and_frozen_options",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda driver: driver.__name__)
def test_a_driver_that_breaks_a_promise_is_noticed(broken: type[NetworkDriver[Any]]) -> None:
    class Suite(NetworkDriverConformance):
        driver = broken
        networks = ("",)
        bad_networks: ClassVar = {"kinds": 'kinds = ["tpa"]'}

    test: Callable[..., None] = getattr(Suite(), BROKEN[broken])
    arguments = {"test_it_has_a_name_and_frozen_options": [], "test_a_wrong_key_is_named": ["kinds"]}.get(BROKEN[broken], [""])
    with pytest.raises((AssertionError, KeyError, JournalDamaged, pytest.fail.Exception)):
        test(*arguments)


def test_what_another_thread_does_is_none_of_the_drivers() -> None:
    class Beside(FakeDriver):
        def plan(self, *arguments: Any) -> Planned:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(Path("/proc/self/comm").read_text).result()
            return super().plan(*arguments)

    class Suite(NetworkDriverConformance):
        driver = Beside
        networks = ("",)

    Suite().test_plans_are_pure("")
