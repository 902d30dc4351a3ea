"""The table of errors: what each becomes as a gRPC status (the design's section 4; google/rpc/code.proto)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from vif.v1.error_pb2 import NegotiationFailure
from vifd import errors
from vifd.server import words

_CODES: tuple[tuple[type[errors.VifdError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.IdInUse, grpc.StatusCode.ALREADY_EXISTS),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnknownCaller, grpc.StatusCode.UNAUTHENTICATED),
    (errors.NotAllowed, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.TryAgain, grpc.StatusCode.UNAVAILABLE),
    (errors.VifdError, grpc.StatusCode.INTERNAL),
)
# A client drops trailers of more than 8 KiB; the details are a third longer there than here, and the message may be thrice.
_MESSAGE_BYTES = 800
_VIOLATIONS_BYTES = 2500


def status_code(error: errors.VifdError) -> grpc.StatusCode:
    """Give an error's status code."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def code_of(error: errors.VifdError) -> int:
    """Give an error's google.rpc.Code as a number."""
    number: int = status_code(error).value[0]
    return number


def message_of(error: errors.VifdError) -> str:
    """Give an error's sentence, no longer than a trailer may be."""
    text = str(error).encode(errors="replace")
    cut = "" if len(text) <= _MESSAGE_BYTES else "…"
    return text[:_MESSAGE_BYTES].decode(errors="ignore") + cut


def to_status(error: errors.VifdError) -> Status:
    """Give an error as google.rpc.Status, with its details."""
    status = Status(code=code_of(error), message=message_of(error))
    for detail in _details(error):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: errors.VifdError) -> Iterator[Message]:
    yield ErrorInfo(reason=error.reason, domain="vifd", metadata=error.metadata)
    match error:
        case errors.InvalidRequest():
            yield _bad_request(error.violations)
        case errors.NoAcceptableKind() | errors.Unsupported() if error.considered:
            yield NegotiationFailure(considered=[words.consideration(c) for c in error.considered])
        case errors.TryAgain():
            retry = RetryInfo()
            retry.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
            yield retry


def _bad_request(violations: Sequence[errors.Violation]) -> BadRequest:
    """List as many violations as the trailers can carry, and say how many more there are."""
    message = BadRequest()
    for index, (field, description) in enumerate(violations):
        if message.ByteSize() > _VIOLATIONS_BYTES:
            message.field_violations.add(field="", description=f"and {len(violations) - index} more")
            break
        message.field_violations.add(field=field, description=description)
    return message
