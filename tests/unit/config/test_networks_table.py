import pytest

from tests.support.configs import parse, problems
from vifd.drivers.bridge import BridgeOptions


def bridge(line: str) -> str:
    return f'[networks.blue]\ndriver = "bridge"\n{line}'


def test_each_key_of_a_bridge_network_is_read() -> None:
    text = bridge('bridge = "br-blue"\nuplink = "eth1"\nmtu = 9000\naddresses = ["10.0.0.1/24", "fd00::1/64"]')
    assert parse(text).networks["blue"].options == BridgeOptions("br-blue", "eth1", 9000, ("10.0.0.1/24", "fd00::1/64"))


def test_a_network_without_a_driver_has_the_default_driver() -> None:
    assert parse('default_driver = "fake"\n[networks.blue]').networks["blue"].driver == "fake"


def test_a_network_with_a_driver_ignores_the_default_driver() -> None:
    assert parse('default_driver = "bridge"\n[networks.blue]\ndriver = "fake"').networks["blue"].driver == "fake"


def test_a_network_without_any_driver_is_an_error_that_lists_those_that_there_are() -> None:
    message = problems("[networks.blue]")["networks.blue.driver"]
    assert message == "is missing, and there is no default_driver; there are bridge, direct, fake, sriov, vdpa"


@pytest.mark.parametrize("value", ['"brigde"', "[]", '["bridge"]', "{}", "1", "true"])
def test_an_unknown_driver_is_an_error(value: str) -> None:
    assert list(problems(f"[networks.blue]\ndriver = {value}")) == ["networks.blue.driver"]


def test_an_unknown_driver_comes_with_the_one_that_was_meant() -> None:
    assert "did you mean 'bridge'?" in problems('[networks.blue]\ndriver = "brigde"')["networks.blue.driver"]


@pytest.mark.parametrize("value", ['"brigde"', "[]", "{}", "1"])
def test_an_unknown_default_driver_is_an_error(value: str) -> None:
    assert list(problems(f"default_driver = {value}")) == ["default_driver"]


@pytest.mark.parametrize("value", ["1", '"blue"', "[]", '["blue"]'])
def test_networks_that_are_no_table_are_an_error(value: str) -> None:
    assert list(problems(f"networks = {value}")) == ["networks"]


def test_a_network_that_is_no_table_is_an_error() -> None:
    assert problems("[networks]\nblue = 1") == {"networks.blue": "has to be a table"}


def test_a_bridge_network_needs_its_bridge() -> None:
    assert problems(bridge("")) == {"networks.blue.bridge": "is missing"}


def test_an_unknown_key_of_a_network_comes_with_the_one_that_was_meant() -> None:
    text = bridge('bridge = "b"\nuplnk = "eth0"')
    assert problems(text) == {"networks.blue.uplnk": "unknown key; did you mean 'uplink'?"}


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "blue-1.x_y"])
def test_a_good_name_of_a_network_is_taken(name: str) -> None:
    assert list(parse(f'[networks."{name}"]\ndriver = "fake"').networks) == [name]


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "Blue", "../etc", "a/b", "a\\u0000", "a\\n", "%d ", " a", "-a", ".a", "_a", "é", "a b", "*"]
)
def test_a_bad_name_of_a_network_is_an_error(name: str) -> None:
    (message,) = problems(f'[networks."{name}"]\ndriver = "fake"').values()
    assert message.startswith("a network's name is 1 to 63 characters")


@pytest.mark.parametrize(
    "name", ["", "../x", "a\\u0000b", "%d", "br%d", "a" * 16, "br blue", "br\\n", "-br", ".br", "a/b", "a:b", "é"]
)
@pytest.mark.parametrize("key", ["bridge", "uplink"])
def test_what_can_name_no_interface_is_an_error(key: str, name: str) -> None:
    if (key, name) == ("uplink", ""):
        assert parse(bridge('bridge = "b"\nuplink = ""')).networks["blue"].options.uplink == ""
        return
    other = "" if key == "bridge" else 'bridge = "b"\n'
    assert list(problems(bridge(f'{other}{key} = "{name}"'))) == [f"networks.blue.{key}"]


def test_an_uplink_that_is_the_bridge_itself_is_an_error() -> None:
    assert problems(bridge('bridge = "b"\nuplink = "b"')) == {"networks.blue.uplink": "is the bridge itself"}


@pytest.mark.parametrize("mtu", ["67", "65536", "-1", "1500.0", '"1500"', "true", "99999999999999999999999"])
@pytest.mark.parametrize("driver", ['driver = "bridge"\nbridge = "b"', 'driver = "fake"'])
def test_an_mtu_out_of_range_or_of_another_type_is_an_error(driver: str, mtu: str) -> None:
    assert list(problems(f"[networks.blue]\n{driver}\nmtu = {mtu}")) == ["networks.blue.mtu"]


@pytest.mark.parametrize("mtu", [68, 65535])
def test_the_ends_of_the_range_of_an_mtu_are_taken(mtu: int) -> None:
    assert parse(bridge(f'bridge = "b"\nmtu = {mtu}')).networks["blue"].options.mtu == mtu


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "10.0.0.1/33", "fd00::1/129", "blue/24", "", "10.0.0.1/24/24", "10.0.0.1/\\u0000"]
)
def test_what_is_no_address_with_a_prefix_length_is_an_error(address: str) -> None:
    text = bridge(f'bridge = "b"\naddresses = ["10.0.0.1/24", "{address}"]')
    assert list(problems(text)) == ["networks.blue.addresses"]


def test_addresses_that_are_no_array_are_an_error() -> None:
    assert list(problems(bridge('bridge = "b"\naddresses = "10.0.0.1/24"'))) == ["networks.blue.addresses"]


@pytest.mark.parametrize("key", ["kinds", "unavailable"])
def test_an_unknown_kind_of_a_fake_network_is_an_error(key: str) -> None:
    text = f'[networks.blue]\ndriver = "fake"\n{key} = ["tap", "tape"]'
    assert list(problems(text)) == [f"networks.blue.{key}"]
