"""Domains on macvtaps: of a session's libvirt, and of the system's."""

from __future__ import annotations

import pytest

from tests.e2e.test_libvirt import live
from tests.guest.image import Image
from tests.support import kernel
from tests.support.daemon import Daemon
from tests.support.uplinks import add_uplink, rare_index, skip_indexes
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
    """Make the uplinks, where macvtaps get an index that no other namespace's have: libvirt opens /dev/tapN."""
    skip_indexes(netns, rare_index())
    for number in range(2):
        add_uplink(netns, f"up{number}", f"far{number}")
        kernel.run(netns, "address", "add", f"10.9{number + 1}.0.1/24", "dev", f"far{number}")


@pytest.mark.parametrize(("mode", "queues"), [("session", 1), ("session", 2), ("system", 1)])
def test_a_domain_is_started_hot_plugged_and_destroyed(
    host: Daemon, client: Client, guest_image: Image, mode: str, queues: int
) -> None:
    prepare(host.netns)
    live(host, client, guest_image, mode, "macvtap", queues)
