"""The command `vifd`: its options, and what they come to."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vifd import __version__, config, logs, privileges
from vifd.daemon import Setup, run
from vifd.drivers import catalog
from vifd.errors import ConfigError, StartError, TryAgain

_DEFAULT_PATH = Path("/etc/vifd/vifd.toml")
_OK, _FAILED, _USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 after a stop, 1 if it can't start or the configuration is wrong."""
    options = _parser().parse_args(arguments)
    try:
        setup = _setup(options)
        if options.check_config:
            return _check(setup)
        daemon = setup.config.daemon
        logs.setup(daemon.log_level, daemon.log_format)
        run(setup)
    except ConfigError as error:
        for key, message in error.problems:
            print(f"vifd: {key}: {message}", file=sys.stderr)
        return _FAILED
    except (StartError, TryAgain) as error:  # TryAgain: the journal can't be written
        print(f"vifd: {error}", file=sys.stderr)
        return _FAILED
    return _OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vifd",
        description="Makes the network interfaces of this host's virtual machines, for unprivileged hypervisor drivers.",
        epilog=f"Without --config it reads {_DEFAULT_PATH} if that is there, and else serves one network 'default'. "
        "SIGHUP reads networks and policy again, SIGTERM stops it. Try: vifd --fake",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration, in TOML")
    parser.add_argument("--check-config", action="store_true", help="only say what is wrong with the configuration, key by key")
    parser.add_argument("--fake", action="store_true", help="serve one network 'default' of pretended endpoints; needs no root")
    parser.add_argument("--socket", metavar="PATH", help="take the place of daemon.socket")
    parser.add_argument("--fd-socket", metavar="PATH", help="take the place of daemon.fd_socket")
    parser.add_argument("--version", action="version", version=f"vifd {__version__}")
    return parser


def _setup(options: argparse.Namespace) -> Setup:
    drivers = catalog.load()
    if options.fake and options.config:
        raise StartError('--fake and --config exclude each other; a network with driver = "fake" works in any configuration')
    load = _source(options)
    setup = Setup(drivers, load, config.Config(), in_memory=options.fake)
    parsed = setup.parse(load())
    replaced = {name: value for name, value in (("socket", options.socket), ("fd_socket", options.fd_socket)) if value}
    if options.fake:
        replaced = _fake_paths() | replaced
    daemon = msgspec.structs.replace(parsed.daemon, **{name: str(Path(value).absolute()) for name, value in replaced.items()})
    return setup._replace(config=msgspec.structs.replace(parsed, daemon=daemon))


def _source(options: argparse.Namespace) -> Callable[[], str]:
    if options.fake:
        return lambda: config.FAKE_TEXT
    path = options.config or (_DEFAULT_PATH if _DEFAULT_PATH.exists() else None)
    if path is None:
        return lambda: config.DEFAULT_TEXT
    path = path.absolute()

    def load() -> str:
        if os.geteuid() == 0:
            privileges.check_root_owned(path)
        return config.read(path)

    return load


def _fake_paths() -> dict[str, str]:
    directory = os.environ.get("XDG_RUNTIME_DIR")
    if not directory:
        directory = f"/tmp/vifd-{os.getuid()}"  # noqa: S108  the next line refuses one of somebody else's
        privileges.make_directory(Path(directory), None)
    return {"socket": f"{directory}/vifd.sock", "fd_socket": f"{directory}/vifd-fd.sock"}


def _check(setup: Setup) -> int:
    privileges.resolve(setup.config.daemon)
    if privileges.find_dhcp_user(setup.config.daemon) is None and catalog.dhcp_networks(setup.drivers, setup.config):
        raise ConfigError([privileges.missing_user("daemon.dhcp_user", setup.config.daemon.dhcp_user)])
    networks = ", ".join(f"{name} ({network.driver})" for name, network in sorted(setup.config.networks.items()))
    print(f"vifd: the configuration is right; networks: {networks or 'none'}")
    return _OK
