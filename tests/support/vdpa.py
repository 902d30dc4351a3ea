"""The machine's vDPA devices: set up for a test, read back with `vdpa` and sysfs, and opened as a hypervisor does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.asking import make
from vifclient import Client
from vifclient.messages import Endpoint, EndpointPreference, VdpaPreference

MANAGER = "vdpasim_net"
MODULES = ("vdpa", "vhost_vdpa", "vdpa_sim_net")
DEVICES = Path("/sys/bus/vdpa/devices")
VDPA = [EndpointPreference(vdpa=VdpaPreference())]
#: Opens a device as a hypervisor does (linux/vhost.h, VHOST_VDPA_GET_DEVICE_ID and VHOST_VDPA_GET_CONFIG), as a user and group
#: without anything; prints its virtio id and MAC, and keeps it open until its input ends.
_OPENER = """
import fcntl, os, struct, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
node = os.open(path, os.O_RDWR)
device_id = struct.unpack("I", fcntl.ioctl(node, 0x8004AF70, bytes(4)))[0]
config = fcntl.ioctl(node, 0x8008AF73, struct.pack("II6x", 0, 6))
print(device_id, config[8:14].hex(":"), flush=True)
sys.stdin.read()
"""


def make_vdpa(client: Client, endpoint_id: str = "", **fields: Any) -> Endpoint:
    """Request a vDPA device of the network "fast"."""
    return make(client, endpoint_id, network="fast", acceptable=VDPA, **fields)


def vdpa(*arguments: str) -> Any:
    """Ask `vdpa -j`."""
    done = subprocess.run(["vdpa", "-j", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "{}")


def devices() -> dict[str, Any]:
    """Every vDPA device of the machine, as `vdpa` shows it, by name."""
    found: dict[str, Any] = vdpa("dev", "show").get("dev", {})
    return found


def told(name: str) -> Any:
    """What a device tells its VM, as `vdpa` shows it."""
    return vdpa("dev", "config", "show", name)["config"][name]


def bound(name: str) -> str:
    """What a device is bound to."""
    return (DEVICES / name / "driver").readlink().name


def owner(path: str) -> tuple[int, int]:
    """The owner and the mode of a node."""
    found = Path(path).stat()
    return found.st_uid, found.st_mode & 0o777


@contextlib.contextmanager
def opened(path: str, uid: int) -> Iterator[tuple[int, str]]:
    """Have a user's process open a device for the time of a block; give its virtio id and its MAC.

    Raises:
        AssertionError: it can't; the text says why.
    """
    argv = [sys.executable, "-I", "-S", "-c", _OPENER, path, str(uid)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = process.stdout.readline().split()
        assert said, process.stderr.read()
        yield int(said[0]), said[1]
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()
