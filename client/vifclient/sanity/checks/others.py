"""CheckEndpoint, ActivateEndpoint, CollectGarbage, and how long endpoints live. Nobody has to have all of these."""

from __future__ import annotations

import os
import subprocess
import time

from google.protobuf.duration_pb2 import Duration

from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.endpoint_pb2 import EndpointState
from vifclient.messages import LeaseLifetime, Lifetime, ProcessLifetime, UntilReleased
from vifclient.sanity.check import SkippedError, check, expect, expect_true, refused
from vifclient.sanity.session import Session, or_skip

_SERVICE = "endpoint_service.proto: "
_CHECK, _GARBAGE = f"{_SERVICE}CheckEndpoint", f"{_SERVICE}CollectGarbage"
_ACTIVATE = f"{_SERVICE}ActivateEndpoint"
_LEASE_S, _PART_OF_LEASE_S = 2, 1.2  # the part is more than the half: a call that renews nothing is noticed
_UNKNOWN = "no such endpoint, or none that the caller may see"


@check("check.a-new-endpoint-is-well", "Compares an endpoint with what is there now", _CHECK)
def _is_well(session: Session) -> None:
    endpoint = session.make()
    for repair in (False, True):
        with or_skip("UNIMPLEMENTED"):
            answer = session.call("CheckEndpoint", pb.CheckEndpointRequest(endpoint_id=endpoint.endpoint_id, repair=repair))
        expect("drifts", list(answer.drifts), [])
        expect("the endpoint", answer.endpoint, endpoint)
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


@check("check.unknown-endpoint", _UNKNOWN, "error.proto: UNKNOWN_ENDPOINT")
def _check_unknown(session: Session) -> None:
    with refused("a check of an unknown endpoint", "NOT_FOUND", "UNKNOWN_ENDPOINT"), or_skip("UNIMPLEMENTED"):
        session.call("CheckEndpoint", pb.CheckEndpointRequest(endpoint_id=session.new_id()))


@check("activate.unknown-endpoint", _UNKNOWN, "error.proto: UNKNOWN_ENDPOINT")
def _activate_unknown(session: Session) -> None:
    with refused("an activation of an unknown endpoint", "NOT_FOUND", "UNKNOWN_ENDPOINT"), or_skip("UNIMPLEMENTED"):
        session.call("ActivateEndpoint", pb.ActivateEndpointRequest(endpoint_id=session.new_id()))


@check("activate.nobody-has-it-open", "it is being taken down, or nobody has its tap open", _ACTIVATE)
def _activate_unopened(session: Session) -> None:
    if session.kind != "tap":
        raise SkippedError(f"nobody but the hypervisor knows of kind {session.kind}; see activate.says-where-the-vm-runs")
    if session.network.network_driver == "fake":
        raise SkippedError("a pretended tap is never opened, so the caller's word counts")
    endpoint = session.make()
    with refused("an activation of a tap that nobody has open", "FAILED_PRECONDITION", "WRONG_STATE"), or_skip("UNIMPLEMENTED"):
        session.call("ActivateEndpoint", pb.ActivateEndpointRequest(endpoint_id=endpoint.endpoint_id))
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


@check("activate.says-where-the-vm-runs", "Idempotent: who is ACTIVE stays so, and isn't announced again.", _ACTIVATE)
def _activate(session: Session) -> None:
    if session.kind == "tap":
        raise SkippedError("it takes a hypervisor that has the tap open")
    endpoint = session.make()
    request = pb.ActivateEndpointRequest(endpoint_id=endpoint.endpoint_id)
    with or_skip("UNIMPLEMENTED"):
        active = session.call("ActivateEndpoint", request).endpoint
    expect("state", EndpointState.Name(active.state), "ENDPOINT_STATE_ACTIVE")
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), active)
    expect("the endpoint after the same again", session.call("ActivateEndpoint", request).endpoint, active)


@check("garbage.empty-set-refused", "an empty set without `allow_empty`", _GARBAGE)
def _empty_set(session: Session) -> None:
    endpoint = session.make()
    with refused("garbage without what to keep", "INVALID_ARGUMENT", "INVALID_FIELD"), or_skip("UNIMPLEMENTED"):
        session.call("CollectGarbage", pb.CollectGarbageRequest(dry_run=True))
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


@check("garbage.dry-run", "Only say which would be released.", f"{_SERVICE}CollectGarbageRequest")
def _dry_run(session: Session) -> None:
    kept, other = session.make(), session.make()
    request = pb.CollectGarbageRequest(
        keep_endpoint_ids=[kept.endpoint_id], network=session.network.name, dry_run=True
    )  # only ever so: what else the caller has is none of ours
    with or_skip("UNIMPLEMENTED"):
        released = list(session.call("CollectGarbage", request).released_endpoint_ids)
    expect_true("what would be released", released, condition=other.endpoint_id in released, expected=other.endpoint_id)
    expect_true("what would be released", released, condition=kept.endpoint_id not in released, expected="not what is kept")
    expect("the endpoint afterwards", session.find(other.endpoint_id), other)


@check("lifetime.until-released", "Unset: until it is released.", "endpoint.proto: Lifetime")
def _until_released(session: Session) -> None:
    endpoint = session.make(lifetime=Lifetime(until_released=UntilReleased()))
    expect("the endpoint", session.find(endpoint.endpoint_id), endpoint)
    session.make(lifetime=Lifetime())


@check("lifetime.lease-too-short", "The time to live after each renewal, 1 second to", "endpoint.proto: LeaseLifetime")
def _lease_too_short(session: Session) -> None:
    lifetime = Lifetime(lease=LeaseLifetime(ttl=Duration(nanos=999_999_999)))
    with refused("a lease of less than a second", "INVALID_ARGUMENT", "INVALID_FIELD"), or_skip("UNIMPLEMENTED"):
        session.make(lifetime=lifetime)


@check("lifetime.lease-ends", "Until nobody has renewed it for a while.", "endpoint.proto: LeaseLifetime")
def _lease_ends(session: Session) -> None:
    with session.watch() as watch:
        watch.until_synced()
        with or_skip("UNIMPLEMENTED"):
            endpoint = session.make(lifetime=Lifetime(lease=LeaseLifetime(ttl=Duration(seconds=1))))
        watch.until("REMOVED", endpoint.endpoint_id)
    expect("the endpoint whose lease is over", session.find(endpoint.endpoint_id), None)


@check(
    "lifetime.lease-is-renewed",
    "Each call on the endpoint by somebody who may release it renews it",
    "endpoint.proto: LeaseLifetime",
)
def _lease_is_renewed(session: Session) -> None:
    request = session.request(lifetime=Lifetime(lease=LeaseLifetime(ttl=Duration(seconds=_LEASE_S))))
    began_s = time.monotonic()
    with or_skip("UNIMPLEMENTED"):
        endpoint = session.ask(request).endpoint
    time.sleep(_PART_OF_LEASE_S)
    session.call("GetEndpoint", pb.GetEndpointRequest(endpoint_id=endpoint.endpoint_id))
    time.sleep(_PART_OF_LEASE_S)
    session.ask(request)  # makes the next life, where the call before it renewed nothing
    time.sleep(_PART_OF_LEASE_S)
    left = session.find(endpoint.endpoint_id)
    if time.monotonic() - began_s > 2 * _PART_OF_LEASE_S + _LEASE_S:
        raise SkippedError("the daemon, or this program, is too busy: the lease may have ended before a call came")
    what = f"the generation of an endpoint on a lease of {_LEASE_S} s, called for every {_PART_OF_LEASE_S} s"
    expect(what, left and left.generation, endpoint.generation)


@check("lifetime.process-ends", "Until a process ends.", "endpoint.proto: ProcessLifetime")
def _process_ends(session: Session) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # noqa: S607  the caller's own cat; ends with its input
    try:
        with session.watch() as watch:
            watch.until_synced()
            with or_skip("UNIMPLEMENTED", "PERMISSION_DENIED"):
                endpoint = session.make(lifetime=Lifetime(process=ProcessLifetime(pid=process.pid)))
            expect("the endpoint while the process lives", session.find(endpoint.endpoint_id), endpoint)
            process.communicate()
            watch.until("REMOVED", endpoint.endpoint_id)
    finally:
        process.kill()
        process.communicate()
    expect("the endpoint whose process is gone", session.find(endpoint.endpoint_id), None)


@check(
    "owner.another-user-refused", "the caller's own unless the caller is a delegate or an administrator", "endpoint.proto: Owner"
)
def _another_owner(session: Session) -> None:
    if os.geteuid() == 0:
        raise SkippedError("root may make endpoints for anybody; run vif-sanity as an ordinary user")
    request = session.request()
    request.owner.uid = os.geteuid() + 1
    with refused("an endpoint for another user", "PERMISSION_DENIED", "NOT_ALLOWED"):
        session.ask(request)
        raise SkippedError("the policy makes this user a delegate, who may make endpoints for anybody")
