import pytest

from tests.support.configs import parse, problems
from vifd.config import DEFAULT_TEXT, FAKE_TEXT, DaemonConfig


def daemon(line: str) -> DaemonConfig:
    return parse(f"[daemon]\n{line}").daemon


def test_an_empty_configuration_has_every_default() -> None:
    assert parse("").daemon == DaemonConfig(
        socket="/run/vifd/vifd.sock",
        socket_group="vifd",
        socket_mode="0660",
        fd_socket="/run/vifd/fd.sock",
        state_dir="/var/lib/vifd",
        user="vifd",
        netns="",
        log_level="info",
        log_format="text",
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("socket", "/run/other.sock"),
        ("socket_group", "kvm"),
        ("socket_mode", "0600"),
        ("socket_mode", "666"),
        ("fd_socket", "/run/other-fd.sock"),
        ("state_dir", "/srv/vifd"),
        ("user", "nobody"),
        ("netns", "blue"),
        ("netns", "/proc/1/ns/net"),
        ("log_level", "debug"),
        ("log_level", "info"),
        ("log_level", "warning"),
        ("log_level", "error"),
        ("log_format", "json"),
        ("log_format", "text"),
    ],
)
def test_each_key_is_read(key: str, value: str) -> None:
    assert getattr(daemon(f'{key} = "{value}"'), key) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("socket", '"run/vifd.sock"'),
        ("socket", '""'),
        ("socket", '"/run/\\u0000"'),
        ("socket", '"/' + "x" * 100 + '"'),
        ("socket", "7"),
        ("fd_socket", '"fd.sock"'),
        ("socket_mode", '"rw-rw----"'),
        ("socket_mode", '"0800"'),
        ("socket_mode", '"10660"'),
        ("socket_mode", '"0660\\n"'),
        ("socket_mode", "0o660"),
        ("state_dir", '"~/vifd"'),
        ("state_dir", '"/x\\u0000"'),
        ("netns", '"a\\u0000b"'),
        ("log_level", '"loud"'),
        ("log_format", '"xml"'),
        ("user", "true"),
        ("patrol_seconds", "0"),
        ("patrol_seconds", "3601"),
        ("patrol_seconds", "nan"),
        ("patrol_seconds", '"10"'),
        ("socket_group", "[]"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(key: str, value: str) -> None:
    assert list(problems(f"[daemon]\n{key} = {value}")) == [f"daemon.{key}"]


def test_an_unknown_key_comes_with_the_one_that_was_meant() -> None:
    assert problems('[daemon]\nsoket = "/x"') == {"daemon.soket": "unknown key; did you mean 'socket'?"}


def test_an_unknown_key_that_resembles_none_comes_without_a_guess() -> None:
    assert problems("[daemon]\nzzz = 1") == {"daemon.zzz": "unknown key"}


def test_an_unknown_table_comes_with_the_one_that_was_meant() -> None:
    assert problems("[deamon]\n") == {"deamon": "unknown key; did you mean 'daemon'?"}


def test_a_daemon_that_is_no_table_is_an_error() -> None:
    assert problems("daemon = 1") == {"daemon": "has to be a table"}


def test_what_is_no_toml_is_an_error_with_its_line() -> None:
    assert "line 2" in problems("[daemon]\n= 1")["TOML"]


def test_all_problems_are_found_at_once() -> None:
    text = """
        default_driver = "brige"
        nonsense = 1
        [daemon]
        socket = 1
        log_level = "loud"
        [networks."../a"]
        driver = "bridge"
        bridge = "%d"
        mtu = 10
        [networks.b]
        [[policy]]
        role = "king"
        [[policy]]
        networks = ["c"]
    """
    assert set(problems(text)) == {
        "default_driver",
        "nonsense",
        "daemon.socket",
        "daemon.log_level",
        "networks.../a",
        "networks.../a.mtu",
        "networks.b.driver",
        "policy[0].role",
        "policy[1]",
        "policy[1].networks",
    }


def test_the_embedded_default_is_one_isolated_network_on_a_bridge_of_its_own() -> None:
    (network,) = parse(DEFAULT_TEXT).networks.values()
    assert (network.name, network.driver) == ("default", "bridge")
    assert (network.options.bridge, network.options.uplink) == ("br-vifd", "")


def test_the_configuration_of_a_fake_vifd_is_one_fake_network() -> None:
    (network,) = parse(FAKE_TEXT).networks.values()
    assert (network.name, network.driver) == ("default", "fake")
