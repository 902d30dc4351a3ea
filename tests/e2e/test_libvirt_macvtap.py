"""A domain of the system's libvirt on macvtaps."""

from __future__ import annotations

import secrets
import subprocess

import pytest

from tests.e2e.test_libvirt import live
from tests.guest.image import Image
from tests.support.daemon import Daemon
from vifclient import Client

pytestmark = pytest.mark.timeout(300)

DIRECT = """
[networks.blue]
driver = "direct"
uplink = "up0"

[networks.red]
driver = "direct"
uplink = "up1"
"""


@pytest.fixture
def networks() -> str:
    return DIRECT


def prepare(netns: str) -> None:
    """Make the uplinks, and let interface indexes go on where no other namespace's macvtaps have theirs.

    libvirt opens /dev/tapN, which is named by index and shared by all namespaces.
    """
    lines = [f"link add burnt{number} type bridge" for number in range(200 + secrets.randbelow(100))]
    for number in range(2):
        lines += [
            f"link add up{number} type veth peer name far{number}",
            f"link set up{number} addrgenmode none up",
            f"link set far{number} addrgenmode none up",
            f"address add 10.9{number + 1}.0.1/24 dev far{number}",
        ]
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def test_a_domain_is_started_hot_plugged_and_destroyed(host: Daemon, client: Client, guest_image: Image) -> None:
    prepare(host.netns)
    live(host, client, guest_image, "system", "macvtap")
