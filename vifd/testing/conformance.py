"""The conformance suite of network drivers: what every one of them promises, without a kernel and without root."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from vifd import config
from vifd.drivers import catalog
from vifd.drivers.base import NetworkDriver, Planned
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.negotiation import settle_port
from vifd.errors import ConfigError
from vifd.kernel.authority import check_plan
from vifd.kernel.ops import STAGES, ClaimFunction, ConfigurePort, CreateVdpa, FunctionMade, Made
from vifd.model import (
    BridgePreference,
    Endpoint,
    EndpointSpec,
    Feature,
    Kind,
    Limits,
    MacvtapPreference,
    OvsPortPreference,
    Owner,
    PciPreference,
    Port,
    Preference,
    RateLimit,
    State,
    TapPreference,
    VdpaPreference,
    VhostUserPreference,
    Vlan,
)
from vifd.server import words

NETWORK = "conformance"
_ID, _OTHER_ID = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-8999-aaaaaaaaaaaa"
_OWNER = Owner(1000)
_FUNCTION = "0000:03:10.2"
_MADE = Made(
    ifindex=7,
    mtu_bytes=1500,
    bridge_name="br-made",
    device_path="/dev/vifd/made",
    function=FunctionMade("eth7", 0, 9, vfio_path="/dev/vfio/9", address=_FUNCTION),
)
_WORDS = 3

_PREFERENCES: Mapping[Kind, Preference] = {
    one.kind: one
    for one in (
        BridgePreference(),
        TapPreference(),
        MacvtapPreference(),
        PciPreference(),
        OvsPortPreference(),
        VhostUserPreference(),
        VdpaPreference(),
    )
}
#: By feature, a port that asks for it.
_PORTS: Mapping[Feature, Port] = {
    Feature.GUARD: Port(guard_enabled=True),
    Feature.LIMITS: Port(limits=Limits(RateLimit(rate_bps=10**8), RateLimit(rate_pps=1000))),
    Feature.VLAN: Port(vlan=Vlan(vid=7)),
    Feature.ISOLATION: Port(isolated=True),
    Feature.LINK_STATE: Port(link_up=False),
    Feature.MTU: Port(mtu_bytes=1280),
    Feature.ADDRESSES: Port(addresses=("198.51.100.7",)),
    Feature.TX_QUEUE_LENGTH: Port(tx_queue_length=77),
    Feature.VLAN_QOS: Port(vlan=Vlan(vid=7, qos=3)),
    Feature.MIN_RATE: Port(limits=Limits(RateLimit(min_rate_bps=10**7))),
    Feature.TRUST: Port(trusted=True),
}
_OUTSIDE = {
    "open",
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.sendmsg",
    "subprocess.Popen",
    "os.system",
    "fcntl.ioctl",
}


class NetworkDriverConformance:
    r"""Tests of a network driver. Its author derives from it; pytest does the rest:

        class TestGreenDriver(NetworkDriverConformance):
            driver = GreenDriver
            networks = ('bridge = "br-green"', 'bridge = "br-green"\nmtu = 9000')
            bad_networks = {"bridge": 'bridge = "not/a name"'}

    Attributes:
        driver: The class.
        networks: Keys of networks that are right, TOML each.
        bad_networks: By key, a network's keys in which that one is wrong, TOML.
    """

    driver: ClassVar[type[NetworkDriver[Any]]]
    networks: ClassVar[Sequence[str]]
    bad_networks: ClassVar[Mapping[str, str]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Let each test run with each network."""
        if "keys" in metafunc.fixturenames:
            metafunc.parametrize("keys", self.networks)
        if "bad_key" in metafunc.fixturenames:
            metafunc.parametrize("bad_key", self.bad_networks)

    # --- the configuration

    def test_it_has_a_name_and_frozen_options(self) -> None:
        """`name` is what a configuration calls it; `options` can't change under it."""
        assert self.driver.name
        assert issubclass(self.driver.options, msgspec.Struct)
        assert self.driver.options.__struct_config__.frozen, "options: class Options(Struct, frozen=True)"

    def test_a_key_that_it_does_not_know_is_named(self, keys: str) -> None:
        """An unknown key is an error that names it, never ignored."""
        assert f"networks.{NETWORK}.no-such-key" in self._problems(f"{keys}\nno-such-key = 1")

    def test_a_wrong_key_is_named(self, bad_key: str) -> None:
        """Each wrong key is named, with a sentence that says what is wrong."""
        problems = self._problems(self.bad_networks[bad_key])
        assert f"networks.{NETWORK}.{bad_key}" in problems
        assert problems[f"networks.{NETWORK}.{bad_key}"]

    # --- offers

    def test_each_kind_is_offered_once_or_with_the_reason_why_not(self, keys: str) -> None:
        """`offers` names each kind that the driver knows, once; one that can't be made says why in a sentence."""
        offers = self._make(keys).offers(None)
        assert offers, "a driver that knows no kind is of no use"
        assert len({offer.kind for offer in offers}) == len(offers)
        for offer in offers:
            assert offer.features <= set(Feature)
            assert not offer.unavailable or len(offer.unavailable.split()) >= _WORDS

    def test_what_is_asked_for_changes_no_kind_but_only_whether_it_can_be_made(self, keys: str) -> None:
        """`offers(spec)` has the kinds of `offers(None)`: what a request asks for decides whether, not which."""
        driver = self._make(keys)
        kinds = [offer.kind for offer in driver.offers(None)]
        for kind in kinds:
            for port in _PORTS.values():
                assert [offer.kind for offer in driver.offers(_spec(driver, _PREFERENCES[kind], port))] == kinds

    def test_offers_are_the_same_each_time(self, keys: str) -> None:
        """`offers` changes nothing: asked again, it says the same."""
        driver = self._make(keys)
        assert list(driver.offers(None)) == list(driver.offers(None))

    # --- plans

    def test_plans_are_pure(self, keys: str) -> None:
        """`plan` gives the same each time and from each instance, whatever was planned before, and touches nothing outside."""
        driver, other = self._make(keys), self._make(keys)
        for preference, port, planned in self._plans(driver):
            spec = _spec(driver, preference, port)
            other.plan(_OTHER_ID, spec, preference)
            with _nothing_outside():
                again = other.plan(_ID, spec, preference)
            assert again == planned

    def test_plans_pass_the_privileged_helpers_check(self, keys: str) -> None:
        """The helper believes no plan: names of vifd's form, this endpoint's devices, and what `grant` names, nothing else."""
        driver = self._make(keys)
        grant = self.driver.grant(driver.config)
        authority = {} if grant is None else {NETWORK: grant}
        for _, _, planned in self._plans(driver):
            assert grant is not None or planned.plan == (), "a plan that touches the kernel needs a grant"
            check_plan(planned.plan, authority)

    def test_plans_are_in_the_order_in_which_they_can_be_undone(self, keys: str) -> None:
        """The operations stand in the order of `ops.STAGES`, each at most once: they are undone in reverse."""
        for _, _, planned in self._plans(self._make(keys)):
            stages = [STAGES.index(type(operation)) for operation in planned.plan]
            assert stages == sorted(set(stages))

    def test_two_endpoints_have_nothing_in_common(self, keys: str) -> None:
        """What is made for one endpoint is its own: the MAC, and where it is."""
        driver = self._make(keys)
        for preference, port, planned in self._plans(driver):
            other = driver.plan(_OTHER_ID, _spec(driver, preference, port), preference)
            assert other.port.mac != planned.port.mac
            if preference.kind is not Kind.PCI:  # which function it is, the host decides
                assert driver.locate(_OTHER_ID, preference, _MADE) != driver.locate(_ID, preference, _MADE)

    def test_an_option_that_it_offers_is_honoured(self, keys: str) -> None:
        """A feature in an offer is a promise: the plan's port has the option as asked for, and the kernel gets that port."""
        for _, asked, planned in self._plans(self._make(keys)):
            for field in asked.__struct_fields__:
                value = getattr(asked, field)
                assert value in (getattr(Port(), field), getattr(planned.port, field)), f"port.{field} was dropped"
            # The last is what the VM has; what it stands on has a part of that.
            ports = [one.port for one in planned.plan if isinstance(one, ConfigurePort | ClaimFunction | CreateVdpa)]
            assert ports[-1:] in ([], [planned.port]), "the kernel gets another port than the caller is told of"

    def test_queues_that_it_offers_are_there(self, keys: str) -> None:
        """With MULTI_QUEUE in the offer, as many queues are made as were asked for."""
        driver = self._make(keys)
        for offer in driver.offers(None):
            preference = _PREFERENCES[offer.kind]
            if Feature.MULTI_QUEUE in offer.features and hasattr(preference, "queues"):
                two = msgspec.structs.replace(preference, queues=2)
                planned = driver.plan(_ID, _spec(driver, two, settle_port(Port(), offer)), two)
                assert getattr(driver.locate(_ID, two, _MADE), "queues", 2) == 2
                made = [operation.queues for operation in planned.plan if hasattr(operation, "queues")]
                assert made in ([], [2]), "the device is made with another number of queues"

    def test_a_mac_is_the_callers_or_a_local_one(self, keys: str) -> None:
        """A caller's MAC stays; without one the plan has a unicast one, locally administered."""
        driver = self._make(keys)
        for offer in driver.offers(None):
            preference, mac = _PREFERENCES[offer.kind], "52:54:00:12:34:56"
            assert driver.plan(_ID, _spec(driver, preference, settle_port(Port(mac=mac), offer)), preference).port.mac == mac
            derived = driver.plan(_ID, _spec(driver, preference, settle_port(Port(), offer)), preference).port.mac
            assert int(derived[:2], 16) & 0b11 == 0b10

    # --- locations, and the network system

    def test_a_location_is_pure_and_of_the_kind_that_was_chosen(self, keys: str) -> None:
        """`locate` gives the same each time, and the kind that was chosen."""
        driver = self._make(keys)
        for preference, _, _ in self._plans(driver):
            with _nothing_outside():
                location = driver.locate(_ID, preference, _MADE)
            assert location.kind is preference.kind
            assert driver.locate(_ID, preference, _MADE) == location

    def test_an_endpoint_survives_the_journal_and_can_be_told(self, keys: str) -> None:
        """What a driver plans and locates is written down, read again after a restart, and shown to callers."""
        driver, journal = self._make(keys), Journal(":memory:")
        with contextlib.closing(journal):
            for preference, _, planned in self._plans(driver):
                entry = Entry(self._endpoint(driver, preference, planned), planned.plan)
                journal.write([entry])
                (read,) = journal.load()
                assert read == entry
                assert words.endpoint(entry.endpoint, "").WhichOneof("location") == preference.kind.value
                journal.write([], forget=[_ID])

    def test_the_network_system_may_be_told_twice(self, keys: str) -> None:
        """`bind`, `activate` and `unbind` are idempotent, and there may be nothing to unbind."""
        driver = self._make(keys)
        preference, _, planned = next(self._plans(driver))
        endpoint = self._endpoint(driver, preference, planned)

        async def talk() -> None:
            await driver.unbind(endpoint)
            for tell in (driver.bind, driver.activate, driver.unbind):
                await tell(endpoint)
                await tell(endpoint)

        asyncio.run(talk())

    # --- what the tests are made of

    def _parse(self, keys: str) -> config.Config:
        name, drivers = self.driver.name, {self.driver.name: self.driver}
        text = f'[networks.{NETWORK}]\ndriver = "{name}"\n{keys}\n'
        parsed = config.parse(
            text, {name: self.driver.options}, lambda one, options: catalog.check_options(drivers, one, options)
        )
        catalog.check_together(drivers, parsed)
        return parsed

    def _problems(self, keys: str) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            self._parse(keys)
        return dict(caught.value.problems)

    def _make(self, keys: str) -> NetworkDriver[Any]:
        return catalog.create({self.driver.name: self.driver}, self._parse(keys).networks[NETWORK])

    def _plans(self, driver: NetworkDriver[Any]) -> Iterator[tuple[Preference, Port, Planned]]:
        """Plan every kind that can be made, plainly and with each option that it offers."""
        for offer in driver.offers(None):
            preference = _PREFERENCES[offer.kind]
            for port in (Port(), *(port for feature, port in _PORTS.items() if feature in offer.features)):
                asked = settle_port(port, offer)
                spec = _spec(driver, preference, asked)
                if not any(one.unavailable for one in driver.offers(spec) if one.kind is offer.kind):
                    yield preference, asked, driver.plan(_ID, spec, preference)

    def _endpoint(self, driver: NetworkDriver[Any], preference: Preference, planned: Planned) -> Endpoint:
        return Endpoint(
            endpoint_id=_ID,
            generation=1,
            spec_hash="",
            network=NETWORK,
            network_driver=self.driver.name,
            state=State.READY,
            port=planned.port,
            owner=_OWNER,
            create_time_ns=1,
            location=driver.locate(_ID, preference, _MADE),
        )


def _spec(driver: NetworkDriver[Any], preference: Preference, port: Port) -> EndpointSpec:
    spec = EndpointSpec(NETWORK, (preference,), _OWNER, port=port)
    if preference.kind is Kind.VDPA:  # the helper knows the driver's management devices, so a made-up place is none
        return msgspec.structs.replace(spec, function=driver.pick(spec, {}))
    return msgspec.structs.replace(spec, function=_FUNCTION)


class _Ear:
    """Hears what this thread does outside of Python's memory (sys.addaudithook). A hook can't be taken out: so there is one."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.thread, self._is_hooked = 0, False

    def begin(self) -> None:
        if not self._is_hooked:
            sys.addaudithook(self._hear)
        self._is_hooked, self.thread = True, threading.get_ident()
        self.heard.clear()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OUTSIDE and threading.get_ident() == self.thread:
            self.heard.append(f"{event} {arguments[:1]}")


_EAR = _Ear()


@contextlib.contextmanager
def _nothing_outside() -> Iterator[None]:
    """Expect that the block opens no file, no socket and no process."""
    _EAR.begin()
    try:
        yield
    finally:
        _EAR.thread = 0
    assert _EAR.heard == [], "it isn't pure"
