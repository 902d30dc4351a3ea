import asyncio
import os

import pytest

from tests.support.messages import endpoint_id
from vifd.drivers.addressing import Addressing
from vifd.drivers.fake import FakeDriver, FakeOptions
from vifd.kernel.ops import Made
from vifd.model import (
    BridgePort,
    BridgePreference,
    Endpoint,
    EndpointSpec,
    Feature,
    Kind,
    Location,
    MacvtapDevice,
    MacvtapMode,
    MacvtapPreference,
    OvsPort,
    OvsPortPreference,
    Owner,
    PciDevice,
    PciHostDriver,
    PciPreference,
    Port,
    Preference,
    State,
    TapDevice,
    TapPreference,
    VdpaDevice,
    VdpaPreference,
    VhostUserPreference,
    VhostUserRole,
    VhostUserSocket,
)

PREFERENCES: tuple[Preference, ...] = (
    BridgePreference(),
    TapPreference(2, vnet_hdr=False),
    MacvtapPreference(MacvtapMode.VEPA),
    PciPreference(PciHostDriver.KERNEL),
    OvsPortPreference(),
    VhostUserPreference(VhostUserRole.CLIENT, 3),
    VdpaPreference(4),
)


def driver(**options: object) -> FakeDriver:
    return FakeDriver("fake", FakeOptions(**options))


def locate(preference: Preference, number: int = 1) -> Location:
    return driver().locate(endpoint_id(number), preference, Made())


def test_it_offers_every_kind() -> None:
    assert [offer.kind for offer in driver().offers(None)] == list(Kind)


def test_it_offers_only_the_kinds_of_its_configuration() -> None:
    assert [offer.kind for offer in driver(kinds=("tap", "pci")).offers(None)] == [Kind.TAP, Kind.PCI]


def test_it_offers_a_kind_that_cant_be_made_now_with_the_reason() -> None:
    reasons = {offer.kind: offer.unavailable for offer in driver(kinds=("tap", "pci"), unavailable=("pci",)).offers(None)}
    assert reasons == {Kind.TAP: "", Kind.PCI: "the configuration of network fake says so"}


def test_only_a_vm_with_a_pci_function_cant_move() -> None:
    offers = driver().offers(None)
    assert [offer.kind for offer in offers if Feature.LIVE_MIGRATION not in offer.features] == [Kind.PCI]


def test_taps_and_macvtaps_have_descriptors() -> None:
    offers = driver().offers(None)
    assert [offer.kind for offer in offers if Feature.FD_HANDOFF in offer.features] == [Kind.TAP, Kind.MACVTAP]


def test_a_tap_can_do_every_option() -> None:
    (tap,) = driver(kinds=("tap",)).offers(None)
    assert tap.features == set(Feature)


def test_its_queues_are_wires_until_the_endpoint_is_unbound() -> None:
    fake, tap = driver(), make_endpoint()
    near, other = fake.open_queues(tap, 2)
    try:
        assert os.write(near, b"frame") == 5
        asyncio.run(fake.unbind(tap))
        with pytest.raises(ConnectionError):
            os.write(near, b"frame")
    finally:
        os.close(near)
        os.close(other)


def make_endpoint() -> Endpoint:
    return Endpoint(endpoint_id(1), 1, "", "fake", "fake", State.READY, Port(), Owner(1), 1)


def test_its_plan_is_empty_and_its_port_is_filled_in() -> None:
    planned = driver(mtu=9000).plan(endpoint_id(1), EndpointSpec("fake", PREFERENCES, Owner(1)), PREFERENCES[0])
    assert planned.plan == ()
    assert planned.port == Port(mac="2a:d1:25:24:82:0c", mtu_bytes=9000)


def test_its_port_keeps_what_the_caller_chose() -> None:
    port = Port(mac="52:54:00:00:00:01", mtu_bytes=1280)
    planned = driver().plan(endpoint_id(1), EndpointSpec("fake", PREFERENCES, Owner(1), port=port), PREFERENCES[0])
    assert planned.port == port


def test_it_needs_nothing_of_the_kernel() -> None:
    assert FakeDriver.grant(FakeOptions()) is None


def test_each_kind_has_its_location() -> None:
    kinds = [type(locate(preference)) for preference in PREFERENCES]
    assert kinds == [BridgePort, TapDevice, MacvtapDevice, PciDevice, OvsPort, VhostUserSocket, VdpaDevice]
    assert [locate(preference).kind for preference in PREFERENCES] == list(Kind)


def test_a_location_keeps_the_options_of_its_preference() -> None:
    tap, macvtap, pci, vhost_user, vdpa = (locate(PREFERENCES[i]) for i in (1, 2, 3, 5, 6))
    assert (tap.queues, tap.vnet_hdr, tap.multi_queue) == (2, False, True)
    assert macvtap.mode is MacvtapMode.VEPA
    assert pci.host_driver is PciHostDriver.KERNEL
    assert (vhost_user.hypervisor_role, vhost_user.queues) == (VhostUserRole.CLIENT, 3)
    assert vdpa.queues == 4


@pytest.mark.parametrize("preference", PREFERENCES)
def test_a_location_is_the_same_each_time(preference: Preference) -> None:
    assert locate(preference) == locate(preference)


@pytest.mark.parametrize("preference", [preference for preference in PREFERENCES if preference.kind is not Kind.PCI])
def test_every_endpoint_has_a_location_of_its_own(preference: Preference) -> None:
    assert len({str(locate(preference, number)) for number in range(200)}) == 200


def test_a_pci_function_has_an_address_that_pci_could_have() -> None:
    for number in range(100):
        address = locate(PREFERENCES[3], number).address
        bus, function = address.split(".")
        assert int(bus.rpartition(":")[2], 16) < 32
        assert int(function) < 8


def test_a_fake_network_may_have_a_pool() -> None:
    options = FakeOptions(addresses=("10.0.0.1/24",), pool=("10.0.0.9",), dns=("9.9.9.9",))
    assert FakeDriver.check_options(options) == []
    assert FakeDriver.addressing(options) == Addressing("", ("10.0.0.1/24",), ("10.0.0.9",), ("9.9.9.9",))
    assert [problem.field for problem in FakeDriver.check_options(FakeOptions(pool=("10.0.0.9",)))] == ["pool"]
