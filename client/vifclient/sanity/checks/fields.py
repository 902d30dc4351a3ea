"""Malformed fields: each is refused by its name, and nothing is made. And their limits: what is just within is well-formed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vif.v1 import endpoint_service_pb2 as pb
from vifclient.errors import InvalidArgument, VifError
from vifclient.messages import (
    EndpointPreference,
    GuardSpec,
    Instance,
    LimitsSpec,
    MacvtapPreference,
    Owner,
    PciPreference,
    PortSpec,
    RateLimit,
    TapPreference,
    VhostUserPreference,
    VlanSpec,
)
from vifclient.sanity.check import CHECKS, Check, FailedError, check, describe, expect, expect_true, refused
from vifclient.sanity.session import Session, newer, preference

_SERVICE, _ENDPOINT = "endpoint_service.proto: ", "endpoint.proto: "
_REQUEST, _PORT = f"{_SERVICE}RequestEndpointRequest", f"{_ENDPOINT}PortSpec"
_NOBODY = (1 << 32) - 1
_UNKNOWN: Any = 99  # an enum's type has no such value
_STRICT = "a field, enum value or option that this vifd does not know or cannot honour makes the call fail"

_ID = "A UUID that the caller chooses, new for each interface; canonical form."
_NETWORK = "1 to 63 characters, a-z, 0-9, '.', '_', '-', first a letter or digit"
_KINDS_ONCE = "each kind at most once"
_MAC = 'The VM\'s MAC address, "52:54:00:12:34:56", unicast and not zero.'
_MTU = "68 to 65535 bytes"
_ADDRESSES = "The VM's addresses, IPv4 or IPv6; with a prefix length, every address of the prefix is the VM's; at most 64."
_LABELS = "keys of 1 to 63 characters (letters, digits, '.', '_', '/', '-'), values of up to 255 bytes"
_NAME = "Its name, up to 255 bytes of UTF-8 without control characters."
_RATE = "Bits per second, of whole frames, 1 to 2^40."
_BURST = "the MTU to 2^32 - 1; only with `rate_bps`"
_VLAN = "A VLAN of a port: an access port's `vid`, or a trunk's `trunk_vids`; one of them has to be set."
_TRUNK = "each 1 to 4094, without duplicates"
_QOS = "The priority in the tags that the NIC puts on, 0 to 7. Only with `vid`"
_LEAST = "Bits per second that it may send whatever others do, 1 to 2^40, and at most `rate_bps` if there is one."
_NUMA = "The NUMA node that its memory is on, 0 to 1023"
_QUEUES = "How many queues, 1 to 256."

#: Name of the check, the rule, where it is, the field that has to be named, and what a request has then.
_Row = tuple[str, str, str, str, dict[str, Any]]
_MALFORMED: tuple[_Row, ...] = (
    ("endpoint-id.missing", _ID, _REQUEST, "endpoint_id", {"endpoint_id": ""}),
    ("endpoint-id.upper-case", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "6F9619FF-8B86-4D01-B42D-00CF4FC964FF"}),
    ("endpoint-id.in-braces", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "{6f9619ff-8b86-4d01-b42d-00cf4fc964ff}"}),
    ("endpoint-id.without-dashes", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "6f9619ff8b864d01b42d00cf4fc964ff"}),
    ("endpoint-id.newline", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff\n"}),
    ("endpoint-id.nil", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "00000000-0000-0000-0000-000000000000"}),
    ("endpoint-id.nul", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964f\0"}),
    ("endpoint-id.path", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "../../etc/passwd"}),
    ("endpoint-id.other-digits", _ID, _REQUEST, "endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964f\u0663"}),
    ("network.missing", _NETWORK, _REQUEST, "network", {"network": ""}),
    ("network.upper-case", _NETWORK, _REQUEST, "network", {"network": "BLUE"}),
    ("network.path", _NETWORK, _REQUEST, "network", {"network": "../blue"}),
    ("network.64-characters", _NETWORK, _REQUEST, "network", {"network": "b" * 64}),
    ("network.nul", _NETWORK, _REQUEST, "network", {"network": "blue\0"}),
    ("network.percent", _NETWORK, _REQUEST, "network", {"network": "blue%d"}),
    ("acceptable.empty", "The kinds that the caller can attach, best first", _REQUEST, "acceptable", {"acceptable": []}),
    (
        "acceptable.without-kind",
        "REQUIRED. The kind.",
        f"{_SERVICE}EndpointPreference",
        "acceptable[0]",
        {"acceptable": [EndpointPreference()]},
    ),
    (
        "acceptable.kind-twice",
        _KINDS_ONCE,
        _REQUEST,
        "acceptable[1]",
        {"acceptable": [preference("tap"), preference("tap", queues=2)]},
    ),
    (
        "tap.257-queues",
        _QUEUES,
        f"{_SERVICE}TapPreference",
        "acceptable[0].tap.queues",
        {"acceptable": [EndpointPreference(tap=TapPreference(queues=257))]},
    ),
    (
        "macvtap.unknown-mode",
        _STRICT,
        f"{_ENDPOINT}vif.v1",
        "acceptable[0].macvtap.mode",
        {"acceptable": [EndpointPreference(macvtap=MacvtapPreference(mode=_UNKNOWN))]},
    ),
    (
        "pci.unknown-host-driver",
        _STRICT,
        f"{_ENDPOINT}vif.v1",
        "acceptable[0].pci.host_driver",
        {"acceptable": [EndpointPreference(pci=PciPreference(host_driver=_UNKNOWN))]},
    ),
    (
        "vhost-user.unknown-role",
        _STRICT,
        f"{_ENDPOINT}vif.v1",
        "acceptable[0].vhost_user.hypervisor_role",
        {"acceptable": [EndpointPreference(vhost_user=VhostUserPreference(hypervisor_role=_UNKNOWN))]},
    ),
    (
        "partner.alone",
        "Only in BatchRequestEndpoints, where each names the other",
        _REQUEST,
        "partner_endpoint_id",
        {"partner_endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"},
    ),
    ("mac.multicast", _MAC, _PORT, "port.mac", {"port": PortSpec(mac="01:00:5e:00:00:01")}),
    ("mac.broadcast", _MAC, _PORT, "port.mac", {"port": PortSpec(mac="ff:ff:ff:ff:ff:ff")}),
    ("mac.zero", _MAC, _PORT, "port.mac", {"port": PortSpec(mac="00:00:00:00:00:00")}),
    ("mac.short", _MAC, _PORT, "port.mac", {"port": PortSpec(mac="52:54:00:12:34")}),
    ("mac.dashes", _MAC, _PORT, "port.mac", {"port": PortSpec(mac="52-54-00-12-34-56")}),
    ("mtu.67", _MTU, _PORT, "port.mtu_bytes", {"port": PortSpec(mtu_bytes=67)}),
    ("mtu.65536", _MTU, _PORT, "port.mtu_bytes", {"port": PortSpec(mtu_bytes=65536)}),
    ("mtu.2^32-1", _MTU, _PORT, "port.mtu_bytes", {"port": PortSpec(mtu_bytes=_NOBODY)}),
    ("addresses.no-address", _ADDRESSES, _PORT, "port.addresses[1]", {"port": PortSpec(addresses=["10.0.0.1", "10.0.0.256"])}),
    (
        "addresses.65",
        _ADDRESSES,
        _PORT,
        "port.addresses",
        {"port": PortSpec(addresses=[f"10.91.0.{n}" for n in range(2, 67)])},
    ),
    (
        "public-addresses.17",
        "at most 16",
        _PORT,
        "port.public_addresses",
        {"port": PortSpec(public_addresses=[f"203.0.113.{n}" for n in range(1, 18)])},
    ),
    (
        "tx-queue-length.100001",
        "How many frames the device may queue, 1 to 100000.",
        _PORT,
        "port.tx_queue_length",
        {"port": PortSpec(tx_queue_length=100_001)},
    ),
    ("vlan.4095", "1 to 4094", f"{_ENDPOINT}VlanSpec", "port.vlan.vid", {"port": PortSpec(vlan=VlanSpec(vid=4095))}),
    ("vlan.empty", _VLAN, f"{_ENDPOINT}VlanSpec", "port.vlan", {"port": PortSpec(vlan=VlanSpec())}),
    (
        "vlan.access-and-trunk",
        "Not together with `trunk_vids`.",
        f"{_ENDPOINT}VlanSpec",
        "port.vlan",
        {"port": PortSpec(vlan=VlanSpec(vid=1, trunk_vids=[2]))},
    ),
    (
        "vlan.twice",
        _TRUNK,
        f"{_ENDPOINT}VlanSpec",
        "port.vlan.trunk_vids",
        {"port": PortSpec(vlan=VlanSpec(trunk_vids=[2, 2]))},
    ),
    ("vlan.qos-8", _QOS, f"{_ENDPOINT}VlanSpec", "port.vlan.qos", {"port": PortSpec(vlan=VlanSpec(vid=1, qos=8))}),
    (
        "vlan.qos-of-a-trunk",
        _QOS,
        f"{_ENDPOINT}VlanSpec",
        "port.vlan.qos",
        {"port": PortSpec(vlan=VlanSpec(trunk_vids=[2], qos=1))},
    ),
    (
        "vlan.unknown-protocol",
        _STRICT,
        f"{_ENDPOINT}vif.v1",
        "port.vlan.protocol",
        {"port": PortSpec(vlan=VlanSpec(vid=1, protocol=_UNKNOWN))},
    ),
    (
        "limits.empty",
        "At least one direction has to be set.",
        f"{_ENDPOINT}LimitsSpec",
        "port.limits",
        {"port": PortSpec(limits=LimitsSpec())},
    ),
    (
        "limits.rate-above-2^40",
        _RATE,
        f"{_ENDPOINT}RateLimit",
        "port.limits.from_vm.rate_bps",
        {"port": PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=2**40 + 1)))},
    ),
    (
        "limits.burst-without-rate",
        _BURST,
        f"{_ENDPOINT}RateLimit",
        "port.limits.to_vm.burst_bytes",
        {"port": PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_pps=1, burst_bytes=10**6)))},
    ),
    (
        "limits.burst-below-mtu",
        _BURST,
        f"{_ENDPOINT}RateLimit",
        "port.limits.to_vm.burst_bytes",
        {"port": PortSpec(mtu_bytes=1000, limits=LimitsSpec(to_vm=RateLimit(rate_bps=10**6, burst_bytes=999)))},
    ),
    (
        "limits.min-rate-above-rate",
        _LEAST,
        f"{_ENDPOINT}RateLimit",
        "port.limits.from_vm.min_rate_bps",
        {"port": PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=10**6, min_rate_bps=10**6 + 1)))},
    ),
    (
        "limits.min-rate-to-vm",
        "Only from the VM, on kinds that have MIN_RATE.",
        f"{_ENDPOINT}RateLimit",
        "port.limits.to_vm.min_rate_bps",
        {"port": PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=10**6, min_rate_bps=1)))},
    ),
    ("instance.numa-node-1024", _NUMA, f"{_ENDPOINT}Instance", "instance.numa_node", {"instance": Instance(numa_node=1024)}),
    ("instance.uuid", "The VM's UUID.", f"{_ENDPOINT}Instance", "instance.uuid", {"instance": Instance(uuid="../vm")}),
    ("instance.name-256-bytes", _NAME, f"{_ENDPOINT}Instance", "instance.name", {"instance": Instance(name="é" * 128)}),
    ("instance.name-lines", _NAME, f"{_ENDPOINT}Instance", "instance.name", {"instance": Instance(name="vm\nroot")}),
    ("instance.name-nul", _NAME, f"{_ENDPOINT}Instance", "instance.name", {"instance": Instance(name="vm\0")}),
    ("labels.33", "Up to 32 labels", _REQUEST, "labels", {"labels": {str(n): "" for n in range(31)}}),
    ("labels.key-characters", _LABELS, _REQUEST, "labels", {"labels": {"%d": "a"}}),
    ("labels.key-64-characters", _LABELS, _REQUEST, "labels", {"labels": {"k" * 64: "a"}}),
    ("labels.value-256-bytes", _LABELS, _REQUEST, "labels", {"labels": {"a": "x" * 256}}),
    ("labels.value-64-kib", _LABELS, _REQUEST, "labels", {"labels": {"a": "x" * 65536}}),
    ("labels.value-nul", _LABELS, _REQUEST, "labels", {"labels": {"a": "\0"}}),
    ("labels.key-empty", _LABELS, _REQUEST, "labels", {"labels": {"": "a"}}),
    ("labels.key-64-kib", _LABELS, _REQUEST, "labels", {"labels": {"k" * 65536: "a"}}),
    ("owner.uid", "The user id.", f"{_ENDPOINT}Owner", "owner.uid", {"owner": Owner(uid=_NOBODY)}),
    ("owner.gid", "The group id.", f"{_ENDPOINT}Owner", "owner.gid", {"owner": Owner(gid=_NOBODY)}),
    ("port-id.spaces", "up to 255 printable ASCII characters", _REQUEST, "port_id", {"port_id": "a b"}),
    ("port-id.256-characters", "up to 255 printable ASCII characters", _REQUEST, "port_id", {"port_id": "x" * 256}),
)


def _refuses(field: str, fields: dict[str, Any], session: Session) -> None:
    request = session.request(**fields)
    if "endpoint_id" in fields:
        request.endpoint_id = fields["endpoint_id"]
    with refused(f"a request with a wrong {field}", "INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        session.ask(request)
    expect("fields that the BadRequest names", _fields_of(caught.error), [field])
    expect("endpoints that there are", session.listed(), [])


def _fields_of(error: VifError) -> list[str]:
    """Give the fields that a BadRequest names; how a label is named is nobody's promise."""
    fields = [field for field, _ in error.violations] if isinstance(error, InvalidArgument) else []
    return ["labels" if field.startswith("labels") else field for field in fields]


for _name, _rule, _where, _field, _fields in _MALFORMED:
    CHECKS.append(Check(f"field.{_name}", _rule, _where, partial(_refuses, _field, _fields)))


@check("field.every-violation-at-once", "`google.rpc.BadRequest` lists every one", "error.proto: INVALID_FIELD")
def _every_violation(session: Session) -> None:
    request = session.request(network="", port=PortSpec(mac="zz", mtu_bytes=1), labels={"%": ""})
    request.endpoint_id = "x"
    with refused("a request with five wrong fields", "INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        session.ask(request)
    expected = ["endpoint_id", "labels", "network", "port.mac", "port.mtu_bytes"]
    expect("fields that the BadRequest names", sorted(_fields_of(caught.error)), expected)


_MESSAGES: dict[str, Callable[[Session], tuple[str, Any]]] = {
    "request": lambda s: ("RequestEndpoint", newer(s.request())),
    "request-port": lambda s: ("RequestEndpoint", s.request(port=newer(PortSpec()))),
    "request-guard": lambda s: ("RequestEndpoint", s.request(port=PortSpec(guard=newer(GuardSpec(enabled=True))))),
    "request-preference": lambda s: ("RequestEndpoint", s.request(acceptable=[newer(preference(s.kind))])),
    "batch": lambda s: ("BatchRequestEndpoints", newer(pb.BatchRequestEndpointsRequest(requests=[s.request()]))),
    "batch-request": lambda s: ("BatchRequestEndpoints", pb.BatchRequestEndpointsRequest(requests=[newer(s.request())])),
    "release": lambda s: ("ReleaseEndpoint", newer(pb.ReleaseEndpointRequest(endpoint_id=s.new_id()))),
    "batch-release": lambda s: (
        "BatchReleaseEndpoints",
        pb.BatchReleaseEndpointsRequest(requests=[newer(pb.ReleaseEndpointRequest(endpoint_id=s.new_id()))]),
    ),
    "get": lambda s: ("GetEndpoint", newer(pb.GetEndpointRequest(endpoint_id=s.make().endpoint_id))),
    "list": lambda s: ("ListEndpoints", newer(pb.ListEndpointsRequest(filter=s.filter))),
    "list-filter": lambda s: ("ListEndpoints", pb.ListEndpointsRequest(filter=newer(s.filter))),
    "update": lambda s: ("UpdateEndpoint", newer(pb.UpdateEndpointRequest(endpoint_id=s.make().endpoint_id))),
    "check": lambda s: ("CheckEndpoint", newer(pb.CheckEndpointRequest(endpoint_id=s.make().endpoint_id))),
}


def _refuses_newer(make: Callable[[Session], tuple[str, Any]], session: Session) -> None:
    rpc, message = make(session)
    with refused(f"{rpc} with a field of a newer contract", "INVALID_ARGUMENT", "INVALID_FIELD"):
        session.call(rpc, message)


for _name, _make in _MESSAGES.items():
    CHECKS.append(Check(f"unknown-field.{_name}", _STRICT, f"{_ENDPOINT}vif.v1", partial(_refuses_newer, _make)))


_EDGES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("mtu.68", _MTU, _PORT, {"port": PortSpec(mtu_bytes=68)}),
    ("mtu.65535", _MTU, _PORT, {"port": PortSpec(mtu_bytes=65535)}),
    ("tap.256-queues", _QUEUES, f"{_SERVICE}TapPreference", {"acceptable": [preference("tap", queues=256)]}),
    ("vlan.1", "1 to 4094", f"{_ENDPOINT}VlanSpec", {"port": PortSpec(vlan=VlanSpec(vid=1))}),
    ("vlan.4094", "1 to 4094", f"{_ENDPOINT}VlanSpec", {"port": PortSpec(vlan=VlanSpec(vid=4094))}),
    ("limits.rate-1", _RATE, f"{_ENDPOINT}RateLimit", {"port": PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=1)))}),
    (
        "limits.rate-2^40",
        _RATE,
        f"{_ENDPOINT}RateLimit",
        {"port": PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=2**40)))},
    ),
    (
        "tx-queue-length.100000",
        "How many frames the device may queue, 1 to 100000.",
        _PORT,
        {"port": PortSpec(tx_queue_length=100_000)},
    ),
    ("vlan.qos-7", _QOS, f"{_ENDPOINT}VlanSpec", {"port": PortSpec(vlan=VlanSpec(vid=1, qos=7))}),
    (
        "limits.min-rate-as-large-as-the-rate",
        _LEAST,
        f"{_ENDPOINT}RateLimit",
        {"port": PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=10**6, min_rate_bps=10**6)))},
    ),
    ("instance.numa-node-1023", _NUMA, f"{_ENDPOINT}Instance", {"instance": Instance(numa_node=1023)}),
    ("port-id.255-characters", "up to 255 printable ASCII characters", _REQUEST, {"port_id": "x" * 255}),
)


def _is_well_formed(fields: dict[str, Any], session: Session) -> None:
    try:
        session.ask(session.request(validate_only=True, **fields))
    except VifError as error:
        if isinstance(error, InvalidArgument):
            raise FailedError(f"a value within its limits: expected no INVALID_ARGUMENT, got {describe(error)}") from error


for _name, _rule, _where, _fields in _EDGES:
    CHECKS.append(Check(f"edge.{_name}", _rule, _where, partial(_is_well_formed, _fields)))


@check("edge.labels-as-large-as-they-may-be", _LABELS, _REQUEST)
def _largest_labels(session: Session) -> None:
    labels = {f"{number:02}{'k./_-'}".ljust(63, "k"): "é" * 127 + "x" for number in range(30)}
    request = session.request(labels=labels)
    expect("labels", dict(session.ask(request).endpoint.labels), dict(request.labels))
    expect("labels of the list", [dict(one.labels) for one in session.listed()], [dict(request.labels)])


@check("edge.instance-name-255-bytes", _NAME, f"{_ENDPOINT}Instance")
def _largest_name(session: Session) -> None:
    name = "é" * 127 + "x"
    expect("instance.name", session.make(instance=Instance(name=name)).instance.name, name)


@check("edge.a-large-refusal-arrives", "`google.rpc.BadRequest` lists every one", "error.proto: INVALID_FIELD")
def _large_refusal(session: Session) -> None:
    labels = {f"{'😀' * 60}{number:02}": "x" * 300 for number in range(30)}
    with refused("a batch with a thousand wrong fields", "INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        session.ask_batch([session.request(labels=labels) for _ in range(32)])
    violations = _fields_of(caught.error)
    expect_true("violations", len(violations), condition=bool(violations), expected="as many as fit")
