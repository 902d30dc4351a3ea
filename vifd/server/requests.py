"""The API's requests, checked field by field and turned into vifd's words. Every violation is found before any is told."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Any

from vif.v1 import endpoint_service_pb2
from vifd import model
from vifd.endpoints.changes import Change
from vifd.endpoints.engine import Release
from vifd.endpoints.garbage import Collection
from vifd.errors import InvalidRequest, Violation
from vifd.kernel.names import is_endpoint_id
from vifd.server import pairs, ports
from vifd.server.checker import Checker, optional

_NETWORK = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PORT_ID = re.compile(r"[!-~]{1,255}")
_BATCH, _QUEUES, _WRONG_IDS = 64, 256, 64
_MAX_ID, _MAX_PID = (1 << 32) - 2, 1 << 22  # PID_MAX_LIMIT, linux/threads.h
_NUMA_NODES = range(1 << 10)  # MAX_NUMNODES at its largest, linux/numa.h
_MIN_TTL_NS, _MAX_TTL_NS = 1_000_000_000, 366 * 86_400 * 1_000_000_000
_PAGE, _MAX_PAGE = 100, 1000

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
    "trusted": "trusted",
}


def endpoint_request(message: endpoint_service_pb2.RequestEndpointRequest, caller: model.Caller) -> model.EndpointRequest:
    """Check one request.

    Raises:
        InvalidRequest: with every violation.
    """
    check = Checker()
    request = _endpoint_request(check, message, caller)
    alone = not message.partner_endpoint_id
    check.require(alone, "partner_endpoint_id", "a pair is asked for with BatchRequestEndpoints, both parts in one call")
    check.done()
    return request


def batch_request(
    message: endpoint_service_pb2.BatchRequestEndpointsRequest, caller: model.Caller
) -> list[model.EndpointRequest]:
    """Check a batch of requests.

    Raises:
        InvalidRequest: with every violation.
    """
    check = Checker()
    _check_batch(check, message, [request.endpoint_id for request in message.requests])
    requests = [_endpoint_request(check.at(f"requests[{i}]"), r, caller) for i, r in enumerate(message.requests)]
    requests = pairs.settle(check, requests)
    check.known(message)  # after the requests: each names its own unknown fields, and this one drops them from the whole
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
    check = Checker()
    check.known(message)
    wanted = Release(check.endpoint_id(message.endpoint_id), message.generation)
    check.done()
    return wanted


def batch_release(message: endpoint_service_pb2.BatchReleaseEndpointsRequest) -> list[Release]:
    """Check a batch of releases.

    Raises:
        InvalidRequest: with every violation.
    """
    check = Checker()
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
    check = Checker()
    check.known(message)
    endpoint_id_ = check.endpoint_id(message.endpoint_id)
    paths = list(message.update_mask.paths)
    check.require(paths, "update_mask", f"is empty: name what changes, of {', '.join(_CHANGEABLE)}")
    for path in paths[: len(_CHANGEABLE) + 1]:
        what = f"{path[:64]!r} can't be changed; {', '.join(_CHANGEABLE)} can"
        check.require(path in _CHANGEABLE, "update_mask", what)
    port = ports.port(check.at("port"), message.port)
    check.done()
    return Change(endpoint_id_, port, [_CHANGEABLE[path] for path in paths])


def collection(message: endpoint_service_pb2.CollectGarbageRequest) -> Collection:
    """Check what is to be collected.

    Raises:
        InvalidRequest: with every violation.
    """
    check = Checker()
    check.known(message)
    keep = frozenset(message.keep_endpoint_ids)
    # A million empty ids fit in a message: of those that are wrong, the first few are told.
    wrong = (i for i, name in enumerate(message.keep_endpoint_ids) if not is_endpoint_id(name))
    for i in itertools.islice(wrong, _WRONG_IDS):
        check.endpoint_id(message.keep_endpoint_ids[i], f"keep_endpoint_ids[{i}]")
    everything = "is empty, which releases all of your endpoints; say allow_empty if that is meant"
    check.require(keep or message.allow_empty, "keep_endpoint_ids", everything)
    network = message.network
    check.require(not network or _NETWORK.fullmatch(network), "network", "can't name a network")
    check.done()
    return Collection(keep, network, dry_run=message.dry_run)


def endpoint_id(message: Any) -> str:
    """Check a request that names an endpoint and nothing else of weight.

    Raises:
        InvalidRequest: with every violation.
    """
    check = Checker()
    check.known(message)
    named = check.endpoint_id(message.endpoint_id)
    check.done()
    return named


def nothing(message: Any) -> None:
    """Check a request that asks for nothing in particular.

    Raises:
        InvalidRequest: it does.
    """
    check = Checker()
    check.known(message)
    check.done()


def wanted(message: Any) -> model.Filter:
    """Check a request's filter.

    Raises:
        InvalidRequest: with every violation.
    """
    check = Checker()
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


def _check_batch(check: Checker, message: Any, ids: Sequence[str]) -> None:
    check.require(
        1 <= len(message.requests) <= _BATCH, "requests", f"has {len(message.requests)} requests; 1 to {_BATCH} are allowed"
    )
    check.done()  # a million empty requests fit in a message: they aren't looked at one by one
    check.require(len(set(ids)) == len(ids), "requests", "has the same endpoint_id twice")


def _endpoint_request(check: Checker, message: Any, caller: model.Caller) -> model.EndpointRequest:
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
        port=ports.port(check.at("port"), message.port),
        instance=_instance(check.at("instance"), message.instance),
        labels=check.labels(message.labels),
        port_id=message.port_id,
        live_migratable=message.require.live_migratable,
        lifetime=_lifetime(check.at("lifetime"), message.lifetime),
        partner_endpoint_id=message.partner_endpoint_id,
    )
    return model.EndpointRequest(message.endpoint_id, spec, _spec_hash(message), message.validate_only)


def _lifetime(check: Checker, message: Any) -> model.Lifetime | None:
    match message.WhichOneof("until"):
        case "process":
            pid = message.process.pid
            check.require(pid <= _MAX_PID, "process.pid", f"{pid} is no process id")
            return model.ProcessLifetime(pid)
        case "lease":
            ttl = message.lease.ttl
            ttl_ns = ttl.seconds * 1_000_000_000 + ttl.nanos
            well_formed = 0 <= ttl.nanos < 1_000_000_000
            check.require(well_formed and _MIN_TTL_NS <= ttl_ns <= _MAX_TTL_NS, "lease.ttl", "has to be 1 second to 366 days")
            return model.LeaseLifetime(ttl_ns)
        case _:
            return None


def _spec_hash(message: Any) -> str:
    """Hash a request as it came; `validate_only` isn't part of what is asked for."""
    validate_only, message.validate_only = message.validate_only, False
    digest = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
    message.validate_only = validate_only
    return digest


def _acceptable(check: Checker, messages: Sequence[Any]) -> tuple[model.Preference, ...]:
    check.require(messages, "acceptable", "is empty: name at least one kind that you can attach")
    check.require(len(messages) <= len(model.Kind), "acceptable", "has more preferences than there are kinds")
    kinds = [message.WhichOneof("kind") for message in messages[: len(model.Kind)]]
    for i, kind in enumerate(kinds):
        check.require(kind, f"acceptable[{i}]", "names no kind")
        check.require(
            kind is None or kinds.index(kind) == i, f"acceptable[{i}]", f"names {kind} again; each kind may be there once"
        )
    return tuple(_preference(check.at(f"acceptable[{i}]"), messages[i]) for i, kind in enumerate(kinds) if kind)


def _preference(check: Checker, message: Any) -> model.Preference:
    kind = message.WhichOneof("kind")
    options, check = getattr(message, kind), check.at(kind)
    queues = getattr(options, "queues", 0) or 1
    check.require(queues <= _QUEUES, "queues", f"{queues} is more than {_QUEUES}")
    match kind:
        case "bridge":
            return model.BridgePreference()
        case "tap":
            return model.TapPreference(queues, optional(options, "vnet_hdr", unset=True))
        case "macvtap":
            mode = check.enum(options, "mode", model.MacvtapMode.BRIDGE) if options.mode else None
            return model.MacvtapPreference(mode, queues, optional(options, "vnet_hdr", unset=True))
        case "pci":
            return model.PciPreference(check.enum(options, "host_driver", model.PciHostDriver.VFIO))
        case "ovs_port":
            return model.OvsPortPreference()
        case "vhost_user":
            role = check.enum(options, "hypervisor_role", model.VhostUserRole.SERVER)
            return model.VhostUserPreference(role, queues)
        case _:
            return model.VdpaPreference(queues)


def _owner(check: Checker, message: Any, caller: model.Caller) -> model.Owner:
    uid = message.uid if message.HasField("uid") else caller.uid
    gid = message.gid if message.HasField("gid") else None
    check.require(uid <= _MAX_ID, "uid", f"{uid} is no user id")
    check.require(gid is None or gid <= _MAX_ID, "gid", f"{gid} is no group id")
    return model.Owner(uid, gid)


def _instance(check: Checker, message: Any) -> model.Instance:
    check.require(not message.uuid or is_endpoint_id(message.uuid), "uuid", "has to be a UUID in canonical lower-case form")
    numa_node = optional(message, "numa_node", unset=None)
    known = numa_node is None or numa_node in _NUMA_NODES
    check.require(known, "numa_node", f"{numa_node} is more than {_NUMA_NODES.stop - 1}")
    return model.Instance(message.uuid, check.text("name", message.name), numa_node)
