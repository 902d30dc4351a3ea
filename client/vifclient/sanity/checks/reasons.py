"""The table of errors: for every reason of the contract, a call that meets it, and what its status has to carry."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial

from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from vif.v1.endpoint_service_pb2 import GetEndpointRequest
from vif.v1.error_pb2 import NegotiationFailure
from vifclient.messages import Feature, Lifetime, PortSpec, ProcessLifetime, Requirements
from vifclient.sanity.check import CHECKS, Check, SkippedError, expect, expect_true, refused
from vifclient.sanity.checks.requests import random_mac
from vifclient.sanity.session import KINDS, Session, kind_name, preference

_WORDS = 4
_STATUS = 'Every error status carries a `google.rpc.ErrorInfo` with `domain` "vifd" and one of these names'


def _invalid_field(session: Session) -> None:
    session.make(port=PortSpec(mac="zz"))


def _id_in_use(session: Session) -> None:
    session.make(session.make().endpoint_id, labels={"another": "spec"})


def _unknown_network(session: Session) -> None:
    session.make(network="vif-sanity-none")


def _unknown_endpoint(session: Session) -> None:
    session.call("GetEndpoint", GetEndpointRequest(endpoint_id=session.new_id()))


def _no_acceptable_kind(session: Session) -> None:
    others = session.other_kinds(available=False)
    rigid = [
        kind_name(offer.kind)
        for offer in session.network.offers
        if offer.available and Feature.FEATURE_LIVE_MIGRATION not in offer.features
    ]
    if others:
        session.make(acceptable=[preference(kind) for kind in others])
    elif rigid:
        session.make(acceptable=[preference(kind) for kind in rigid], require=Requirements(live_migratable=True))
    else:
        raise SkippedError(f"network {session.network.name} can make every kind, and a VM can move with each")


def _stale_generation(session: Session) -> None:
    old = session.make()
    session.release(old.endpoint_id)
    session.make(old.endpoint_id)
    session.release(old.endpoint_id, old.generation)


def _unsupported(session: Session) -> None:
    asking = {
        Feature.FEATURE_TX_QUEUE_LENGTH: PortSpec(tx_queue_length=77),
        Feature.FEATURE_ISOLATION: PortSpec(isolated=True),
        Feature.FEATURE_PUBLIC_ADDRESSES: PortSpec(public_addresses=["203.0.113.5"]),
    }
    port = next((port for feature, port in asking.items() if not session.has(feature)), None)
    if port is not None:
        session.make(port=port)
    elif not session.has(Feature.FEATURE_PORT_ID):
        session.make(port_id="7f4c9a2e")
    else:
        raise SkippedError(f"{session.kind} on network {session.network.name} can do everything")


def _address_in_use(session: Session) -> None:
    mac = random_mac(session)
    session.make(port=PortSpec(mac=mac))
    session.make(port=PortSpec(mac=mac))


def _no_process(session: Session) -> None:
    with subprocess.Popen(["true"]) as ended:  # noqa: S607  the caller's own
        pass
    session.make(lifetime=Lifetime(process=ProcessLifetime(pid=ended.pid)))


#: By reason: the status code, a call that meets it, and the detail that its status has beside the ErrorInfo.
_SHOWN: dict[str, tuple[str, Callable[[Session], None], type | None]] = {
    "INVALID_FIELD": ("INVALID_ARGUMENT", _invalid_field, BadRequest),
    "ID_IN_USE": ("ALREADY_EXISTS", _id_in_use, None),
    "UNKNOWN_NETWORK": ("NOT_FOUND", _unknown_network, None),
    "UNKNOWN_ENDPOINT": ("NOT_FOUND", _unknown_endpoint, None),
    "NO_ACCEPTABLE_KIND": ("FAILED_PRECONDITION", _no_acceptable_kind, NegotiationFailure),
    "STALE_GENERATION": ("FAILED_PRECONDITION", _stale_generation, None),
    "UNSUPPORTED": ("UNIMPLEMENTED", _unsupported, None),
    "ADDRESS_IN_USE": ("FAILED_PRECONDITION", _address_in_use, None),
    "NO_PROCESS": ("FAILED_PRECONDITION", _no_process, None),
}
#: By reason: why nobody can show it by the socket alone, without harm.
_UNSEEN = {
    "WRONG_STATE": "it takes a kernel that refuses a release; but see activate.nobody-has-it-open",
    "HOST_NOT_READY": "it takes a host that lacks what its configuration names",
    "NETWORK_FULL": "it takes a full network, and others may need its room",
    "QUOTA": "it takes a policy with max_endpoints for this user",
    "OVERLOADED": "it takes more watchers than the daemon serves, and others may be among them",
    "UNKNOWN_CALLER": "it takes a way around the public socket",
    "NOT_ALLOWED": "it takes another user: see owner.another-user-refused",
    "TRY_AGAIN": "it takes a daemon that starts or stops",
    "KERNEL": "it takes a kernel that says no",
    "BUG": "it takes a bug",
}


def _is_told(reason: str, session: Session) -> None:
    code, meet, detail = _SHOWN[reason]
    with refused(f"a call that meets {reason}", code, reason) as caught:
        meet(session)
    error = caught.error
    infos = [one for one in error.details if isinstance(one, ErrorInfo)]
    expect("ErrorInfo: domain and reason", [(info.domain, info.reason) for info in infos], [("vifd", reason)])
    expect_true("message", error.message, condition=len(error.message.split()) >= _WORDS, expected="a sentence")
    if detail is not None:
        names = ", ".join(type(one).__name__ for one in error.details)
        found = any(isinstance(one, detail) for one in error.details)
        expect_true("details", names, condition=found, expected=f"{detail.__name__} among them")


def _is_unseen(reason: str, _session: Session) -> None:
    raise SkippedError(f"the socket alone can't show it: {_UNSEEN[reason]}")


def _register() -> None:
    shown = {reason: partial(_is_told, reason) for reason in _SHOWN}
    unseen = {reason: partial(_is_unseen, reason) for reason in _UNSEEN}
    for reason, run in (shown | unseen).items():
        CHECKS.append(Check(f"error.{reason.lower().replace('_', '-')}", _STATUS, "error.proto: ErrorReason", run))


_register()


def _considered(session: Session) -> None:
    kinds = session.other_kinds(available=False)
    if not kinds:
        raise SkippedError(f"network {session.network.name} can make every kind")
    with refused("a request for kinds that can't be made", "FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
        session.make(acceptable=[preference(kind) for kind in kinds])
    considered = [one for detail in caught.error.details for one in getattr(detail, "considered", ())]
    expect("indexes", [one.index for one in considered], list(range(len(kinds))))
    expect("kinds", [KINDS[one.kind - 1] for one in considered], kinds)
    for one in considered:
        expect_true("message of a kind that can't be made", one.message, condition=bool(one.message), expected="a sentence")
    expect("endpoints that there are", session.listed(), [])


CHECKS.append(
    Check(
        "error.no-acceptable-kind-says-why-for-each",
        "Every preference, in the caller's order.",
        "error.proto: NegotiationFailure",
        _considered,
    )
)
