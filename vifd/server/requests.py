"""The API's requests, checked field by field and turned into vifd's words. Every violation is found before any is told."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, TypeVar

from google.protobuf.message import Message

from vif.v1 import endpoint_service_pb2
from vifd import model
from vifd.endpoints.changes import Change
from vifd.endpoints.engine import Release
from vifd.errors import InvalidRequest, Unsupported, Violation
from vifd.kernel.names import is_endpoint_id

_E = TypeVar("_E", bound=StrEnum)
_NETWORK = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")
_PORT_ID = re.compile(r"[!-~]{1,255}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TEXT_BYTES, _LABELS, _ADDRESSES, _BATCH, _QUEUES = 255, 32, 64, 64, 256
_MTU_BYTES = range(68, 65536)
_VIDS = range(1, 4095)
_MAX_ID = (1 << 32) - 2
_PAGE, _MAX_PAGE = 100, 1000
_TX_QUEUE_LENGTH, _PUBLIC_ADDRESSES = 100_000, 16
_RATE_BPS, _RATE_PPS, _BURST_BYTES = 1 << 40, (1 << 32) - 1, (1 << 32) - 1


#: What of a port can be changed while its VM runs: the contract's name and the model's.
_CHANGEABLE = {
    "guard": "guard_enabled",
    "limits": "limits",
    "addresses": "addresses",
    "vlan": "vlan",
    "isolated": "isolated",
    "mtu_bytes": "mtu_bytes",
    "link_up": "link_up",
    "tx_queue_length": "tx_queue_length",
    "public_addresses": "public_addresses",
}


class _Checker:
    """Collects violations; `at` goes down into a message."""

    def __init__(self, prefix: str = "", found: list[Violation] | None = None) -> None:
        self._prefix = prefix
        self.found: list[Violation] = [] if found is None else found

    def at(self, field: str) -> _Checker:
        return _Checker(f"{self._prefix}{field}.", self.found)

    def require(self, condition: object, field: str, message: str) -> None:
        if not condition:
            self.found.append(Violation(f"{self._prefix}{field}".removesuffix("."), message))

    def known(self, message: Message) -> None:
        """Refuse fields that this vifd doesn't know: an option that can't be honoured is never ignored."""
        size = message.ByteSize()
        message.DiscardUnknownFields()
        self.require(
            message.ByteSize() == size,
            "unknown_fields",
            "this vifd doesn't know them; leave them out, or use a newer vifd",
        )

    def enum(self, message: Any, field: str, default: _E) -> _E:
        """Turn an enum's number into the model's member of the same name; 0 into the default."""
        number, kind = getattr(message, field), message.DESCRIPTOR.fields_by_name[field].enum_type
        name = kind.values_by_number[number].name if number in kind.values_by_number else ""
        self.require(name, field, f"{number} is no value of {kind.name} that this vifd knows")
        return next((member for member in type(default) if name.endswith(f"_{member.name}")), default)

    def endpoint_id(self, text: str, field: str = "endpoint_id") -> str:
        self.require(is_endpoint_id(text), field, "has to be a UUID in canonical lower-case form, and not the nil UUID")
        return text

    def text(self, field: str, text: str) -> str:
        self.require(len(text.encode()) <= _TEXT_BYTES, field, f"is longer than {_TEXT_BYTES} bytes")
        self.require(_CONTROL.search(text) is None, field, "has control characters")
        return text

    def labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        self.require(len(labels) <= _LABELS, "labels", f"has more than {_LABELS} labels")
        for key, value in list(labels.items())[: _LABELS + 1]:
            where = f"labels[{key[:63]!r}]"
            self.require(_LABEL_KEY.fullmatch(key), where, "a key has 1 to 63 letters, digits, '.', '_', '/', '-'")
            self.text(where, value)
        return dict(labels)

    def done(self) -> None:
        if self.found:
            raise InvalidRequest(self.found)


def endpoint_request(message: endpoint_service_pb2.RequestEndpointRequest, caller: model.Caller) -> model.EndpointRequest:
    """Check one request.

    Raises:
        InvalidRequest: with every violation.
        Unsupported: a lifetime that this vifd can't give.
    """
    check = _Checker()
    request = _endpoint_request(check, message, caller)
    check.done()
    return request


def batch_request(
    message: endpoint_service_pb2.BatchRequestEndpointsRequest, caller: model.Caller
) -> list[model.EndpointRequest]:
    """Check a batch of requests.

    Raises:
        InvalidRequest: with every violation.
    """
    check = _Checker()
    _check_batch(check, message, [request.endpoint_id for request in message.requests])
    requests = [_endpoint_request(check.at(f"requests[{i}]"), r, caller) for i, r in enumerate(message.requests)]
    check.require(len({request.validate_only for request in requests}) <= 1, "requests", "differ in validate_only")
    check.done()
    return requests


def of_batch(error: InvalidRequest, requests: Sequence[model.EndpointRequest]) -> InvalidRequest:
    """Say where in a batch the fields are that were found wrong in one of its requests later on."""
    index = next(i for i, request in enumerate(requests) if request.endpoint_id == error.endpoint_id)
    return InvalidRequest([Violation(f"requests[{index}].{field}", message) for field, message in error.violations])


def release(message: endpoint_service_pb2.ReleaseEndpointRequest) -> Release:
    """Check a release.

    Raises:
        InvalidRequest: with every violation.
    """
    check = _Checker()
    check.known(message)
    wanted = Release(check.endpoint_id(message.endpoint_id), message.generation)
    check.done()
    return wanted


def batch_release(message: endpoint_service_pb2.BatchReleaseEndpointsRequest) -> list[Release]:
    """Check a batch of releases.

    Raises:
        InvalidRequest: with every violation.
    """
    check = _Checker()
    check.known(message)
    _check_batch(check, message, [request.endpoint_id for request in message.requests])
    for i, request in enumerate(message.requests):
        check.at(f"requests[{i}]").endpoint_id(request.endpoint_id)
    check.done()
    return [Release(request.endpoint_id, request.generation) for request in message.requests]


def change(message: endpoint_service_pb2.UpdateEndpointRequest) -> Change:
    """Check a change of a port.

    Raises:
        InvalidRequest: with every violation.
    """
    check = _Checker()
    check.known(message)
    endpoint_id_ = check.endpoint_id(message.endpoint_id)
    paths = list(message.update_mask.paths)
    check.require(paths, "update_mask", f"is empty: name what changes, of {', '.join(_CHANGEABLE)}")
    for path in paths[: len(_CHANGEABLE) + 1]:
        what = f"{path[:64]!r} can't be changed; {', '.join(_CHANGEABLE)} can"
        check.require(path in _CHANGEABLE, "update_mask", what)
    port = _port(check.at("port"), message.port)
    check.done()
    return Change(endpoint_id_, port, [_CHANGEABLE[path] for path in paths])


def endpoint_id(message: Any) -> str:
    """Check a request that names an endpoint and nothing else of weight.

    Raises:
        InvalidRequest: with every violation.
    """
    check = _Checker()
    check.known(message)
    named = check.endpoint_id(message.endpoint_id)
    check.done()
    return named


def wanted(message: Any) -> model.Filter:
    """Check a request's filter.

    Raises:
        InvalidRequest: with every violation.
    """
    check = _Checker()
    check.known(message)
    inner = check.at("filter")
    network = message.filter.network
    inner.require(not network or _NETWORK.fullmatch(network), "network", "can't name a network")
    labels = inner.labels(message.filter.labels)
    result = model.Filter(network, inner.text("instance_uuid", message.filter.instance_uuid), labels)
    check.done()
    return result


def page(message: endpoint_service_pb2.ListEndpointsRequest) -> tuple[str, int]:
    """Give the id after which a page begins, and its size.

    Raises:
        InvalidRequest: the token isn't from an answer to the same filter.
    """
    size = min(message.page_size or _PAGE, _MAX_PAGE)
    if not message.page_token:
        return "", size
    after, _, digest = _decode_token(message.page_token).partition(" ")
    if not is_endpoint_id(after) or digest != _filter_digest(message):
        raise InvalidRequest([Violation("page_token", "is from no answer to this filter; begin again without one")])
    return after, size


def page_token(message: endpoint_service_pb2.ListEndpointsRequest, last: str) -> str:
    """Give the token for the page after an id."""
    return base64.urlsafe_b64encode(f"{last} {_filter_digest(message)}".encode()).decode()


def _decode_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


def _filter_digest(message: endpoint_service_pb2.ListEndpointsRequest) -> str:
    return hashlib.sha256(message.filter.SerializeToString(deterministic=True)).hexdigest()[:16]


def _check_batch(check: _Checker, message: Any, ids: Sequence[str]) -> None:
    check.require(
        1 <= len(message.requests) <= _BATCH, "requests", f"has {len(message.requests)} requests; 1 to {_BATCH} are allowed"
    )
    check.done()  # a million empty requests fit in a message: they aren't looked at one by one
    check.require(len(set(ids)) == len(ids), "requests", "has the same endpoint_id twice")


def _endpoint_request(check: _Checker, message: Any, caller: model.Caller) -> model.EndpointRequest:
    check.known(message)
    check.endpoint_id(message.endpoint_id)
    check.require(
        _NETWORK.fullmatch(message.network), "network", "is 1 to 63 characters, a-z, 0-9, '.', '_', '-', first a letter or digit"
    )
    check.require(
        not message.port_id or _PORT_ID.fullmatch(message.port_id),
        "port_id",
        "is up to 255 printable ASCII characters without spaces",
    )
    spec = model.EndpointSpec(
        network=message.network,
        acceptable=_acceptable(check, message.acceptable),
        owner=_owner(check.at("owner"), message.owner, caller),
        port=_port(check.at("port"), message.port),
        instance=_instance(check.at("instance"), message.instance),
        labels=check.labels(message.labels),
        port_id=message.port_id,
        live_migratable=message.require.live_migratable,
    )
    if not check.found and message.lifetime.WhichOneof("until") not in (None, "until_released"):
        raise Unsupported("this vifd keeps every endpoint until it is released; leave lifetime out, or say until_released")
    return model.EndpointRequest(message.endpoint_id, spec, _spec_hash(message), message.validate_only)


def _spec_hash(message: Any) -> str:
    """Hash a request as it came; `validate_only` isn't part of what is asked for."""
    validate_only, message.validate_only = message.validate_only, False
    digest = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
    message.validate_only = validate_only
    return digest


def _acceptable(check: _Checker, messages: Sequence[Any]) -> tuple[model.Preference, ...]:
    check.require(messages, "acceptable", "is empty: name at least one kind that you can attach")
    check.require(len(messages) <= len(model.Kind), "acceptable", "has more preferences than there are kinds")
    kinds = [message.WhichOneof("kind") for message in messages[: len(model.Kind)]]
    for i, kind in enumerate(kinds):
        check.require(kind, f"acceptable[{i}]", "names no kind")
        check.require(
            kind is None or kinds.index(kind) == i, f"acceptable[{i}]", f"names {kind} again; each kind may be there once"
        )
    return tuple(_preference(check.at(f"acceptable[{i}]"), messages[i]) for i, kind in enumerate(kinds) if kind)


def _preference(check: _Checker, message: Any) -> model.Preference:
    kind = message.WhichOneof("kind")
    options, check = getattr(message, kind), check.at(kind)
    queues = getattr(options, "queues", 0) or 1
    check.require(queues <= _QUEUES, "queues", f"{queues} is more than {_QUEUES}")
    match kind:
        case "bridge":
            return model.BridgePreference()
        case "tap":
            return model.TapPreference(queues, _default(options, "vnet_hdr", unset=True))
        case "macvtap":
            mode = check.enum(options, "mode", model.MacvtapMode.BRIDGE)
            return model.MacvtapPreference(mode, queues, _default(options, "vnet_hdr", unset=True))
        case "pci":
            return model.PciPreference(check.enum(options, "host_driver", model.PciHostDriver.VFIO))
        case "ovs_port":
            return model.OvsPortPreference()
        case "vhost_user":
            role = check.enum(options, "hypervisor_role", model.VhostUserRole.SERVER)
            return model.VhostUserPreference(role, queues)
        case _:
            return model.VdpaPreference(queues)


def _owner(check: _Checker, message: Any, caller: model.Caller) -> model.Owner:
    uid = message.uid if message.HasField("uid") else caller.uid
    gid = message.gid if message.HasField("gid") else None
    check.require(uid <= _MAX_ID, "uid", f"{uid} is no user id")
    check.require(gid is None or gid <= _MAX_ID, "gid", f"{gid} is no group id")
    return model.Owner(uid, gid)


def _instance(check: _Checker, message: Any) -> model.Instance:
    check.require(not message.uuid or is_endpoint_id(message.uuid), "uuid", "has to be a UUID in canonical lower-case form")
    return model.Instance(message.uuid, check.text("name", message.name))


def _port(check: _Checker, message: Any) -> model.Port:
    mac = message.mac.lower()
    check.require(not mac or _is_mac(mac), "mac", 'has to be a unicast address that isn\'t zero, like "52:54:00:12:34:56"')
    mtu = message.mtu_bytes
    check.require(mtu == 0 or mtu in _MTU_BYTES, "mtu_bytes", f"{mtu} is not 0, nor {_MTU_BYTES.start} to {_MTU_BYTES.stop - 1}")
    length = message.tx_queue_length
    check.require(length <= _TX_QUEUE_LENGTH, "tx_queue_length", f"{length} is more than {_TX_QUEUE_LENGTH}")
    return model.Port(
        mac=mac,
        mtu_bytes=mtu,
        addresses=_addresses(check, "addresses", message.addresses, _ADDRESSES, _Address.PREFIX),
        vlan=_vlan(check.at("vlan"), message.vlan) if message.HasField("vlan") else None,
        guard_enabled=message.guard.enabled if message.HasField("guard") else None,
        limits=_limits(check.at("limits"), message.limits, mtu) if message.HasField("limits") else None,
        isolated=_default(message, "isolated", unset=None),
        link_up=_default(message, "link_up", unset=None),
        tx_queue_length=length,
        public_addresses=_addresses(check, "public_addresses", message.public_addresses, _PUBLIC_ADDRESSES, _Address.SINGLE),
    )


class _Address(Enum):
    """What may stand where an address is wanted."""

    SINGLE = 1
    PREFIX = 2


def _addresses(check: _Checker, field: str, texts: Sequence[str], most: int, kind: _Address) -> tuple[str, ...]:
    """Give addresses in their canonical form: "10.0.0.7" for one, "10.0.0.0/24" for a prefix."""
    check.require(len(texts) <= most, field, f"has more than {most} addresses")
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for i, text in enumerate(texts[:most]):
        where, network = f"{field}[{i}]", _as_network(text)
        what = "no IP address" if kind is _Address.SINGLE else "no IP address, with or without a prefix length"
        if network is None or (kind is _Address.SINGLE and network.num_addresses > 1):
            check.require(condition=False, field=where, message=f"{text[:64]!r} is {what}")
            continue
        check.require(_is_usable(network), where, f"{text[:64]!r} can't be a VM's: it is multicast, loopback or unspecified")
        same = next((known for known in networks if known.version == network.version and known.overlaps(network)), None)
        check.require(same is None, where, f"{text[:64]!r} is in {same} already")
        networks.append(network)
    return tuple(str(n.network_address) if n.num_addresses == 1 else str(n) for n in networks)


def _vlan(check: _Checker, message: Any) -> model.Vlan:
    vids: Collection[int] = message.trunk_vids
    check.require(message.vid == 0 or message.vid in _VIDS, "vid", f"{message.vid} is not 1 to 4094")
    check.require(message.native_vid == 0 or message.native_vid in _VIDS, "native_vid", f"{message.native_vid} is not 1 to 4094")
    check.require(all(vid in _VIDS for vid in vids), "trunk_vids", "has a VLAN that is not 1 to 4094")
    check.require(len(set(vids)) == len(vids), "trunk_vids", "has a VLAN twice")
    check.require(bool(message.vid) != bool(vids), "", "needs either vid or trunk_vids")
    return model.Vlan(message.vid, tuple(vids), message.native_vid)


def _limits(check: _Checker, message: Any, mtu_bytes: int) -> model.Limits:
    check.require(message.HasField("from_vm") or message.HasField("to_vm"), "", "needs from_vm or to_vm")
    return model.Limits(_limit(check, "from_vm", message, mtu_bytes), _limit(check, "to_vm", message, mtu_bytes))


def _limit(check: _Checker, direction: str, message: Any, mtu_bytes: int) -> model.RateLimit:
    limit, check = getattr(message, direction), check.at(direction)
    rate_bps, burst_bytes, rate_pps = limit.rate_bps, limit.burst_bytes, limit.rate_pps
    given = rate_bps or rate_pps or burst_bytes
    check.require(given or not message.HasField(direction), "", "limits nothing: give rate_bps or rate_pps, or leave it out")
    check.require(rate_bps <= _RATE_BPS, "rate_bps", f"{rate_bps} is more than 2^40")
    check.require(rate_pps <= _RATE_PPS, "rate_pps", f"{rate_pps} is more than 2^32 - 1")
    check.require(burst_bytes <= _BURST_BYTES, "burst_bytes", f"{burst_bytes} is more than 2^32 - 1")
    check.require(not burst_bytes or rate_bps, "burst_bytes", "needs rate_bps")
    least = mtu_bytes or _MTU_BYTES.start
    check.require(
        not burst_bytes or burst_bytes >= least, "burst_bytes", f"{burst_bytes} is less than the MTU: nothing could pass"
    )
    return model.RateLimit(rate_bps, burst_bytes, rate_pps)


def _default(message: Any, field: str, *, unset: Any) -> Any:
    return getattr(message, field) if message.HasField(field) else unset


def _is_mac(text: str) -> bool:
    return _MAC.fullmatch(text) is not None and not int(text[:2], 16) & 1 and text.strip("0:") != ""


def _as_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Turn an address or a prefix into a network; None where it is neither. A zone names an interface of whoever says it."""
    try:
        return None if "%" in text else ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_usable(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    address = network.network_address
    return not (address.is_multicast or address.is_loopback or (address.is_unspecified and network.num_addresses == 1))
