import pytest

from vifd.drivers.addressing import Addressing, Range, check, interfaces_of, own_addresses, parse_range

V4, V6 = 10 << 24, 0xFD << 120


def messages(*pool: str, interfaces: tuple[str, ...] = ("10.0.0.1/24", "fd00::1/64")) -> str:
    problems = check(Addressing("", interfaces, pool))
    assert {problem.field for problem in problems} <= {"pool"}
    return "; ".join(problem.message for problem in problems)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.10-10.0.0.99", Range(4, V4 + 10, V4 + 99)),
        ("10.0.0.10 - 10.0.0.10", Range(4, V4 + 10, V4 + 10)),
        ("10.0.0.0/24", Range(4, V4, V4 + 255)),
        ("10.0.0.7", Range(4, V4 + 7, V4 + 7)),
        ("fd00::/64", Range(6, V6, V6 + (1 << 64) - 1)),
        ("fd00::a-fd00::f", Range(6, V6 + 10, V6 + 15)),
    ],
)
def test_a_pool_has_ranges_prefixes_and_addresses(text: str, expected: Range) -> None:
    assert parse_range(text) == expected
    assert messages(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "a-b", "10.0.0.256", "10.0.0.1-", "10.0.0.1-20", "10.0.0.1-10.0.0.2-10.0.0.3", "10.0.0.7\0"),
        *("10.0.0.5/24", "10.0.0.0/33", "10.0.0.0/24-10.0.0.9"),
        *("10.0.0.9-fd00::9", "10.0.0.9-10.0.0.8", "fd00::1%eth0"),
    ],
)
def test_what_is_no_part_of_a_pool_is_told(text: str) -> None:
    assert "a pool has ranges" in messages(text)


@pytest.mark.parametrize("text", ["10.0.1.0/24", "10.0.0.200-10.0.1.9", "9.255.255.255-10.0.0.9", "fd00:1::/64", "10.0.0.0/23"])
def test_a_gateway_outside_the_pools_prefix_is_told(text: str) -> None:
    assert f"{text} is in no subnet of addresses (10.0.0.1/24, fd00::1/64)" in messages(text)


def test_a_pool_without_any_subnet_is_told() -> None:
    assert "there are none" in messages("10.0.0.9", interfaces=())


def test_every_problem_is_told_at_once() -> None:
    fields = [problem.field for problem in check(Addressing("", ("10.0.0.1",), ("x", "10.0.0.9"), ("ns.example", "fe80::1%1")))]
    assert fields == ["addresses", "dns", "dns", "pool", "pool"]


@pytest.mark.parametrize("second", ["10.0.0.20", "10.0.0.9-10.0.0.10", "10.0.0.0/24", "10.0.0.10-10.0.0.20"])
def test_ranges_that_overlap_are_told(second: str) -> None:
    assert f"{second} overlaps what is listed before it" in messages("10.0.0.10-10.0.0.20", second)


@pytest.mark.parametrize(("pool", "family"), [("10.0.0.0-10.0.0.1", 4), ("10.0.0.255", 4), ("fd00::-fd00::1", 6)])
def test_a_pool_without_addresses_is_told(pool: str, family: int) -> None:
    other = "fd00::2" if family == 4 else "10.0.0.2"
    assert f"has no IPv{family} address to hand out" in messages(pool, other)


def test_what_no_endpoint_can_have_are_the_hosts_the_network_and_the_broadcast_address() -> None:
    interfaces = interfaces_of(Addressing("", ("10.0.0.1/24", "10.1.0.0/31", "10.2.0.1/32", "fd00::1/64", "fd01::1/127")))
    own = own_addresses(interfaces)
    assert own == {(4, V4 + n) for n in (0, 1, 255, 1 << 16, (2 << 16) + 1)} | {
        (6, V6),
        (6, V6 + 1),
        (6, V6 + (1 << 112) + 1),
    }
