"""The address book: against a list that is looked through from one end to the other, and its pools."""

import ipaddress
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.messages import endpoint_id
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.endpoints.addresses import AddressBook, Settled
from vifd.endpoints.networks import Networks
from vifd.endpoints.policy import Policy
from vifd.endpoints.segments import Prefix, parse_prefix
from vifd.errors import AddressInUse, InvalidRequest, NetworkFull, NotAllowed
from vifd.model import Endpoint, IpConfig, Owner, Port, State

SUBNETS = ("10.0.0.1/24", "fd00::1/64")
MAC = "52:54:00:12:34:56"


def networks(**options: BridgeOptions) -> Networks:
    made = Networks()
    made.configure({name: BridgeDriver(name, one) for name, one in options.items()}, Policy(()))
    return made


def pooled(*pool: str, addresses: tuple[str, ...] = SUBNETS, **options: Any) -> AddressBook:
    """Give a book with one network."""
    return AddressBook(networks(blue=BridgeOptions("br-blue", addresses=addresses, pool=pool, **options)))


def endpoint(number: int, *addresses: str, network: str = "blue", **port: Any) -> Endpoint:
    return Endpoint(
        endpoint_id(number), number, "hash", network, "bridge", State.READY, Port(addresses=addresses, **port), Owner(1000), 0
    )


def put(book: AddressBook, *endpoints: Endpoint) -> None:
    for one in endpoints:
        book.put(one)


def settle(book: AddressBook, number: int, *addresses: str, network: str = "blue", **port: Any) -> Settled:
    """Settle what is only looked at."""
    with book.draft() as draft:
        return draft.settle(endpoint_id(number), network, Port(addresses=addresses, **port))


def take(book: AddressBook, number: int, *addresses: str, network: str = "blue", **port: Any) -> tuple[str, ...]:
    """Settle and keep, as a request does; give the addresses."""
    settled = settle(book, number, *addresses, network=network, **port)
    book.put(endpoint(number, *settled.port.addresses, network=network, mac=settled.port.mac))
    return settled.port.addresses


def refused(book: AddressBook, number: int, *addresses: str, network: str = "blue", **port: Any) -> str:
    with pytest.raises(AddressInUse) as caught:
        settle(book, number, *addresses, network=network, **port)
    assert endpoint_id(1)[:-1] not in str(caught.value)  # never whose it is
    return str(caught.value)


# --- against a model

PREFIXES = st.builds(
    lambda number, length: str(ipaddress.ip_network((number, length), strict=False)),
    st.integers(10 << 24, (10 << 24) + 63),
    st.sampled_from([26, 28, 29, 31, 32, 32, 32]),
) | st.builds(
    lambda number, length: str(ipaddress.ip_network((number, length), strict=False)),
    st.integers(0xFD << 120, (0xFD << 120) + 31),
    st.sampled_from([124, 126, 128, 128]),
)


def canonical(prefix: str) -> str:
    return prefix.removesuffix("/32").removesuffix("/128")


def overlaps(one: str, others: Iterable[str]) -> bool:
    mine = ipaddress.ip_network(one)
    return any(mine.version == (other := ipaddress.ip_network(text)).version and mine.overlaps(other) for text in others)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 6), st.lists(PREFIXES, max_size=3), st.sampled_from(["ask", "put", "drop"]))))
def test_it_finds_the_overlaps_that_a_look_at_all_finds(steps: list[tuple[int, list[str], str]]) -> None:
    book, model = AddressBook(networks(blue=BridgeOptions("br-blue"))), dict[int, list[str]]()
    for number, prefixes, what in steps:
        addresses = [canonical(prefix) for prefix in prefixes]
        if what == "drop":
            book.drop(endpoint_id(number))
            model.pop(number, None)
        elif what == "put":  # what a journal says is taken as it is
            book.put(endpoint(number, *addresses))
            model[number] = prefixes
        else:
            others = [prefix for other, theirs in model.items() if other != number for prefix in theirs]
            if any(overlaps(prefix, others) for prefix in prefixes):
                refused(book, number, *addresses)
            else:
                settle(book, number, *addresses)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["get", "get", "ask", "drop", "reload"]), st.integers(0, 31))),
    st.booleans(),
)
def test_a_pool_never_gives_an_address_twice_and_gives_all(steps: list[tuple[int, str, int]], narrow: bool) -> None:
    pool = ("10.0.0.8-10.0.0.12", "10.0.0.20") if narrow else ("10.0.0.0/28",)
    members = {*range(8, 13), 20} if narrow else set(range(2, 16))
    book, model = pooled(*pool), dict[int, str]()
    for number, what, value in steps:
        taken = {address for other, address in model.items() if other != number}
        wanted = f"10.0.0.{value}"
        if what == "drop":
            book.drop(endpoint_id(number))
            model.pop(number, None)
        elif what == "reload":
            options = BridgeOptions("br-blue", addresses=SUBNETS, pool=pool, mtu=1000 + number)
            book._networks.configure({"blue": BridgeDriver("blue", options)}, Policy(()))
        elif what == "ask":
            if value in (0, 1) or wanted in taken:
                refused(book, number, wanted)
            else:
                (model[number],) = take(book, number, wanted)
        elif free := {f"10.0.0.{member}" for member in members} - taken:
            (given_address,) = take(book, number)
            assert given_address in free
            model[number] = given_address
        else:
            with pytest.raises(NetworkFull):
                settle(book, number)


# --- who has what


def test_an_address_of_another_is_refused_and_ones_own_is_not() -> None:
    book = pooled()
    take(book, 1, "10.0.0.7", "fd00::7")
    assert refused(book, 2, "10.0.0.7").startswith("10.0.0.7 is another endpoint's on network blue; ask for another")
    assert refused(book, 2, "10.0.0.8", "fd00::7").startswith("fd00::7 is another endpoint's")
    settle(book, 1, "10.0.0.7", "10.0.0.8")


@pytest.mark.parametrize(
    ("asked", "taken"), [("10.0.0.0/28", "10.0.0.7"), ("10.0.0.7", "10.0.0.0/28"), ("10.0.0.6/31", "10.0.0.0/28")]
)
def test_a_prefix_is_all_of_its_addresses(asked: str, taken: str) -> None:
    book = AddressBook(networks(blue=BridgeOptions("br-blue")))
    take(book, 1, taken)
    assert asked in refused(book, 2, asked)
    book.drop(endpoint_id(1))
    settle(book, 2, asked)


@pytest.mark.parametrize("address", ["10.0.0.0", "10.0.0.1", "10.0.0.255", "fd00::", "fd00::1"])
def test_what_is_the_networks_own_is_refused(address: str) -> None:
    assert refused(pooled(), 1, address).startswith(f"{address} is network blue's own; ask for another address")


def test_a_prefix_with_the_gateway_is_refused() -> None:
    assert "10.0.0.0/30 has 10.0.0.0, which is network blue's own" in refused(pooled(), 1, "10.0.0.0/30")


def test_a_mac_is_one_endpoints() -> None:
    book = pooled()
    take(book, 1, mac=MAC)
    assert refused(book, 2, mac=MAC).startswith(f"MAC {MAC} is another endpoint's on network blue")
    settle(book, 1, mac=MAC)
    book.drop(endpoint_id(1))
    settle(book, 2, mac=MAC)


def test_who_asks_for_no_mac_gets_one_that_is_derived_from_the_id() -> None:
    settled = settle(pooled(), 1)
    assert settled.port.mac == settle(pooled(), 1).port.mac != settle(pooled(), 2).port.mac


def test_networks_on_one_bridge_share_their_addresses_and_others_dont() -> None:
    same = BridgeOptions("br-blue", addresses=SUBNETS)
    book = AddressBook(networks(blue=same, green=same, red=BridgeOptions("br-red", addresses=SUBNETS)))
    take(book, 1, "10.0.0.7", mac=MAC)
    assert "on network green" in refused(book, 2, "10.0.0.7", network="green")
    assert "on network green" in refused(book, 2, network="green", mac=MAC)
    assert take(book, 2, "10.0.0.7", network="red", mac=MAC) == ("10.0.0.7",)


def test_public_addresses_are_one_endpoints_on_the_whole_host() -> None:
    book = AddressBook(networks(blue=BridgeOptions("br-blue"), red=BridgeOptions("br-red", addresses=SUBNETS)))
    book.put(endpoint(1, public_addresses=("192.0.2.7",)))
    assert refused(book, 2, network="red", public_addresses=("192.0.2.8", "192.0.2.7")).startswith(
        "public address 192.0.2.7 is another"
    )
    assert "is the host's own" in refused(book, 2, public_addresses=("10.0.0.1",))
    settle(book, 1, public_addresses=("192.0.2.7",))
    book.drop(endpoint_id(1))
    settle(book, 2, network="red", public_addresses=("192.0.2.7",))


def test_what_two_have_by_the_journal_is_free_when_both_are_gone() -> None:
    book = pooled("10.0.0.7")
    put(book, endpoint(1, "10.0.0.7"), endpoint(2, "10.0.0.7"))
    book.drop(endpoint_id(1))
    refused(book, 3, "10.0.0.7")
    with pytest.raises(NetworkFull):
        settle(book, 3)
    book.drop(endpoint_id(2))
    assert take(book, 3) == ("10.0.0.7",)


# --- drafts


def test_a_draft_holds_for_its_block_and_no_longer() -> None:
    book = pooled("10.0.0.7-10.0.0.8")
    with book.draft() as draft:
        assert draft.settle(endpoint_id(1), "blue", Port()).port.addresses == ("10.0.0.7",)
        assert draft.settle(endpoint_id(2), "blue", Port()).port.addresses == ("10.0.0.8",)
        with pytest.raises(NetworkFull):
            draft.settle(endpoint_id(3), "blue", Port())
        with pytest.raises(AddressInUse):
            draft.settle(endpoint_id(3), "blue", Port(addresses=("10.0.0.8",)))
    assert settle(book, 3).port.addresses == ("10.0.0.7",)


def test_a_draft_that_fails_holds_nothing() -> None:
    book = pooled("10.0.0.7")

    def two_at_once() -> None:
        with book.draft() as draft:
            draft.settle(endpoint_id(1), "blue", Port())
            draft.settle(endpoint_id(2), "blue", Port(addresses=("10.0.0.7",)))

    with pytest.raises(AddressInUse):
        two_at_once()
    assert take(book, 3) == ("10.0.0.7",)


def test_who_changes_has_the_old_and_the_new_until_the_registry_says() -> None:
    book = pooled()
    put(book, endpoint(1, "10.0.0.7", mac=MAC))
    with book.draft() as draft:
        draft.settle(endpoint_id(1), "blue", Port(mac=MAC, addresses=("10.0.0.8",)))
        refused(book, 2, "10.0.0.7")
        refused(book, 2, "10.0.0.8")
        settle(book, 1, "10.0.0.9")  # a look meanwhile takes nothing away
        refused(book, 2, "10.0.0.8")
        book.put(endpoint(1, "10.0.0.8", mac=MAC))
    settle(book, 2, "10.0.0.7")
    refused(book, 2, "10.0.0.8")


def test_a_change_that_fails_leaves_the_old() -> None:
    book = pooled()
    put(book, endpoint(1, "10.0.0.7"))
    with book.draft() as draft:
        draft.settle(endpoint_id(1), "blue", Port(addresses=("10.0.0.8",)))
    refused(book, 2, "10.0.0.7")
    settle(book, 2, "10.0.0.8")


def test_who_has_an_address_of_the_pool_and_asks_for_none_keeps_it() -> None:
    book = pooled("10.0.0.0/24", "fd00::/64")
    put(book, endpoint(1, "10.0.0.7"))
    assert settle(book, 1).port.addresses == ("10.0.0.7", "fd00::2")


def test_what_one_has_stays_its_own_when_the_network_has_other_addresses() -> None:
    book = pooled("10.0.0.0/24")
    put(book, endpoint(1, "10.0.0.7", "10.0.0.2", mac=MAC), endpoint(2, "10.0.0.7", mac=MAC))
    reload(book, blue=BridgeOptions("br-blue", addresses=("10.0.0.2/30",), pool=("10.0.0.0/30",)))
    settle(book, 1, "10.0.0.7", "10.0.0.2", mac=MAC)
    with pytest.raises(InvalidRequest):
        settle(book, 1, "10.0.0.8")


# --- pools


def test_one_address_of_each_family_is_handed_out() -> None:
    book = pooled("fd00::a-fd00::f", "10.0.0.10-10.0.0.11")
    assert [take(book, number) for number in (1, 2)] == [("10.0.0.10", "fd00::a"), ("10.0.0.11", "fd00::b")]


def test_a_pool_skips_what_is_the_networks_own() -> None:
    book = pooled("10.0.0.0/30", "10.0.0.254/31", "fd00::/64")
    assert [take(book, number) for number in (1, 2, 3)] == [
        ("10.0.0.2", "fd00::2"),
        ("10.0.0.3", "fd00::3"),
        ("10.0.0.254", "fd00::4"),
    ]


def test_a_pool_that_is_used_up_is_told_by_its_name() -> None:
    book = pooled("10.0.0.0/30", "fd00::/64")
    take(book, 1)
    take(book, 2)
    with pytest.raises(NetworkFull, match=r"network blue has no free address left in its pool \(10\.0\.0\.0/30\)"):
        settle(book, 3)
    assert take(book, 3, "fd00::9") == ("fd00::9",)


def test_what_was_given_back_last_is_handed_out_last() -> None:
    book = pooled("10.0.0.10-10.0.0.13")
    for number in (1, 2):
        take(book, number)
    book.drop(endpoint_id(2))
    given_addresses = []
    for number in range(3, 6):
        given_addresses += take(book, number)
    assert given_addresses == ["10.0.0.12", "10.0.0.13", "10.0.0.11"]


def test_a_look_moves_nothing() -> None:
    book = pooled("10.0.0.10-10.0.0.13")
    assert [settle(book, number).port.addresses for number in (1, 2, 1)] == [("10.0.0.10",)] * 3


def test_a_start_goes_on_after_the_newest() -> None:
    book = pooled("10.0.0.10-10.0.0.99")
    put(book, endpoint(1, "10.0.0.20"), endpoint(2, "10.0.0.30"))
    assert take(book, 3) == ("10.0.0.31",)


def test_a_prefix_in_the_middle_of_a_pool_is_left_out_and_comes_back() -> None:
    book = pooled("fd00::/64")
    put(book, endpoint(1, "fd00::/65"))
    assert take(book, 2) == ("fd00::8000:0:0:0",)
    book.drop(endpoint_id(1))
    put(book, endpoint(3, "fd00::ffff:ffff:ffff:ffff"))
    assert take(book, 4) == ("fd00::2",)


def test_addresses_in_and_out_of_the_pool_can_be_asked_for() -> None:
    book = pooled("10.0.0.10-10.0.0.11")
    assert take(book, 1, "10.0.0.10") == ("10.0.0.10",)
    assert take(book, 2, "10.0.0.200", "fd00::7", "fe80::7") == ("10.0.0.200", "fd00::7", "fe80::7")
    assert take(book, 3) == ("10.0.0.11",)


@pytest.mark.parametrize("address", ["10.0.1.7", "10.0.0.0/16", "fd01::7", "0.0.0.0/0", "fec0::1"])
def test_what_is_in_no_subnet_of_a_network_with_a_pool_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle(pooled("10.0.0.0/24"), 1, "10.0.0.7", address)
    ((field, message),) = caught.value.violations
    assert (field, "(10.0.0.0/24, fd00::/64)" in message) == ("port.addresses[1]", True)


def test_a_network_that_hands_out_nothing_takes_any_address() -> None:
    settled = settle(pooled(), 1, "192.0.2.7")
    assert (settled.port.addresses, settled.ip_config) == (("192.0.2.7",), None)


# --- what the guest should have


def test_a_guest_is_told_its_prefix_length_and_gateways() -> None:
    settled = settle(pooled("10.0.0.7", "fd00::7", dns=("9.9.9.9",)), 1)
    assert settled.ip_config == IpConfig(("10.0.0.7/24", "fd00::7/64"), ("10.0.0.1", "fd00::1"), ("9.9.9.9",))


def test_a_guest_is_told_of_the_families_that_it_has() -> None:
    settled = settle(pooled("10.0.0.7", "fd00::7"), 1, "fe80::7", "fd00::8")
    assert settled.ip_config == IpConfig(("fe80::7/64", "fd00::8/64"), ("fd00::1",))


def test_each_subnet_has_its_gateway() -> None:
    book = pooled("10.0.1.7", addresses=("10.0.0.1/24", "10.0.1.1/25"))
    assert settle(book, 1).ip_config == IpConfig(("10.0.1.7/25",), ("10.0.1.1",))


def test_a_prefix_is_no_address_to_configure() -> None:
    settled = settle(pooled("10.0.0.7"), 1, "10.0.0.8", "10.0.0.16/28")
    assert settled.ip_config == IpConfig(("10.0.0.8/24",), ("10.0.0.1",))


def test_public_addresses_are_not_the_guests() -> None:
    settled = settle(pooled("10.0.0.7"), 1, public_addresses=("192.0.2.7",))
    assert settled.ip_config == IpConfig(("10.0.0.7/24",), ("10.0.0.1",))


# --- a reload


def reload(book: AddressBook, **options: BridgeOptions) -> None:
    book._networks.configure({name: BridgeDriver(name, one) for name, one in options.items()}, Policy(()))


def test_a_new_pool_counts_what_is_taken() -> None:
    book = pooled()
    put(book, endpoint(1, "10.0.0.10"), endpoint(2, "10.0.0.12/31"))
    reload(book, blue=BridgeOptions("br-blue", addresses=SUBNETS, pool=("10.0.0.10-10.0.0.14",)))
    assert [take(book, number) for number in (3, 4)] == [("10.0.0.11",), ("10.0.0.14",)]


def test_other_addresses_of_the_network_take_the_place_of_the_old() -> None:
    book = pooled()
    refused(book, 1, "10.0.0.1")
    reload(book, blue=BridgeOptions("br-blue", addresses=("10.0.0.2/24",)))
    settle(book, 1, "10.0.0.1")
    refused(book, 1, "10.0.0.2")


def test_endpoints_of_a_network_that_is_gone_keep_what_they_have() -> None:
    same = BridgeOptions("br-blue", addresses=SUBNETS)
    book = AddressBook(networks(blue=same, green=same))
    put(book, endpoint(1, "10.0.0.7"))
    reload(book, green=same)
    refused(book, 2, "10.0.0.7", network="green")
    book.drop(endpoint_id(1))
    settle(book, 2, "10.0.0.7", network="green")


def test_endpoints_of_a_network_that_moves_to_another_bridge_move_with_it() -> None:
    book = AddressBook(networks(blue=BridgeOptions("br-blue"), red=BridgeOptions("br-red")))
    put(book, endpoint(1, "10.0.0.7", mac=MAC), endpoint(2, "10.0.0.8", network="red"))
    reload(book, blue=BridgeOptions("br-red"), red=BridgeOptions("br-red"), green=BridgeOptions("br-blue"))
    refused(book, 3, "10.0.0.7", network="red")
    refused(book, 3, network="red", mac=MAC)
    settle(book, 3, "10.0.0.7", network="green", mac=MAC)
    book.drop(endpoint_id(1))
    settle(book, 3, "10.0.0.7", network="red")


def test_an_endpoint_of_a_network_that_was_gone_before_is_kept_in_mind() -> None:
    book = AddressBook(Networks())
    put(book, endpoint(1, "10.0.0.7"))
    reload(book, blue=BridgeOptions("br-blue"))
    refused(book, 2, "10.0.0.7")


# --- the words


@given(PREFIXES)
def test_a_prefix_is_read_as_it_is_written(text: str) -> None:
    network = ipaddress.ip_network(text)
    prefix = parse_prefix(canonical(text))
    assert prefix == Prefix(network.version, int(network[0]), network.prefixlen)
    assert (str(prefix), prefix.last, prefix.is_single) == (canonical(text), int(network[-1]), network.num_addresses == 1)


@pytest.mark.parametrize(
    ("text", "expected"), [("fe80::1", True), ("febf::1", True), ("fec0::1", False), ("169.254.0.1", False), ("fe80::/9", False)]
)
def test_link_local_is_what_ipv6_says(text: str, expected: bool) -> None:
    assert parse_prefix(text).is_link_local is expected


def test_public_addresses_are_of_the_networks_pool_and_lead_to_an_address() -> None:
    book = pooled("10.0.0.7-10.0.0.9", public_pool=("192.0.2.50-192.0.2.59", "2001:db8::50"))
    assert settle(book, 1, public_addresses=("192.0.2.50",)).port.public_addresses == ("192.0.2.50",)
    with pytest.raises(NotAllowed, match=r"192\.0\.2\.60 is not in the public_pool of network blue"):
        settle(book, 2, public_addresses=("192.0.2.60",))
    with pytest.raises(InvalidRequest, match="no IPv6 address of its own"):
        settle(book, 2, public_addresses=("2001:db8::50",))
    book.put(endpoint(3, "10.0.0.9", public_addresses=("192.0.2.99",)))
    settle(book, 3, "10.0.0.9", public_addresses=("192.0.2.99",))  # it had that before the pool was another
