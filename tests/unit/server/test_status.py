from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from vif.v1.error_pb2 import ErrorReason, NegotiationFailure
from vifd import errors
from vifd.errors import Violation
from vifd.model import Consideration, Kind, Outcome
from vifd.server.middleware import BugError
from vifd.server.status import code_of, message_of, status_code, to_status

CODE = grpc.StatusCode
CONSIDERED = (Consideration(0, Kind.PCI, Outcome.KIND_NOT_OFFERED, "no"),)
#: The design's table: each error that a call can end with, its reason and its code.
TABLE: list[tuple[errors.VifdError, str, CODE]] = [
    (errors.InvalidRequest([Violation("network", "is missing")]), "INVALID_FIELD", CODE.INVALID_ARGUMENT),
    (errors.IdInUse("x"), "ID_IN_USE", CODE.ALREADY_EXISTS),
    (errors.UnknownNetwork("x"), "UNKNOWN_NETWORK", CODE.NOT_FOUND),
    (errors.UnknownEndpoint("x"), "UNKNOWN_ENDPOINT", CODE.NOT_FOUND),
    (errors.NoAcceptableKind("x", CONSIDERED), "NO_ACCEPTABLE_KIND", CODE.FAILED_PRECONDITION),
    (errors.StaleGeneration("x"), "STALE_GENERATION", CODE.FAILED_PRECONDITION),
    (errors.WrongState("x"), "WRONG_STATE", CODE.FAILED_PRECONDITION),
    (errors.AddressInUse("x"), "ADDRESS_IN_USE", CODE.FAILED_PRECONDITION),
    (errors.NoProcess("x"), "NO_PROCESS", CODE.FAILED_PRECONDITION),
    (errors.HostNotReady("x"), "HOST_NOT_READY", CODE.FAILED_PRECONDITION),
    (errors.NetworkFull("x"), "NETWORK_FULL", CODE.RESOURCE_EXHAUSTED),
    (errors.FunctionTaken("0000:03:10.2", "x"), "NETWORK_FULL", CODE.RESOURCE_EXHAUSTED),
    (errors.QuotaReached("x"), "QUOTA", CODE.RESOURCE_EXHAUSTED),
    (errors.Overloaded("x"), "OVERLOADED", CODE.RESOURCE_EXHAUSTED),
    (errors.UnknownCaller("x"), "UNKNOWN_CALLER", CODE.UNAUTHENTICATED),
    (errors.NotAllowed("x"), "NOT_ALLOWED", CODE.PERMISSION_DENIED),
    (errors.Unsupported("x"), "UNSUPPORTED", CODE.UNIMPLEMENTED),
    (errors.TryAgain("x"), "TRY_AGAIN", CODE.UNAVAILABLE),
    (errors.KernelRefused("CreateTap", "vdt", 16, "busy"), "KERNEL", CODE.INTERNAL),
    (BugError("x"), "BUG", CODE.INTERNAL),
    (errors.DriverFailed("x"), "BUG", CODE.INTERNAL),
]
#: What no call ends with: branches of the tree, and what stops the start.
NO_ANSWERS = {errors.VifdError, errors.NotFound, errors.Refused, errors.Exhausted}
#: What a client takes of trailers at most.
TRAILER_BYTES = 8192


def tree(kind: type[errors.VifdError]) -> set[type[errors.VifdError]]:
    return {kind}.union(*(tree(child) for child in kind.__subclasses__()))


def details(error: errors.VifdError) -> dict[str, Any]:
    found = {}
    for packed in to_status(error).details:
        for kind in (ErrorInfo, BadRequest, RetryInfo, NegotiationFailure):
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    return found


@pytest.mark.parametrize(("error", "reason", "code"), TABLE)
def test_each_error_has_the_code_and_reason_of_the_table(error: errors.VifdError, reason: str, code: CODE) -> None:
    info = details(error)["ErrorInfo"]
    assert status_code(error) is code
    assert code_of(error) == to_status(error).code == code.value[0]
    assert (info.reason, info.domain) == (reason, "vifd")


def test_every_error_is_in_the_table() -> None:
    assert {type(error) for error, _, _ in TABLE} == tree(errors.VifdError) - NO_ANSWERS - tree(errors.StartError)


def test_every_reason_of_the_contract_is_used_and_no_other() -> None:
    reasons = {f"ERROR_REASON_{reason}" for _, reason, _ in TABLE}
    assert reasons == set(ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


def test_every_violation_is_in_the_details() -> None:
    bad = details(errors.InvalidRequest([Violation("network", "is missing"), Violation("port.mac", "is odd")]))["BadRequest"]
    assert [(v.field, v.description) for v in bad.field_violations] == [("network", "is missing"), ("port.mac", "is odd")]


@pytest.mark.parametrize("kind", [errors.NoAcceptableKind, errors.Unsupported])
def test_what_was_considered_is_in_the_details(kind: type[errors.NoAcceptableKind]) -> None:
    (considered,) = details(kind("x", CONSIDERED))["NegotiationFailure"].considered
    assert (considered.index, considered.message) == (0, "no")


def test_a_call_that_isnt_built_was_not_considered() -> None:
    assert list(details(errors.Unsupported("x"))) == ["ErrorInfo"]


def test_a_caller_is_told_when_to_try_again() -> None:
    assert details(errors.TryAgain("x", 2.5))["RetryInfo"].retry_delay.ToMilliseconds() == 2500


def test_the_kernels_refusal_has_operation_device_and_number() -> None:
    metadata = details(errors.KernelRefused("CreateTap", "vdt", 16, "busy"))["ErrorInfo"].metadata
    assert dict(metadata) == {"operation": "CreateTap", "device": "vdt", "errno": "16"}


def test_a_sentence_is_kept_as_it_is() -> None:
    assert message_of(errors.IdInUse("choose a new id: ä")) == "choose a new id: ä"


def test_a_sentence_that_is_too_long_is_cut_between_characters() -> None:
    message = message_of(errors.IdInUse("\U0001f310" * 1000))
    assert message == "\U0001f310" * 200 + "…"


@pytest.mark.parametrize("character", ["x", "ä", "\U0001f310"])
@pytest.mark.parametrize("count", [1, 7, 64, 5000])
def test_no_error_is_larger_than_trailers_may_be(character: str, count: int) -> None:
    violations = [Violation(f"labels[{character * 63!r}]", "a key has 1 to 63 letters, digits, '.', '_', '/', '-'")] * count
    status = to_status(errors.InvalidRequest(violations))
    percent_encoded = sum(1 if 0x20 <= byte < 0x7F else 3 for byte in status.message.encode())
    base64 = len(status.SerializeToString()) * 4 / 3
    assert percent_encoded + base64 < TRAILER_BYTES - 200


def test_violations_that_dont_fit_are_counted() -> None:
    listed = details(errors.InvalidRequest([Violation("labels", "x" * 100)] * 500))["BadRequest"].field_violations
    assert listed[-1].description == f"and {500 - len(listed) + 1} more"
