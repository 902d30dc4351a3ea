"""What a network driver is."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from msgspec import Struct

from vifd.dhcp.network import DhcpNetwork
from vifd.drivers.addressing import Addressing
from vifd.drivers.functions import PfStatus, Taken
from vifd.errors import Violation
from vifd.kernel.authority import Grant
from vifd.kernel.ops import Made, Plan
from vifd.model import Drift, Endpoint, EndpointSpec, Location, Offer, Port, Preference

OptionsT = TypeVar("OptionsT", bound=Struct)


class Planned(Struct, frozen=True):
    """What a driver would do for a request.

    Args:
        plan: the kernel operations; empty where the kernel has nothing to do.
        port: the port with every choice that was the driver's filled in, as far as it is known before the plan runs.
    """

    plan: Plan
    port: Port


class NetworkDriver(ABC, Generic[OptionsT]):
    """Makes endpoints on one network. One instance a network; it is made anew when the configuration changes.

    A driver from another package derives from it, and names itself under the entry-point group `vifd.network_drivers`. Only
    `offers`, `plan` and `locate` have to be written; the engine alone owns the order, the journal, the undo and the retries.

    Args:
        network: the network's name.
        options: the network's keys.
    """

    #: The name in the configuration.
    name: ClassVar[str]
    #: The struct that a network's keys are turned into; its fields are the keys.
    options: ClassVar[type[Struct]]

    def __init__(self, network: str, options: OptionsT) -> None:
        self.network = network
        self.config = options

    @classmethod
    def check_options(cls, options: OptionsT) -> list[Violation]:
        """Say what is wrong with a network's keys beyond their types: key and sentence each."""
        del options
        return []

    @classmethod
    def grant(cls, options: OptionsT) -> Grant | None:
        """Say what of the kernel the privileged helper may touch for this network. None: nothing."""
        del options
        return None

    @classmethod
    def dhcp(cls, options: OptionsT) -> DhcpNetwork | None:
        """Say what vifd serves this network's guests by DHCP. None: nothing."""
        del options
        return None

    @classmethod
    def addressing(cls, options: OptionsT) -> Addressing:
        """Say which addresses the network has and hands out, and with which networks it shares them."""
        del options
        return Addressing()

    @classmethod
    def physical_network(cls, options: OptionsT) -> str:
        """Say what the physical network is called that its NICs are on; empty: nothing."""
        del options
        return ""

    @functools.cached_property
    def has_system(self) -> bool:
        """Whether there is a network system that is told of endpoints."""
        return (type(self).bind, type(self).unbind) != (NetworkDriver.bind, NetworkDriver.unbind)

    @property
    def repairs(self) -> bool:
        """Whether vifd mends by itself what somebody else changed of an endpoint; without, it only tells."""
        return True

    @property
    def bridge_name(self) -> str:
        """The bridge that its endpoints are on; empty: none."""
        return ""

    @property
    def mtu_bytes(self) -> int:
        """The MTU of an endpoint that asks for none; 0: known only when one is made."""
        return 0

    @abstractmethod
    def offers(self, spec: EndpointSpec | None) -> Sequence[Offer]:
        """Say for every kind that this driver knows whether it can be made here and now, and what it can do. Changes nothing.

        Args:
            spec: what is asked for; None: nothing particular.
        """

    def pick(self, spec: EndpointSpec, taken: Taken) -> str:
        """Pick the PCI function that an endpoint gets, or its place at a vDPA management device, before it is planned. It may
        look at the host, but changes nothing.

        Args:
            spec: what is asked for.
            taken: the functions and places that endpoints have, of any network; and the states of those endpoints.

        Returns:
            Its address, "0000:03:10.2", or a place (`names.place`); empty: the endpoint needs none.

        Raises:
            NetworkFull: there is none that it could get.
        """
        del spec, taken
        return ""

    def note_unfit(self, function: str, reason: str) -> None:
        """Pick a PCI function, or a place, no more for a while, for the kernel didn't give it.

        Args:
            function: its address.
            reason: a sentence.
        """

    def lane(self, function: str) -> str:
        """Say with which PCI functions a function's work shares one queue; work of different queues is done at the same time.

        Args:
            function: its address.

        Returns:
            The queue's name; empty: that of what has no function.
        """
        del function
        return ""

    def physical_functions(self) -> Sequence[PfStatus]:
        """Say what there is of the PFs and VFs that its endpoints get, as far as it knows without the endpoints."""
        return ()

    def complete(self, port: Port) -> Port:
        """Fill in what a caller left open of a port and the network decides, as when it is left open again by a change. Pure."""
        return port

    @abstractmethod
    def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
        """Say what the kernel has to do. Pure: the same answer each time, and no I/O.

        Args:
            endpoint_id: the endpoint.
            spec: what is asked for, with the function that was picked.
            preference: the kind that was chosen, with its options.
        """

    @abstractmethod
    def locate(self, endpoint_id: str, preference: Preference, made: Made) -> Location:
        """Give the typed location, from what the plan came to. Pure."""

    def open_queues(self, endpoint: Endpoint, count: int) -> list[int] | None:
        """Open queues that aren't the kernel's, for their owner.

        Args:
            endpoint: a tap or macvtap of this network.
            count: how many.

        Returns:
            The descriptors, which the caller closes. None: the kernel has the queues.
        """
        del endpoint, count
        return None

    async def bind(self, endpoint: Endpoint) -> None:
        """Tell the network system of a new endpoint, before the kernel is touched; or once more, of one that it has wrong.
        Idempotent.
        """

    async def unbind(self, endpoint: Endpoint) -> None:
        """Tell the network system that an endpoint is gone. Idempotent."""

    async def activate(self, endpoint: Endpoint) -> None:
        """Tell the network system that the VM runs here now. Idempotent."""

    async def check(self, endpoint: Endpoint) -> Sequence[Drift]:
        """Find the drifts that only the network system can know."""
        del endpoint
        return ()
