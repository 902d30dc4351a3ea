"""The configuration: TOML to frozen values. An unknown key or a bad value is an error that names the key.

What a network driver's keys are, the driver says (`NetworkDriver.options`); this module knows none of them.
"""

from __future__ import annotations

import difflib
import grp
import pwd
import tomllib
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from vifd.errors import ConfigError, Violation

_S = TypeVar("_S", bound=Struct)

#: What vifd serves when it is given no configuration: one network whose guests get addresses by DHCP, and out by NAT.
DEFAULT_TEXT = """\
[networks.default]
driver = "bridge"
bridge = "br-vifd"
addresses = ["192.168.177.1/24"]
pool = ["192.168.177.10-192.168.177.250"]
dhcp = true
nat = true
"""

#: What `vifd --fake` serves.
FAKE_TEXT = """\
[networks.default]
driver = "fake"
"""

_NetworkName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
_AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z")]
_SocketPath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", max_length=100)]
_Id = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]


class Role(StrEnum):
    """What a policy lets its callers do; each includes the ones before it."""

    READ = "read"
    USE = "use"
    DELEGATE = "delegate"
    ADMIN = "admin"


class DaemonConfig(Struct, frozen=True):
    """The table `[daemon]`."""

    socket: _SocketPath = "/run/vifd/vifd.sock"
    socket_group: str = "vifd"
    socket_mode: Annotated[str, Meta(pattern=r"^0?[0-7]{3}\Z")] = "0660"
    fd_socket: _SocketPath = "/run/vifd/fd.sock"
    state_dir: _AbsolutePath = "/var/lib/vifd"
    device_dir: _AbsolutePath = "/dev/vifd"
    user: str = "vifd"
    dhcp_user: str = "vifd-dhcp"
    netns: Annotated[str, Meta(pattern=r"^[^\x00]*\Z")] = ""
    own_nftables: bool = True
    patrol_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 10
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


class PolicyRule(Struct, frozen=True):
    """One table `[[policy]]`: who, by one of the first four, and what they may do. Names are looked up when it is read."""

    uid: _Id | None = None
    user: str | None = None
    gid: _Id | None = None
    group: str | None = None
    networks: tuple[str, ...] = ("*",)
    kinds: tuple[Literal["bridge", "tap", "macvtap", "pci", "ovs_port", "vhost_user", "vdpa"], ...] = ()
    role: Role = Role.USE
    max_endpoints: Annotated[int, Meta(ge=1)] | None = None
    guard: Literal["required", "optional"] = "required"


class NetworkConfig(Struct, frozen=True):
    """One table `[networks.NAME]`, its driver's keys as the driver's options."""

    name: str
    driver: str
    options: Struct


class Config(Struct, frozen=True):
    """The whole configuration."""

    daemon: DaemonConfig = DaemonConfig()
    networks: Mapping[str, NetworkConfig] = {}
    policy: tuple[PolicyRule, ...] = ()


#: By driver, what checks the options of one network: from its name and keys, the options and what is wrong with them.
OptionTypes = Mapping[str, type[Struct]]
OptionCheck = Callable[[str, Struct], list[Violation]]


def read(path: Path) -> str:
    """Read a configuration file.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Violation(str(path), f"can't be read: {error}")]) from error


def parse(text: str, option_types: OptionTypes, check: OptionCheck = lambda _name, _options: []) -> Config:
    """Turn TOML into a configuration.

    Args:
        text: the TOML.
        option_types: by driver, the struct that its networks' keys are turned into.
        check: says what else is wrong with a network's options: from its name and options, a list of problems.

    Raises:
        ConfigError: with every problem, by key.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError: too long a number, too deep a nesting
        raise ConfigError([Violation("TOML", str(error))]) from error
    return _Reader(option_types, check).read(tables)


class _Reader:
    """Turns tables into structs and collects what is wrong with them."""

    def __init__(self, option_types: OptionTypes, check: OptionCheck) -> None:
        self._option_types, self._check = option_types, check
        self.problems: list[Violation] = []

    def read(self, tables: dict[str, Any]) -> Config:
        known = ("daemon", "networks", "default_driver", "policy")
        for key in tables.keys() - set(known):
            self._unknown("", key, known)
        daemon = self._struct("daemon", tables.get("daemon", {}), DaemonConfig)
        if daemon is not None and daemon.fd_socket == daemon.socket:
            self._add("daemon.fd_socket", "is daemon.socket already; each needs a path of its own")
        networks = self._networks(tables.get("networks", {}), tables.get("default_driver"))
        policy = self._policy(tables.get("policy", []), networks)
        if self.problems:
            raise ConfigError(self.problems)
        return Config(daemon or DaemonConfig(), networks, policy)

    def _networks(self, tables: Any, default_driver: Any) -> dict[str, NetworkConfig]:
        if default_driver is not None and not self._is_driver(default_driver):
            self._add("default_driver", self._no_driver(default_driver))
            default_driver = None
        if not isinstance(tables, dict):
            self._add("networks", "has to be a table of tables: [networks.NAME]")
            return {}
        networks = {}
        for name, table in tables.items():
            network = self._network(name, table, default_driver)
            if network is not None:
                networks[name] = network
        return networks

    def _network(self, name: str, table: Any, default_driver: str | None) -> NetworkConfig | None:
        where = f"networks.{name}"
        if not self._fits(name, _NetworkName):
            self._add(where, "a network's name is 1 to 63 characters, a-z, 0-9, '.', '_', '-', first a letter or digit")
        if not isinstance(table, dict):
            self._add(where, "has to be a table")
            return None
        driver = table.get("driver", default_driver)
        if driver is None:
            self._add(f"{where}.driver", f"is missing, and there is no default_driver; there are {self._drivers()}")
            return None
        if not self._is_driver(driver):
            self._add(f"{where}.driver", self._no_driver(driver))
            return None
        keys = {key: value for key, value in table.items() if key != "driver"}
        options = self._struct(where, keys, self._option_types[driver])
        if options is None:
            return None
        self.problems += [Violation(f"{where}.{key}", message) for key, message in self._check(driver, options)]
        return NetworkConfig(name, driver, options)

    def _policy(self, tables: Any, networks: Mapping[str, NetworkConfig]) -> tuple[PolicyRule, ...]:
        if not isinstance(tables, list):
            self._add("policy", "has to be an array of tables: [[policy]]")
            return ()
        rules = [self._rule(f"policy[{i}]", table, networks) for i, table in enumerate(tables)]
        return tuple(rule for rule in rules if rule is not None)

    def _rule(self, where: str, table: Any, networks: Mapping[str, NetworkConfig]) -> PolicyRule | None:
        rule = self._struct(where, table, PolicyRule)
        if rule is None:
            return None
        if sum(who is not None for who in (rule.uid, rule.user, rule.gid, rule.group)) != 1:
            self._add(where, "needs exactly one of uid, user, gid, group")
        for network in rule.networks:
            if network != "*" and network not in networks:
                self._add(f"{where}.networks", f"there is no network {network!r}{_suggest(network, networks)}")
        return self._resolve(where, rule)

    def _resolve(self, where: str, rule: PolicyRule) -> PolicyRule:
        """Put numbers in for names: a name service must not be asked while requests wait."""
        try:
            if rule.user is not None:
                return msgspec.structs.replace(rule, uid=pwd.getpwnam(rule.user).pw_uid)
            if rule.group is not None:
                return msgspec.structs.replace(rule, gid=grp.getgrnam(rule.group).gr_gid)
        except (KeyError, ValueError):  # ValueError: a NUL in the name
            what, name = ("group", rule.group) if rule.user is None else ("user", rule.user)
            self._add(where, f"this host has no {what} {name!r}")
        return rule

    def _struct(self, where: str, table: Any, kind: type[_S]) -> _S | None:
        """Turn a table into a struct, key by key, so that every problem is found at once."""
        if not isinstance(table, dict):
            self._add(where, "has to be a table")
            return None
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        values, before = {}, len(self.problems)
        for key, value in table.items():
            if key not in fields:
                self._unknown(f"{where}.", key, fields)
                continue
            try:
                values[fields[key].name] = msgspec.convert(value, fields[key].type)
            except msgspec.ValidationError as error:
                self._add(f"{where}.{key}", _plainly(str(error)))
        missing = [key for key, field in fields.items() if field.required and key not in table]
        for key in missing:
            self._add(f"{where}.{key}", "is missing")
        return None if len(self.problems) > before else kind(**values)

    def _fits(self, value: Any, kind: Any) -> bool:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return False
        return True

    def _unknown(self, where: str, key: str, known: Any) -> None:
        self._add(f"{where}{key}", f"unknown key{_suggest(key, known)}")

    def _is_driver(self, name: Any) -> bool:
        return isinstance(name, str) and name in self._option_types

    def _no_driver(self, driver: Any) -> str:
        return f"there is no network driver {driver!r}{_suggest(str(driver), self._option_types)}; there are {self._drivers()}"

    def _drivers(self) -> str:
        return ", ".join(sorted(self._option_types))

    def _add(self, where: str, message: str) -> None:
        self.problems.append(Violation(where, message))


def _plainly(message: str) -> str:
    """Put msgspec's words for a reader of TOML."""
    return message[0].lower() + message[1:].replace("`", "")


def _suggest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
