"""The `ip` command: two processes to make a tap on a bridge, one to delete it."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.contenders.bare import BRIDGE, MTU_BYTES, OWNER_UID
from tests.bench.measure import Samples, timed
from tests.bench.namespaces import Namespace


@dataclass(frozen=True)
class IpCommand:
    """Does what a script would."""

    namespace: Namespace

    name = "ip command"

    def round(self, count: int) -> dict[str, Samples]:
        """Make `count` taps, then delete them."""
        made: Samples = []
        deleted: Samples = []
        names = [f"ipt{secrets.token_hex(5)}" for _ in range(count)]
        with self.namespace.entered():
            for name in names:
                timed(made, _make, name)
            for name in names:
                timed(deleted, _ip, "link", "delete", "dev", name)
        return {"make": made, "delete": deleted}


@contextmanager
def ip_command(namespace: Namespace) -> Iterator[IpCommand]:
    """Work in a namespace, in which a bridge is made."""
    namespace.ip("link", "add", BRIDGE, "up", "type", "bridge")
    yield IpCommand(namespace)


def _make(name: str) -> None:
    _ip("tuntap", "add", "dev", name, "mode", "tap", "user", str(OWNER_UID), "vnet_hdr")
    _ip("link", "set", "dev", name, "mtu", str(MTU_BYTES), "alias", f"bench:{name}", "master", BRIDGE, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
