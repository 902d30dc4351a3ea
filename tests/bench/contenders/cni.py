"""CNI's bridge plugin: ADD makes a veth pair between a container's namespace and a bridge, DEL deletes it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Samples, timed
from tests.bench.namespaces import Namespace, private_namespace

PLUGIN = Path("/usr/lib/cni/bridge")
# Without ipam the plugin works on layer 2 only: the nearest to what vifd does.
_CONFIGURATION = json.dumps(
    {"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "br-bench", "mtu": 1500, "ipam": {}}
).encode()


@dataclass(frozen=True)
class CniBridge:
    """Does what a container runtime would."""

    host: Namespace
    container: Namespace

    name = "CNI bridge"

    def round(self, count: int) -> dict[str, Samples]:
        """ADD `count` interfaces, then DEL them."""
        made: Samples = []
        deleted: Samples = []
        interfaces = [f"c{secrets.token_hex(5)}" for _ in range(count)]
        with self.host.entered():
            for name in interfaces:
                timed(made, self._call, "ADD", name)
            for name in interfaces:
                timed(deleted, self._call, "DEL", name)
        return {"make": made, "delete": deleted}

    def _call(self, command: str, interface: str) -> None:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": interface,
            "CNI_NETNS": str(self.container.path),
            "CNI_IFNAME": interface,
            "CNI_PATH": str(PLUGIN.parent),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run([PLUGIN], input=_CONFIGURATION, env=environment, check=False, stdout=subprocess.PIPE)
        if done.returncode != 0:
            raise RuntimeError(f"CNI {command} failed: {done.stdout.decode()}")


@contextmanager
def cni_bridge(host: Namespace) -> Iterator[CniBridge]:
    """Make the container's namespace; the plugin makes the bridge with the first ADD."""
    with private_namespace("container") as container:
        contender = CniBridge(host, container)
        contender.round(1)
        yield contender
