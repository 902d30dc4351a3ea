import grpc
import pytest
from google.rpc import error_details_pb2

from tests.unit.client.fake_vifd import FakeVifd, make_status, retry_info
from vif.v1.error_pb2 import Consideration, ErrorReason, NegotiationFailure
from vifclient import Client, errors
from vifclient.retry import NO_RETRY

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (CODE.INVALID_ARGUMENT, "INVALID_FIELD", errors.InvalidArgument),
        (CODE.ALREADY_EXISTS, "ID_IN_USE", errors.AlreadyExists),
        (CODE.NOT_FOUND, "UNKNOWN_NETWORK", errors.NotFound),
        (CODE.NOT_FOUND, "UNKNOWN_ENDPOINT", errors.NotFound),
        (CODE.FAILED_PRECONDITION, "NO_ACCEPTABLE_KIND", errors.NoAcceptableKind),
        (CODE.FAILED_PRECONDITION, "STALE_GENERATION", errors.StaleGeneration),
        (CODE.FAILED_PRECONDITION, "WRONG_STATE", errors.WrongState),
        (CODE.FAILED_PRECONDITION, "ADDRESS_IN_USE", errors.AddressInUse),
        (CODE.FAILED_PRECONDITION, "NO_PROCESS", errors.NoProcess),
        (CODE.FAILED_PRECONDITION, "HOST_NOT_READY", errors.HostNotReady),
        (CODE.RESOURCE_EXHAUSTED, "NETWORK_FULL", errors.Exhausted),
        (CODE.RESOURCE_EXHAUSTED, "QUOTA", errors.Exhausted),
        (CODE.RESOURCE_EXHAUSTED, "OVERLOADED", errors.Overloaded),
        (CODE.UNAUTHENTICATED, "UNKNOWN_CALLER", errors.NotAllowed),
        (CODE.PERMISSION_DENIED, "NOT_ALLOWED", errors.NotAllowed),
        (CODE.UNIMPLEMENTED, "UNSUPPORTED", errors.Unsupported),
        (CODE.UNAVAILABLE, "TRY_AGAIN", errors.Unavailable),
        (CODE.INTERNAL, "KERNEL", errors.ServerError),
        (CODE.INTERNAL, "BUG", errors.ServerError),
        (CODE.UNIMPLEMENTED, "", errors.Unsupported),
        (CODE.UNKNOWN, "", errors.ServerError),
        (CODE.FAILED_PRECONDITION, "OF_A_LATER_VIFD", errors.WrongState),
    ],
)
def test_each_status_becomes_the_error_that_says_what_to_do(
    vifd: FakeVifd, code: grpc.StatusCode, reason: str, kind: type[errors.VifError]
) -> None:
    vifd.failures.append(make_status(code, "so it is", reason))
    with Client(vifd.socket_path, retry=NO_RETRY) as client, pytest.raises(errors.VifError) as caught:
        client.get_host_info()
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.message, str(error)) == (code, reason, "so it is", "so it is")
    assert error.metadata == ({"fake": "yes"} if reason else {})
    assert isinstance(error.__cause__, grpc.RpcError)


def test_every_reason_of_the_contract_has_a_branch() -> None:
    """A reason that is added to the contract has to be thought about here, too."""
    known = {
        "INVALID_FIELD", "ID_IN_USE", "UNKNOWN_NETWORK", "UNKNOWN_ENDPOINT", "NO_ACCEPTABLE_KIND", "STALE_GENERATION",
        "WRONG_STATE", "HOST_NOT_READY", "NETWORK_FULL", "QUOTA", "OVERLOADED", "UNKNOWN_CALLER", "NOT_ALLOWED", "UNSUPPORTED",
        "TRY_AGAIN", "KERNEL", "BUG", "ADDRESS_IN_USE", "NO_PROCESS",
    }  # fmt: skip
    assert {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"} == known  # noqa: SIM118  protobuf's enum, no dict


def test_violations_are_listed(vifd: FakeVifd, client: Client) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="port.mac", description="is multicast")
    bad.field_violations.add(field="network", description="is empty")
    vifd.failures.append(make_status(CODE.INVALID_ARGUMENT, "two fields are wrong", "INVALID_FIELD", bad))
    with pytest.raises(errors.InvalidArgument) as caught:
        client.get_host_info()
    assert caught.value.violations == [("port.mac", "is multicast"), ("network", "is empty")]
    assert bad in caught.value.details


def test_considered_is_listed(vifd: FakeVifd, client: Client) -> None:
    failure = NegotiationFailure(considered=[Consideration(index=0, kind=4, outcome=3, message="no such thing here")])
    vifd.failures.append(make_status(CODE.FAILED_PRECONDITION, "none would do", "NO_ACCEPTABLE_KIND", failure))
    with pytest.raises(errors.NoAcceptableKind) as caught:
        client.get_host_info()
    assert caught.value.considered == list(failure.considered)


def test_retry_info_is_read(vifd: FakeVifd) -> None:
    vifd.failures.append(make_status(CODE.UNAVAILABLE, "starting", "TRY_AGAIN", retry_info(0.25)))
    with Client(vifd.socket_path, retry=NO_RETRY) as client, pytest.raises(errors.Unavailable) as caught:
        client.get_host_info()
    assert caught.value.retry_delay_s == 0.25


class _GarbledError(grpc.RpcError):
    """An error whose details are no google.rpc.Status."""

    def code(self) -> grpc.StatusCode:
        return CODE.NOT_FOUND

    def details(self) -> str:
        return "gone"

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", b"\xff\xff\xff"),)


def test_garbled_details_leave_the_status() -> None:
    error = errors.from_rpc(_GarbledError())
    assert isinstance(error, errors.NotFound)
    assert (error.message, error.reason, error.details) == ("gone", "", ())


def test_a_code_that_does_not_exist_is_the_servers_fault() -> None:
    assert isinstance(errors.from_code_number(99, "what?"), errors.ServerError)
    assert isinstance(errors.from_code_number(5, "no"), errors.NotFound)


def test_the_tree_is_drawn_in_the_docstring() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VifError)]
    drawing = errors.__doc__ or ""
    assert len(kinds) > 10
    for kind in kinds:
        assert f" {kind.__name__} " in drawing.replace("\n", " "), kind
