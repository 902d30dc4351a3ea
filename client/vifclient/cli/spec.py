"""The options that say what endpoint is wanted, which `request` and `run` share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4, uuid5

import click

from vifclient.cli.completers import complete_network
from vifclient.cli.port import Port, port_option, port_options
from vifclient.cli.settings import check_text, split_labels
from vifclient.cli.words import enum_word
from vifclient.messages import EndpointPreference, Instance, MacvtapMode, Owner, PciHostDriver, PortSpec, RequestEndpointRequest

_Function = TypeVar("_Function", bound=Callable[..., object])
MACVTAP_MODES = [enum_word(MacvtapMode.DESCRIPTOR, number) for number in MacvtapMode.values() if number]
PCI_DRIVERS = [enum_word(PciHostDriver.DESCRIPTOR, number) for number in PciHostDriver.values() if number]
_ID = click.IntRange(0, 2**32 - 2)  # 2**32 - 1 is nobody's: "unchanged" in chown(2)

_OPTIONS = (
    click.argument("network", callback=check_text, shell_complete=complete_network),
    click.option("--id", "endpoint_id", type=click.UUID, metavar="UUID", help="The endpoint's id. [default: a new one]"),
    click.option("--queues", type=click.IntRange(1, 256), metavar="N", help="How many queue pairs. [default: 1]"),
    click.option("--no-vnet-hdr", is_flag=True, help="Frames without a virtio-net header."),
    click.option(
        "--instance-name", callback=check_text, default="", metavar="NAME", help="The VM's name, to find the endpoint by."
    ),
    click.option("--instance-uuid", type=click.UUID, metavar="UUID", help="The VM's UUID."),
    click.option(
        "--numa-node", type=click.IntRange(0, 1023), metavar="N", help="The NUMA node of the VM's memory. [default: no matter]"
    ),
    click.option(
        "--label", "labels", callback=split_labels, multiple=True, metavar="KEY=VALUE", help="A label; may be repeated."
    ),
    click.option("--owner-uid", type=_ID, metavar="UID", help="Who opens the device. [default: you]"),
    click.option("--owner-gid", type=_ID, metavar="GID", help="A group that the opener must be in as well."),
    click.option(
        "--macvtap-mode",
        type=click.Choice(MACVTAP_MODES),
        help="How macvtaps on one uplink reach each other. [default: bridge; on a VF passthru]",
    ),
    click.option("--pci-driver", type=click.Choice(PCI_DRIVERS), help="What a PCI function is bound to. [default: vfio]"),
    port_option(
        "--mac", callback=check_text, default="", metavar="MAC", help="The VM's MAC address. [default: made from the id]"
    ),
    port_options(changing=False),
)  # fmt: skip


def spec_options(function: _Function) -> _Function:
    """Give a command the options that `Spec` is made of."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What the options say."""

    port: Port

    network: str
    endpoint_id: UUID | None
    queues: int | None
    no_vnet_hdr: bool
    macvtap_mode: str | None
    pci_driver: str | None
    mac: str
    instance_name: str
    instance_uuid: UUID | None
    numa_node: int | None
    labels: Sequence[tuple[str, str]]
    owner_uid: int | None
    owner_gid: int | None

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self:
        """Make it of a command's options.

        Raises:
            click.UsageError: They contradict each other.
        """
        return cls(port=Port.take(options), **options)

    def to_request(self, kinds: Sequence[str], *, validate_only: bool = False) -> RequestEndpointRequest:
        """Make the request.

        Args:
            kinds: The acceptable kinds, best first.
            validate_only: Whether nothing is to be made.

        Returns:
            The request.

        Raises:
            click.UsageError: An option is given that none of the kinds has.
        """
        request = RequestEndpointRequest(
            endpoint_id=str(self.endpoint_id or uuid4()),
            network=self.network,
            acceptable=self._acceptable(kinds),
            port=self.port.to_message(),
            labels=dict(self.labels),
            validate_only=validate_only,
        )
        request.port.mac = self.mac
        instance = Instance(name=self.instance_name, uuid=str(self.instance_uuid or ""), numa_node=self.numa_node)
        if instance != Instance():
            request.instance.CopyFrom(instance)
        if self.owner_uid is not None or self.owner_gid is not None:
            request.owner.CopyFrom(Owner(uid=self.owner_uid, gid=self.owner_gid))
        return request

    def to_pair(self, standby: str, *, validate_only: bool = False) -> list[RequestEndpointRequest]:
        """Make the requests of a pair: a PCI function on the network, and on another one what stands in for it, with one MAC.

        Both have the instance, labels, owner and MTU; the queues are of what stands in; what else the port is to be like
        is the function's.

        Args:
            standby: The other network.
            validate_only: Whether nothing is to be made.

        Returns:
            The requests, that of the function first. The other one's id follows from the function's, so that the same --id gives
            the same pair again.

        Raises:
            click.UsageError: An option is given that neither has.
        """
        of_function = replace(self, queues=None, no_vnet_hdr=False, macvtap_mode=None)
        function = of_function.to_request(["pci"], validate_only=validate_only)
        second = uuid5(UUID(function.endpoint_id), "standby")
        of_standby = replace(self, network=standby, endpoint_id=second, pci_driver=None)
        other = of_standby.to_request(["tap", "macvtap"], validate_only=validate_only)
        other.port.CopyFrom(PortSpec(mac=self.mac, mtu_bytes=function.port.mtu_bytes))
        function.partner_endpoint_id, other.partner_endpoint_id = other.endpoint_id, function.endpoint_id
        return [function, other]

    def _acceptable(self, kinds: Sequence[str]) -> list[EndpointPreference]:
        preferences = [_prefer(kind) for kind in dict.fromkeys(kinds)]
        if self.queues is not None:
            _set_option(preferences, "queues", self.queues, what="queues")
        if self.no_vnet_hdr:
            _set_option(preferences, "vnet_hdr", 0, what="a virtio-net header")
        if self.macvtap_mode is not None:
            mode = MacvtapMode.Value(f"MACVTAP_MODE_{self.macvtap_mode.upper()}")
            _set_option(preferences, "mode", mode, what="a macvtap mode")
        if self.pci_driver is not None:
            driver = PciHostDriver.Value(f"PCI_HOST_DRIVER_{self.pci_driver.upper()}")
            _set_option(preferences, "host_driver", driver, what="a host driver")
        return preferences


def _prefer(kind: str) -> EndpointPreference:
    preference = EndpointPreference()
    getattr(preference, kind).SetInParent()
    return preference


def _set_option(preferences: Sequence[EndpointPreference], name: str, value: int, *, what: str) -> None:
    options = [getattr(preference, str(preference.WhichOneof("kind"))) for preference in preferences]
    able = [one for one in options if name in one.DESCRIPTOR.fields_by_name]
    if not able:
        kinds = ", ".join(str(preference.WhichOneof("kind")) for preference in preferences)
        raise click.UsageError(f"No kind that is asked for has {what}: {kinds}.", click.get_current_context())
    for one in able:
        setattr(one, name, value)
