"""What rtnetlink says of the netdevs of VFs, which any netdev can stand for."""

from __future__ import annotations

import contextlib

import pytest

from tests.support import kernel
from tests.support.daemon import ip, network_namespace
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.sriov.nic import RtnlNic


@pytest.mark.parametrize("address", ["10.0.0.1/24", "fd00::1/64"])
def test_an_address_on_a_netdev_is_seen_and_none_of_another(address: str) -> None:
    with network_namespace() as netns, contextlib.closing(kernel.inside(netns, RtnlSocket)) as rtnl:
        kernel.run(netns, "link", "add", "one", "type", "veth", "peer", "name", "two")
        kernel.run(netns, "address", "add", address, "dev", "two")
        indexes = {link["ifname"]: link["ifindex"] for link in ip(netns, "link", "show")}

        def has_addresses(ifindex: int) -> bool:
            return kernel.inside(netns, lambda: RtnlNic(rtnl).has_addresses(ifindex))

        found = {name: has_addresses(index) for name, index in indexes.items()}
        assert found == {"lo": True, "one": False, "two": True}
        with pytest.raises(OSError, match="No such device"):
            has_addresses(4242)
