"""The guard of devices that cross no bridge: a table of family netdev, hooked to each such device by chains of its own.

What the VM of a macvtap sends leaves by that device, so it is looked at on the way out (netdev egress, since Linux 5.16).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from vifd.kernel.nft import ruleset
from vifd.kernel.nft.elements import NOTHING, Elements
from vifd.kernel.nft.guard import Guard, NoGuard, open_guard
from vifd.kernel.nft.ruleset import Hook
from vifd.kernel.nft.wire import Kind, Message


class DeviceGuard(Guard):
    """A Guard whose ports are devices with chains of their own, named "out-7" and "in-7" after their indexes."""

    def _hook(self, name: str) -> Hook:
        return super()._hook(name.partition("-")[0])

    def _hooks_of(self, ifindex: int, elements: Elements) -> Iterable[str]:
        return [f"{name}-{ifindex}" for name in super()._hooks_of(ifindex, elements)]

    def _hooked(self, names: Iterable[str]) -> list[Message]:
        messages = []
        for name in names:
            try:
                device = socket.if_indextoname(int(name.partition("-")[2]))
            except OSError:
                continue  # it is gone, and the sweep forgets it
            messages += self._rules.hook(name, self._placed(name), device)
        return messages

    def _unhooked(self, names: Iterable[str]) -> list[Message]:
        """Give what deletes the chains of devices. Before Linux 6.16 the kernel has done so itself when a device is gone."""
        return [message for message in super()._unhooked(names) if self._is_hooked(message)]

    def _is_hooked(self, unhook: Message) -> bool:
        return self._socket.ask(Message(Kind.GETCHAIN, unhook.family, unhook.payload)) is not None


class Guards:
    """Both tables: for ports of bridges, and for devices that cross none.

    Args:
        bridge: the one.
        devices: the other.
    """

    def __init__(self, bridge: Guard | NoGuard, devices: Guard | NoGuard) -> None:
        self._bridge, self._devices = bridge, devices

    @property
    def port_id(self) -> int:
        """The number by which events tell that these caused them; 0: there are no tables."""
        return self._bridge.port_id or self._devices.port_id

    @property
    def ports(self) -> frozenset[int]:
        """The interfaces that a table has something of."""
        return self._bridge.ports | self._devices.ports

    def put(self, ports: Mapping[int, Elements], standing: frozenset[int] = frozenset()) -> None:
        """Let ports have what is given and nothing else; see Guard.

        Args:
            ports: by interface index.
            standing: which of them cross no bridge.
        """
        self._bridge.put({ifindex: NOTHING if ifindex in standing else wanted for ifindex, wanted in ports.items()})
        self._devices.put({ifindex: wanted if ifindex in standing else NOTHING for ifindex, wanted in ports.items()})

    def has(self, ifindex: int, wanted: Elements, *, standing: bool) -> bool:
        """Tell, by asking the kernel, whether a port has what it should."""
        return (self._devices if standing else self._bridge).has(ifindex, wanted)

    def restore(self) -> bool:
        """Put back what somebody has changed; tell whether somebody had."""
        changed = [self._bridge.restore(), self._devices.restore()]
        return any(changed)

    def close(self) -> None:
        """Close this process's ends of the sockets."""
        self._bridge.close()
        self._devices.close()


def open_guards(*, owned: bool, direct: bool) -> Guards:
    """Open the tables.

    Args:
        owned: whether to own them where the kernel can.
        direct: whether there are devices that cross no bridge.

    Raises:
        NftError: the kernel has nftables and refuses.
    """
    bridge = open_guard(owned=owned)
    if not direct:
        return Guards(bridge, NoGuard("the first network with macvtaps takes a restart of vifd"))
    shared = bridge if isinstance(bridge, Guard) else None
    devices = open_guard(ruleset.NETDEV, owned=owned, made=lambda: DeviceGuard(ruleset.NETDEV, owned=owned, shared=shared))
    return Guards(bridge, devices)
