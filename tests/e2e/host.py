"""The host that the tests' virtual machines run on: a vifd in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.guest import unprivileged
from tests.support.daemon import BLUE, Daemon, network_namespace, short_directory
from tests.support.wires import add_uplink


class ReachableDaemon(Daemon):
    """A vifd that finds its Python also as an ordinary user, wherever the checkout and the Python lie."""

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        return unprivileged.command(super().argv, user=None)


@contextmanager
def hosting(networks: str = BLUE, *, uplink: bool = False) -> Iterator[Daemon]:
    """Run a host for the time of a block.

    Args:
        networks: its configuration.
        uplink: whether it has one.
    """
    with short_directory() as directory, network_namespace() as namespace:
        if uplink:
            add_uplink(namespace)
        daemon = ReachableDaemon(directory, netns=namespace, networks=networks)
        try:
            yield daemon.start()
            assert daemon.stop() == 0
        finally:
            daemon.kill()
            print(daemon.log())  # pytest shows it when a test fails
