"""What can go wrong, arranged by what the caller does next.

    VifError
    ├── RequestError                 change the request; the same call again fails again
    │   ├── InvalidArgument          correct every field of `violations`
    │   ├── NotFound                 no such network or endpoint, or none that the caller may see
    │   ├── AlreadyExists            choose another id, or release the old endpoint first
    │   ├── NoAcceptableKind         accept another kind; `considered` says why none would do
    │   ├── StaleGeneration          do nothing: the life that was meant is over
    │   ├── AddressInUse             ask for another address or MAC: it is another endpoint's, or the network's own
    │   ├── NoProcess                start the process that the endpoint is to live as long as, or name another
    │   ├── WrongState               read the endpoint again, then decide
    │   └── Unsupported              ask without that call or option
    ├── HostError                    something on this host has to change first
    │   ├── NotAllowed               ask the administrator: the policy doesn't allow it
    │   │   └── SocketDenied         ask to be added to the socket's group, or run as another user
    │   ├── Exhausted                release something, or ask for more room
    │   ├── HostNotReady             tell the administrator: a bridge, uplink or PF is missing, or the kernel is too old
    │   └── FdsTruncated             raise this process's limit of open files
    ├── TransientError               the same call again is safe
    │   ├── Unavailable              vifd starts or stops, or what stands behind it does; the client has retried already
    │   │   └── Unreachable          nobody answers on the socket; the message says why and what to do
    │   ├── Overloaded               watch again: the stream starts with all that is current
    │   └── DeadlineExceeded         it may or may not have happened: repeat it to know, or release the id
    └── ServerError                  report it: the kernel said no and all is undone, or a bug

Every error is made here, from a gRPC status (`from_rpc`) or from the fd socket's answer (`from_status`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as rpc_details
from grpc_status import rpc_status

from vif.v1.error_pb2 import Consideration, NegotiationFailure

_M = TypeVar("_M", bound=Message)


class VifError(Exception):
    """A call that failed.

    Attributes:
        code: The gRPC status code.
        reason: vifd's reason: a name of `vif.v1.ErrorReason` without its prefix. Empty where vifd was not the one to speak.
        message: What is wrong and what to do, for people.
        details: The messages of the status, unpacked: `google.rpc.ErrorInfo` and what else it carries.
        metadata: The ErrorInfo's metadata: with reason KERNEL for example `operation`, `device` and `errno`.
        retry_delay_s: When the same call may succeed, in seconds from now. None: vifd didn't say.
    """

    # The code of errors that this client makes by itself.
    own_code = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        details: Sequence[Message] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.own_code
        self.reason = reason
        self.details = tuple(details)
        info = _first(details, rpc_details.ErrorInfo)
        retry = _first(details, rpc_details.RetryInfo)
        self.metadata: Mapping[str, str] = dict(info.metadata) if info else {}
        self.retry_delay_s: float | None = retry.retry_delay.ToTimedelta().total_seconds() if retry else None


class RequestError(VifError):
    """The request can't be fulfilled as it is: change it."""


class InvalidArgument(RequestError):
    """Fields are missing or malformed: correct every one of `violations`.

    Attributes:
        violations: Each field with what is wrong with it.
    """

    @property
    def violations(self) -> list[tuple[str, str]]:
        """Each field with what is wrong with it."""
        bad = _first(self.details, rpc_details.BadRequest)
        return [(violation.field, violation.description) for violation in bad.field_violations] if bad else []


class NotFound(RequestError):
    """There is no such network or endpoint, or none that the caller may use or see."""


class AlreadyExists(RequestError):
    """The id is in use with another spec: choose another id, or release the old endpoint first."""


class NoAcceptableKind(RequestError):
    """None of the acceptable kinds can be made: accept another one."""

    @property
    def considered(self) -> list[Consideration]:
        """Every preference of the request with the reason why it would not do, in the caller's order."""
        failure = _first(self.details, NegotiationFailure)
        return list(failure.considered) if failure else []


class StaleGeneration(RequestError):
    """The release names a life of the endpoint that is over: nothing of the caller's is left, so do nothing."""


class AddressInUse(RequestError):
    """An address or the MAC is another endpoint's, or the network's own: ask for another."""


class NoProcess(RequestError):
    """There is no process (any more) for the endpoint to live as long as: start it first, or name another."""


class WrongState(RequestError):
    """The endpoint isn't in a state that allows the call: read it again, then decide."""


class Unsupported(RequestError):
    """This vifd, or the network's driver, can't do this call or option: ask without it."""

    own_code = grpc.StatusCode.UNIMPLEMENTED


class HostError(VifError):
    """Something on this host has to change before the same call can succeed."""


class NotAllowed(HostError):
    """The policy doesn't allow it to this caller: ask the administrator."""

    own_code = grpc.StatusCode.PERMISSION_DENIED


class SocketDenied(NotAllowed):
    """This user may not open vifd's socket. The message says whose it is and what to do."""


class Exhausted(HostError):
    """The network is full or a quota is reached: release something."""


class HostNotReady(HostError):
    """A bridge, uplink or PF of the configuration isn't there or isn't what it should be, or this kernel can't do it: tell the
    administrator.
    """


class FdsTruncated(HostError):
    """The kernel dropped descriptors on their way: raise this process's limit of open files (RLIMIT_NOFILE)."""

    own_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class TransientError(VifError):
    """The same call again is safe, and may succeed."""


class Unavailable(TransientError):
    """vifd starts or stops, or a system behind it isn't reachable. The client has retried as long as its time allowed."""

    own_code = grpc.StatusCode.UNAVAILABLE


class Unreachable(Unavailable):
    """Nobody answers on vifd's socket. The message says which socket, why, and what to do."""


class Overloaded(TransientError):
    """A watcher was too slow, or there are too many: watch again, the stream starts with all that is current."""


class DeadlineExceeded(TransientError):
    """The time ran out. The call may or may not have been done: repeat it to know, or release the id."""

    own_code = grpc.StatusCode.DEADLINE_EXCEEDED


class ServerError(VifError):
    """The kernel said no and what was done is undone, or a bug in vifd: report it."""

    own_code = grpc.StatusCode.INTERNAL


_BY_REASON: Mapping[str, type[VifError]] = {
    "NO_ACCEPTABLE_KIND": NoAcceptableKind,
    "STALE_GENERATION": StaleGeneration,
    "WRONG_STATE": WrongState,
    "ADDRESS_IN_USE": AddressInUse,
    "NO_PROCESS": NoProcess,
    "HOST_NOT_READY": HostNotReady,
    "OVERLOADED": Overloaded,
}
# A reason that this client doesn't know yet still lands on the right branch.
_BY_CODE: Mapping[grpc.StatusCode, type[VifError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # What a server that stops does to the calls it doesn't wait for.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_DETAILS: Sequence[type[Message]] = (
    rpc_details.ErrorInfo,
    rpc_details.BadRequest,
    rpc_details.RetryInfo,
    rpc_details.QuotaFailure,
    rpc_details.PreconditionFailure,
    NegotiationFailure,
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_status(code: grpc.StatusCode, message: str, *, reason: str = "", details: Sequence[Message] = ()) -> VifError:
    """Make the error of a status.

    Args:
        code: The status code, any but OK.
        message: What is wrong, for people.
        reason: The ErrorReason's name without its prefix. Empty: none was given.
        details: The status's details, unpacked.

    Returns:
        The error, of the class that says what to do next.
    """
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, ServerError)
    return kind(message, code=code, reason=reason, details=details)


def from_code_number(number: int, message: str, *, reason: str = "") -> VifError:
    """Make the error of a `google.rpc.Code`, which is what the fd socket answers with.

    Args:
        number: The code. One that doesn't exist counts as UNKNOWN.
        message: What is wrong, for people.
        reason: The ErrorReason's name without its prefix.

    Returns:
        The error, of the class that says what to do next.
    """
    return from_status(_CODES.get(number, grpc.StatusCode.UNKNOWN), message, reason=reason)


def from_rpc(error: grpc.RpcError) -> VifError:
    """Make the error of a gRPC call, synchronous or asyncio, with every detail that the status carries.

    Args:
        error: What grpc raised.

    Returns:
        The error, of the class that says what to do next.
    """
    # Every RpcError that a call raises is a Call as well (asyncio's has the same three methods); the types don't say so.
    call = cast("grpc.Call", error)
    details = _unpack_details(call)
    info = _first(details, rpc_details.ErrorInfo)
    if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not info:  # gRPC's own words for it vary, and say less
        return DeadlineExceeded("vifd didn't answer in time", details=details)
    message = call.details() or call.code().name
    return from_status(call.code(), message, reason=info.reason if info else "", details=details)


def _unpack_details(call: grpc.Call) -> list[Message]:
    try:
        status = rpc_status.from_call(call)
        packed_details = status.details if status else ()
        return [_unpack(packed, kind) for packed in packed_details for kind in _DETAILS if packed.Is(kind.DESCRIPTOR)]
    except (ValueError, DecodeError):  # they contradict the status or are garbage: the status itself is left
        return []


def _unpack(packed: Any, kind: type[_M]) -> _M:
    detail = kind()
    packed.Unpack(detail)
    return detail


def _first(details: Sequence[Message], kind: type[_M]) -> _M | None:
    return next((detail for detail in details if isinstance(detail, kind)), None)
