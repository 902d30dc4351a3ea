"""vifd's words as the API's messages."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from vif.v1 import endpoint_pb2, error_pb2, host_service_pb2
from vifd import model
from vifd.drivers.functions import FunctionState, FunctionStatus, PfStatus
from vifd.endpoints.views import NetworkInfo


def _numbers(enum: Any, prefix: str, members: type[StrEnum]) -> Mapping[StrEnum, Any]:
    """Pair a model's enum with the API's by name: `Kind.OVS_PORT` with `ENDPOINT_KIND_OVS_PORT`."""
    return {member: enum.Value(f"{prefix}_{member.name}") for member in members}


_KINDS = _numbers(endpoint_pb2.EndpointKind, "ENDPOINT_KIND", model.Kind)
_STATES = _numbers(endpoint_pb2.EndpointState, "ENDPOINT_STATE", model.State)
_MODES = _numbers(endpoint_pb2.MacvtapMode, "MACVTAP_MODE", model.MacvtapMode)
_HOST_DRIVERS = _numbers(endpoint_pb2.PciHostDriver, "PCI_HOST_DRIVER", model.PciHostDriver)
_VLAN_PROTOCOLS = _numbers(endpoint_pb2.VlanProtocol, "VLAN_PROTOCOL", model.VlanProtocol)
_ROLES = _numbers(endpoint_pb2.VhostUserRole, "VHOST_USER_ROLE", model.VhostUserRole)
_DRIFTS = _numbers(endpoint_pb2.DriftKind, "DRIFT_KIND", model.DriftKind)
_OUTCOMES = _numbers(error_pb2.ConsiderationOutcome, "CONSIDERATION_OUTCOME", model.Outcome)
_MECHANISMS = _numbers(host_service_pb2.LimitsMechanism, "LIMITS_MECHANISM", model.LimitsMechanism)
_FEATURES = _numbers(host_service_pb2.Feature, "FEATURE", model.Feature)
_FUNCTION_STATES = _numbers(host_service_pb2.VirtualFunctionState, "VIRTUAL_FUNCTION_STATE", FunctionState)


def endpoint(value: model.Endpoint, netns_path: str) -> endpoint_pb2.Endpoint:
    """Give an endpoint's message.

    Args:
        value: the endpoint.
        netns_path: the namespace that holds its device; empty: the one vifd was started in.
    """
    message = endpoint_pb2.Endpoint(
        endpoint_id=value.endpoint_id,
        generation=value.generation,
        network=value.network,
        network_driver=value.network_driver,
        state=_STATES[value.state],
        port=port(value.port),
        owner=endpoint_pb2.Owner(uid=value.owner.uid, gid=value.owner.gid),
        labels=value.labels,
        drifts=[drift(d) for d in value.drifts],
        partner_endpoint_id=value.partner_endpoint_id,
    )
    if value.instance != model.Instance():
        message.instance.MergeFrom(_instance(value.instance))
    if value.ip_config is not None:
        _set_fields(message.ip_config, value.ip_config)
    if value.lifetime is not None:
        _set_lifetime(message.lifetime, value.lifetime)
    if value.create_time_ns:
        message.create_time.FromNanoseconds(value.create_time_ns)
    if value.location is not None:
        _set_location(message, value.location, netns_path)
    return message


def _set_location(message: endpoint_pb2.Endpoint, value: model.Location, netns_path: str) -> None:
    fields: dict[str, Any] = {name: getattr(value, name) for name in value.__struct_fields__}
    match value:
        case model.TapDevice():
            fields |= {"multi_queue": value.multi_queue, "netns_path": netns_path}
        case model.MacvtapDevice():
            fields |= {"mode": _MODES[value.mode], "netns_path": netns_path}
        case model.PciDevice():
            fields["host_driver"] = _HOST_DRIVERS[value.host_driver]
            del fields["representor_ifindex"]
            fields = {name: field for name, field in fields.items() if field != -1}  # what the host doesn't say is unset
        case model.VhostUserSocket():
            fields["hypervisor_role"] = _ROLES[value.hypervisor_role]
        case _:
            pass
    target = getattr(message, value.kind.value)
    target.SetInParent()
    for name, field in fields.items():
        setattr(target, name, field)


def _instance(value: model.Instance) -> endpoint_pb2.Instance:
    return endpoint_pb2.Instance(uuid=value.uuid, name=value.name, numa_node=value.numa_node)


def _set_lifetime(message: endpoint_pb2.Lifetime, value: model.Lifetime) -> None:
    match value:
        case model.ProcessLifetime():
            message.process.pid = value.pid
        case model.LeaseLifetime():
            message.lease.ttl.FromNanoseconds(value.ttl_ns)


def _set_fields(message: Any, value: model.IpConfig) -> None:
    message.SetInParent()
    message.MergeFrom(type(message)(**{name: getattr(value, name) for name in value.__struct_fields__}))


def port(value: model.Port) -> endpoint_pb2.PortSpec:
    """Give a port's message."""
    message = endpoint_pb2.PortSpec(
        mac=value.mac,
        mtu_bytes=value.mtu_bytes,
        addresses=value.addresses,
        isolated=value.isolated,
        link_up=value.link_up,
        tx_queue_length=value.tx_queue_length,
        public_addresses=value.public_addresses,
        trusted=value.trusted,
    )
    if value.vlan is not None:
        message.vlan.MergeFrom(_vlan(value.vlan))
    if value.guard_enabled is not None:
        message.guard.enabled = value.guard_enabled
    if value.limits is not None:
        message.limits.SetInParent()
        for target, limit in ((message.limits.from_vm, value.limits.from_vm), (message.limits.to_vm, value.limits.to_vm)):
            if limit != model.RateLimit():  # a direction without a limit is unset, as a request has it
                fields = {name: getattr(limit, name) for name in limit.__struct_fields__}
                target.MergeFrom(endpoint_pb2.RateLimit(**fields))
    return message


def _vlan(value: model.Vlan) -> endpoint_pb2.VlanSpec:
    message = endpoint_pb2.VlanSpec(vid=value.vid, trunk_vids=value.trunk_vids, native_vid=value.native_vid, qos=value.qos)
    if value.protocol is not model.VlanProtocol.DOT1Q:  # which is what unset means, in a request as well
        message.protocol = _VLAN_PROTOCOLS[value.protocol]
    return message


def drift(value: model.Drift) -> endpoint_pb2.Drift:
    """Give a drift's message."""
    return endpoint_pb2.Drift(
        kind=_DRIFTS[value.kind],
        expected=value.expected,
        actual=value.actual,
        message=value.message,
    )


def consideration(value: model.Consideration) -> error_pb2.Consideration:
    """Give a preference's outcome as a message."""
    return error_pb2.Consideration(
        index=value.index,
        kind=_KINDS[value.kind],
        outcome=_OUTCOMES[value.outcome],
        message=value.message,
    )


def network(value: NetworkInfo) -> host_service_pb2.Network:
    """Give a network's message."""
    return host_service_pb2.Network(
        name=value.name,
        network_driver=value.driver.name,
        mtu_bytes=value.driver.mtu_bytes,
        offers=[_offer(offer) for offer in value.offers],
        endpoint_count=value.endpoint_count,
        physical_network=value.driver.physical_network(value.driver.config),
        physical_functions=[_physical_function(pf) for pf in value.physical_functions],
    )


def _physical_function(value: PfStatus) -> host_service_pb2.PhysicalFunction:
    functions = [_virtual_function(one) for one in value.functions]
    pf, message = value.pf, host_service_pb2.PhysicalFunction(virtual_functions=functions, message=value.message)
    if pf is None:
        message.ifname = value.name
        return message
    message.ifname, message.address, message.total_vfs = pf.ifname, pf.address, pf.total_vfs
    message.up, message.carrier = pf.up, pf.carrier
    if pf.vf_count:
        mode = host_service_pb2.EswitchMode
        message.eswitch_mode = mode.ESWITCH_MODE_SWITCHDEV if pf.switchdev else mode.ESWITCH_MODE_LEGACY
    if pf.numa_node >= 0:
        message.numa_node = pf.numa_node
    return message


def _virtual_function(value: FunctionStatus) -> host_service_pb2.VirtualFunction:
    function = value.function
    return host_service_pb2.VirtualFunction(
        address=function.address,
        vf_index=function.vf_index,
        iommu_group=function.iommu_group if function.iommu_group >= 0 else None,
        driver=function.driver,
        state=_FUNCTION_STATES[value.state],
        endpoint_id=value.endpoint_id,
        message=value.message,
    )


def limits_mechanism(value: model.LimitsMechanism | None) -> Any:
    """Give a mechanism's number; 0 for none."""
    return 0 if value is None else _MECHANISMS[value]


def _offer(value: model.Offer) -> host_service_pb2.KindOffer:
    return host_service_pb2.KindOffer(
        kind=_KINDS[value.kind],
        available=not value.unavailable,
        message=value.unavailable,
        features=sorted(_FEATURES[feature] for feature in value.features),
    )
