"""RequestEndpoint: what it makes, what it answers, and that it may be repeated."""

from __future__ import annotations

import contextlib
import os

from vif.v1.endpoint_pb2 import EndpointState
from vifclient.errors import DeadlineExceeded
from vifclient.messages import (
    Endpoint,
    EndpointPreference,
    Instance,
    PciDevice,
    PciHostDriver,
    PciPreference,
    PortSpec,
    TapDevice,
)
from vifclient.sanity.check import SkippedError, check, expect, expect_true, refused
from vifclient.sanity.checks.host import outcome_name
from vifclient.sanity.session import KINDS, Session, or_skip, preference

_REQUEST = "endpoint_service.proto: RequestEndpoint"
_LIVE = (EndpointState.ENDPOINT_STATE_READY, EndpointState.ENDPOINT_STATE_ATTACHED, EndpointState.ENDPOINT_STATE_ACTIVE)
_NAME_BYTES = 15


@check("request.makes-what-was-asked-for", "Makes an endpoint: the first of `acceptable` that the network can give.", _REQUEST)
def _makes(session: Session) -> None:
    instance = Instance(uuid="6f9619ff-8b86-4d01-b42d-00cf4fc964ff", name="vif-sanity")
    request = session.request(instance=instance, labels={"role": "web"})
    endpoint = session.ask(request).endpoint
    expect("endpoint_id", endpoint.endpoint_id, request.endpoint_id)
    expect("network", endpoint.network, request.network)
    expect("network_driver", endpoint.network_driver, session.network.network_driver)
    expect("the location's kind", endpoint.WhichOneof("location"), session.kind)
    expect("instance", endpoint.instance, instance)
    expect("labels", dict(endpoint.labels), dict(request.labels))
    expect("owner.uid", endpoint.owner.uid, os.geteuid())
    expect("drifts", list(endpoint.drifts), [])


@check("request.is-ready", "Made, nobody has it open.", "endpoint.proto: EndpointState")
def _is_ready(session: Session) -> None:
    endpoint = session.make()
    expect_true("state", EndpointState.Name(endpoint.state), condition=endpoint.state in _LIVE, expected="READY or later")
    created = endpoint.create_time.seconds
    expect_true("create_time", created, condition=created > 0, expected="when this life began")
    expect_true("generation", endpoint.generation, condition=endpoint.generation > 0, expected="more than 0")


@check(
    "request.port-is-filled-in",
    "what the caller asked for, with every choice that was vifd's filled in",
    "endpoint.proto: Endpoint",
)
def _port_filled_in(session: Session) -> None:
    port = session.make().port
    expect_true("port.mac", port.mac, condition=bool(port.mac), expected="a MAC address")
    for field in ("guard", "isolated", "link_up"):
        expect_true(f"port.{field}", "unset", condition=port.HasField(field), expected="a choice")


@check(
    "request.derived-mac",
    "vifd derives a locally administered one from `endpoint_id`, the same one each time",
    "endpoint.proto: PortSpec",
)
def _derived_mac(session: Session) -> None:
    endpoint = session.make()
    bits = int(endpoint.port.mac[:2] or "0", 16) & 0b11
    expect_true("port.mac", endpoint.port.mac, condition=bits == 0b10, expected="a unicast one, locally administered")
    session.release(endpoint.endpoint_id)
    expect("port.mac of the id's next life", session.make(endpoint.endpoint_id).port.mac, endpoint.port.mac)
    other = session.make().port.mac
    expect_true("port.mac of another id", other, condition=other != endpoint.port.mac, expected="another one")


@check("request.own-mac", "The VM's MAC address", "endpoint.proto: PortSpec")
def _own_mac(session: Session) -> None:
    wanted = random_mac(session)
    expect("port.mac", session.make(port=PortSpec(mac=wanted)).port.mac.lower(), wanted)
    wanted = random_mac(session)
    expect("port.mac of a request in upper case", session.make(port=PortSpec(mac=wanted.upper())).port.mac.lower(), wanted)


def random_mac(session: Session) -> str:
    """Choose a MAC that nobody has: a local one, with letters."""
    digits = session.new_id().replace("-", "")
    return ":".join(["5e", "ab", *(digits[i : i + 2] for i in range(0, 8, 2))])


@check("request.location-is-sound", "What the hypervisor attaches. Unset while PENDING.", "endpoint.proto: Endpoint")
def _location(session: Session) -> None:
    endpoint = session.make()
    location = getattr(endpoint, session.kind)
    may_be_empty = {"ifname"} if isinstance(location, PciDevice) else set()
    for field in ("ifname", "bridge_name", "port_name", "address", "socket_path", "device_path"):
        if field in location.DESCRIPTOR.fields_by_name and field not in may_be_empty:
            expect_true(field, getattr(location, field), condition=bool(getattr(location, field)), expected="a name")
    for field in ("ifname", "bridge_name", "representor"):
        name = getattr(location, field, "")
        expect_true(field, name, condition=len(name.encode()) <= _NAME_BYTES, expected="at most 15 bytes")
    if "queues" in location.DESCRIPTOR.fields_by_name:
        expect_true("queues", location.queues, condition=location.queues >= 1, expected="1 or more")
    if isinstance(location, TapDevice):
        expect("multi_queue", location.multi_queue, location.queues > 1)


@check("request.pci-nodes", "Empty unless `host_driver` is VFIO.", "endpoint.proto: PciDevice")
def _pci_nodes(session: Session) -> None:
    if session.kind != "pci":
        raise SkippedError("only a PCI function is bound to something")
    for driver in (PciHostDriver.PCI_HOST_DRIVER_VFIO, PciHostDriver.PCI_HOST_DRIVER_KERNEL):
        with or_skip("FAILED_PRECONDITION"):
            pci = session.make(acceptable=[EndpointPreference(pci=PciPreference(host_driver=driver))]).pci
        through_vfio = driver == PciHostDriver.PCI_HOST_DRIVER_VFIO
        expect("host_driver", pci.host_driver, driver)
        expect_true("vfio_path", pci.vfio_path, condition=bool(pci.vfio_path) is through_vfio, expected="a path with VFIO alone")
        expect_true("ifname", pci.ifname, condition=not (pci.ifname and through_vfio), expected="a name with KERNEL alone")
        node = pci.vfio_device_path
        expect_true("vfio_device_path", node, condition=not node or through_vfio, expected="a path with VFIO alone")


@check("request.locations-differ", "One attachment point for one virtual network interface", "endpoint.proto: Endpoint")
def _locations_differ(session: Session) -> None:
    first, second = (getattr(session.make(), session.kind) for _ in range(2))
    expect_true("two endpoints' locations", str(second).replace("\n", " "), condition=first != second, expected="different ones")


@check(
    "request.same-spec-same-endpoint",
    "the same request again returns the endpoint that the first made",
    _REQUEST,
)
def _same_spec(session: Session) -> None:
    request = session.request(labels={"b": "2", "a": "1"})
    first = session.ask(request)
    again = session.ask(request)
    expect("the endpoint of the second answer", again.endpoint, first.endpoint)
    expect("considered of the second answer", list(again.considered), list(first.considered))
    expect("endpoints that there are", len(session.listed()), 1)


@check("request.another-spec-refused", "the id has another spec: choose another id", _REQUEST)
def _another_spec(session: Session) -> None:
    endpoint = session.make(labels={"a": "1"})
    others = {
        "labels": session.request(endpoint.endpoint_id, labels={"a": "2"}),
        "instance": session.request(endpoint.endpoint_id, labels={"a": "1"}, instance=Instance(name="other")),
        "port": session.request(endpoint.endpoint_id, labels={"a": "1"}, port=PortSpec(mac=random_mac(session))),
        "acceptable": session.request(
            endpoint.endpoint_id, labels={"a": "1"}, acceptable=[preference(session.kind), preference(_another(session.kind))]
        ),
    }
    for field, other in others.items():
        with refused(f"the same id with another {field}", "ALREADY_EXISTS", "ID_IN_USE"):
            session.ask(other)
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


def _another(kind: str) -> str:
    return next(one for one in KINDS if one != kind)


@check(
    "request.callers-order-decides",
    "The kinds that the caller can attach, best first",
    "endpoint_service.proto: RequestEndpointRequest",
)
def _order(session: Session) -> None:
    for other in session.other_kinds(available=True):
        for kinds in ([session.kind, other], [other, session.kind]):
            request = session.request(acceptable=[preference(kind) for kind in kinds], validate_only=True)
            considered = session.ask(request).considered
            if outcome_name(considered[kinds.index(other)]) in ("CHOSEN", "NOT_NEEDED"):
                expect(f"outcomes of {', '.join(kinds)}", [outcome_name(one) for one in considered], ["CHOSEN", "NOT_NEEDED"])
                continue
            break
        else:
            return
    raise SkippedError(f"network {session.network.name} has one kind alone that this user gets")


@check(
    "request.considered-is-complete",
    "Every preference with its outcome, in the caller's order.",
    "endpoint_service.proto: RequestEndpointResponse",
)
def _considered(session: Session) -> None:
    kinds = [session.kind, *(kind for kind in KINDS if kind != session.kind)]
    considered = session.ask(session.request(acceptable=[preference(kind) for kind in kinds])).considered
    expect("indexes", [one.index for one in considered], list(range(len(kinds))))
    expect("kinds", [KINDS[one.kind - 1] for one in considered], kinds)
    expect("outcome of the first", outcome_name(considered[0]), "CHOSEN")
    for one in considered[1:]:
        outcome = outcome_name(one)
        expect_true("outcome of another", outcome, condition=outcome not in ("CHOSEN", "UNSPECIFIED"), expected="a reason")
        expect_true(f"message of {outcome}", one.message, condition=bool(one.message), expected="a sentence")


@check("request.unavailable-is-passed-over", "the first of `acceptable` that the network can give", _REQUEST)
def _passed_over(session: Session) -> None:
    others = session.other_kinds(available=False)
    if not others:
        raise SkippedError(f"network {session.network.name} can make every kind")
    kinds = [others[0], session.kind]
    answer = session.ask(session.request(acceptable=[preference(kind) for kind in kinds]))
    expect("the location's kind", answer.endpoint.WhichOneof("location"), session.kind)
    expect("outcome of the second", outcome_name(answer.considered[1]), "CHOSEN")


@check(
    "validate.changes-nothing",
    "Only says what would be made, and why; changes nothing and takes no id.",
    "endpoint_service.proto: RequestEndpointRequest",
)
def _validate_only(session: Session) -> None:
    request = session.request(validate_only=True)
    session.ask(request)
    expect("endpoint after validate_only", session.find(request.endpoint_id), None)
    expect("list after validate_only", session.listed(), [])
    session.make(request.endpoint_id, labels={"another": "spec"})


@check(
    "validate.says-what-would-be",
    "as it would be (state PENDING, generation 0, no location, no create_time)",
    "endpoint_service.proto: RequestEndpointResponse",
)
def _validate_answer(session: Session) -> None:
    request = session.request(validate_only=True)
    answer = session.ask(request)
    endpoint: Endpoint = answer.endpoint
    expect("state", EndpointState.Name(endpoint.state), "ENDPOINT_STATE_PENDING")
    expect("generation", endpoint.generation, 0)
    expect("location", endpoint.WhichOneof("location"), None)
    expect("create_time is set", endpoint.HasField("create_time"), False)
    expect("outcomes", [outcome_name(one) for one in answer.considered], ["CHOSEN"])
    request.validate_only = False
    made = session.ask(request).endpoint
    expect("port.mac as it was said", made.port.mac, endpoint.port.mac)


@check("validate.refuses-what-a-request-would-be-refused", "the id has another spec: choose another id", _REQUEST)
def _validate_refuses(session: Session) -> None:
    endpoint = session.make()
    with refused("validate_only with an id of another spec", "ALREADY_EXISTS", "ID_IN_USE"):
        session.make(endpoint.endpoint_id, labels={"another": "spec"}, validate_only=True)


@check(
    "request.cut-off-may-be-repeated",
    "may or may not have made it: repeat it to get it, or release the id",
    _REQUEST,
)
def _cut_off(session: Session) -> None:
    for timeout_s in (0.0001, 0.001, 0.003, 0.01):
        request = session.request()
        with contextlib.suppress(DeadlineExceeded):
            session.call("RequestEndpoint", request, timeout_s=timeout_s)
        endpoint = session.ask(request).endpoint
        expect("the endpoint of the repeated request", session.find(request.endpoint_id), endpoint)
        abandoned = session.request()
        with contextlib.suppress(DeadlineExceeded):
            session.call("RequestEndpoint", abandoned, timeout_s=timeout_s)
        session.release(abandoned.endpoint_id)


@check("request.each-life-a-larger-generation", "after a release, the next life has a larger number", "endpoint.proto: Endpoint")
def _generations(session: Session) -> None:
    endpoint_id, last = session.new_id(), 0
    for life in range(3):
        generation = session.make(endpoint_id).generation
        expect_true(f"generation of life {life + 1}", generation, condition=generation > last, expected=f"more than {last}")
        session.release(endpoint_id)
        last = generation
