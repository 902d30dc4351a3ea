"""The guard of devices that cross no bridge: a table of family netdev, hooked to each such device by chains of its own.

What the VM of a macvtap sends leaves by that device, so it is looked at on the way out (netdev egress, since Linux 5.16).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from vifd.kernel.nft import ruleset
from vifd.kernel.nft.guard import NOTHING, Element, Elements, Guard, NoGuard, open_guard
from vifd.kernel.nft.rules import IIF, OIF, verdict_of
from vifd.kernel.nft.ruleset import TABLE
from vifd.kernel.nft.seals import Chains
from vifd.kernel.nft.wire import NLM_F_CREATE, Kind, Message, nested, number, text

_INGRESS, _EGRESS = 0, 1  # linux/netfilter.h, enum nf_dev_hooks
_OUT = (verdict_of(ruleset.PORTS, OIF), *ruleset.limit_rules(OIF, ruleset.PPS_FROM_VM, ruleset.BPS_FROM_VM))
_IN = ruleset.limit_rules(IIF, ruleset.PPS_TO_VM, ruleset.BPS_TO_VM)


class DeviceGuard(Guard):
    """A Guard whose ports are devices with chains of their own."""

    def put(self, ports: Mapping[int, Elements]) -> None:
        """See Guard."""
        with self._lock:
            removed, added = set[Element](), set[Element]()
            for ifindex, wanted in ports.items():
                present = self._ports.get(ifindex, NOTHING)
                removed |= present - wanted
                added |= wanted - present
            fresh = [ifindex for ifindex, wanted in ports.items() if wanted and ifindex not in self._ports]
            spent = [ifindex for ifindex, wanted in ports.items() if not wanted and ifindex in self._ports]
            unhooked = self._unhooked(spent)
            self._socket.commit([*unhooked, *self._removals(removed), *self._additions(added), *self._hooked(fresh)])
            for ifindex, wanted in ports.items():
                if wanted:
                    self._ports[ifindex] = wanted
                else:
                    self._ports.pop(ifindex, None)

    def _hooked(self, ports: Iterable[int]) -> list[Message]:
        messages = []
        for ifindex in ports:
            try:
                ifname = socket.if_indextoname(ifindex)
            except OSError:
                continue  # it is gone, and the sweep forgets it
            for chain, hook, rules in _chains_of(ifindex):
                where = nested(4, number(1, hook), number(2, 0), text(3, ifname))
                payload = text(1, TABLE) + text(3, chain) + where + number(5, 1) + text(7, "filter")
                messages.append(Message(Kind.NEWCHAIN, self._rules.family, payload, NLM_F_CREATE))
                messages += [self._rules.rule(chain, rule) for rule in rules]
        return messages

    def _unhooked(self, ports: Iterable[int]) -> list[Message]:
        """Give what deletes the chains of devices. Before Linux 6.16 the kernel has done so itself when a device is gone."""
        payloads = [text(1, TABLE) + text(3, name) for ifindex in ports for name, *_ in _chains_of(ifindex)]
        there = [p for p in payloads if self._socket.ask(Message(Kind.GETCHAIN, self._rules.family, p)) is not None]
        return [Message(Kind.DELCHAIN, self._rules.family, payload) for payload in there]

    def _chains(self) -> Chains:
        hooked = {name: (rules, True) for ifindex in self._ports for name, _, rules in _chains_of(ifindex)}
        return {**super()._chains(), **hooked}

    def _contents(self) -> list[Message]:
        return [*super()._contents(), *self._hooked(self._ports)]


def _chains_of(ifindex: int) -> tuple[tuple[str, int, tuple[bytes, ...]], ...]:
    """Give the chains of a device: name, hook and rules."""
    return (f"out-{ifindex}", _EGRESS, _OUT), (f"in-{ifindex}", _INGRESS, _IN)


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
        return Guards(bridge, NoGuard("the first network with driver direct takes a restart of vifd"))
    shared = bridge if isinstance(bridge, Guard) else None
    devices = open_guard(ruleset.NETDEV, owned=owned, made=lambda: DeviceGuard(ruleset.NETDEV, owned=owned, shared=shared))
    return Guards(bridge, devices)
