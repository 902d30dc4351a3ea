"""Every error that vifd raises on purpose.

    VifdError                    `reason` is the name in the API's ErrorReason
    ├── InvalidRequest           the caller corrects the fields
    ├── IdInUse                  the caller chooses another id
    ├── NotFound
    │   ├── UnknownNetwork
    │   └── UnknownEndpoint
    ├── Refused                  the world has to change first
    │   ├── NoAcceptableKind
    │   ├── StaleGeneration
    │   ├── WrongState
    │   ├── AddressInUse
    │   ├── NoProcess
    │   └── HostNotReady
    ├── Exhausted                something has to be released first
    │   ├── NetworkFull
    │   │   └── FunctionTaken
    │   ├── QuotaReached
    │   └── Overloaded
    ├── UnknownCaller            fail closed
    ├── NotAllowed               the policy says no
    ├── Unsupported              ask without it
    ├── TryAgain                 the same call again, later
    ├── KernelRefused            what was done is undone
    ├── DriverFailed             a network driver has a bug; what was done is undone
    └── StartError               vifd can't start or reload; the administrator reads it
        ├── ConfigError
        └── JournalDamaged

The server's table (`vifd.server.status`) turns them into gRPC statuses; nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vifd.model import Consideration


class VifdError(Exception):
    """The root of the tree; its text is a sentence that says what to do."""

    reason: ClassVar[str] = "BUG"

    @property
    def metadata(self) -> Mapping[str, str]:
        """Facts for programs, beside the sentence for people."""
        return {}


class Violation(NamedTuple):
    """What is wrong with one field: its path in the request or configuration, and a sentence."""

    field: str
    message: str


def _lines(violations: Sequence[Violation]) -> str:
    return "; ".join(f"{field}: {message}" for field, message in violations)


class InvalidRequest(VifdError):
    """Fields are missing or malformed.

    Args:
        violations: every one of them.
        endpoint_id: whose request it is, where it may be one of several.
    """

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation], endpoint_id: str = "") -> None:
        super().__init__(_lines(violations))
        self.violations, self.endpoint_id = tuple(violations), endpoint_id


class IdInUse(VifdError):
    """The endpoint's id is in use with another spec, or by somebody else."""

    reason = "ID_IN_USE"


class NotFound(VifdError):
    """There is no such thing, or none that the caller may see."""


class UnknownNetwork(NotFound):
    """No such network, or none that the caller may use."""

    reason = "UNKNOWN_NETWORK"


class UnknownEndpoint(NotFound):
    """No such endpoint, or none that the caller may see."""

    reason = "UNKNOWN_ENDPOINT"


class Refused(VifdError):
    """The request is well-formed, but something of the world has to change first."""


class NoAcceptableKind(Refused):
    """None of the acceptable kinds can be made.

    Args:
        message: a sentence.
        considered: every preference with its outcome.
    """

    reason = "NO_ACCEPTABLE_KIND"

    def __init__(self, message: str, considered: Sequence[Consideration]) -> None:
        super().__init__(message)
        self.considered = tuple(considered)


class StaleGeneration(Refused):
    """The call means an older life of the endpoint."""

    reason = "STALE_GENERATION"


class WrongState(Refused):
    """The endpoint's state doesn't allow the call."""

    reason = "WRONG_STATE"


class AddressInUse(Refused):
    """An address or the MAC is another endpoint's, or the network's own."""

    reason = "ADDRESS_IN_USE"


class NoProcess(Refused):
    """There is no process (any more) for an endpoint to live as long as."""

    reason = "NO_PROCESS"


class HostNotReady(Refused):
    """A configured bridge or uplink isn't there, or isn't what it should be; or this kernel can't do what is asked for."""

    reason = "HOST_NOT_READY"


class Exhausted(VifdError):
    """Something has to be released first."""


class NetworkFull(Exhausted):
    """No port, VF or address is left."""

    reason = "NETWORK_FULL"


class FunctionTaken(NetworkFull):
    """A PCI function that was picked turned out to be somebody else's; vifd picks another one by itself.

    Args:
        function: its address.
        message: a sentence.
    """

    def __init__(self, function: str, message: str) -> None:
        super().__init__(message)
        self.function = function


class QuotaReached(Exhausted):
    """The policy's `max_endpoints` is reached."""

    reason = "QUOTA"


class Overloaded(Exhausted):
    """A watcher is too slow."""

    reason = "OVERLOADED"


class UnknownCaller(VifdError):
    """The connection didn't come through the gate."""

    reason = "UNKNOWN_CALLER"


class NotAllowed(VifdError):
    """The policy doesn't allow it to this caller."""

    reason = "NOT_ALLOWED"


class Unsupported(VifdError):
    """This vifd, or the network's driver, can't do this call or option.

    Args:
        message: a sentence.
        considered: every preference with its outcome, where it came to that.
    """

    reason = "UNSUPPORTED"

    def __init__(self, message: str, considered: Sequence[Consideration] = ()) -> None:
        super().__init__(message)
        self.considered = tuple(considered)


class TryAgain(VifdError):
    """vifd is starting or stopping, or a system behind it isn't there.

    Args:
        message: a sentence.
        retry_after_s: when it makes sense to try again, in seconds.
    """

    reason = "TRY_AGAIN"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KernelRefused(VifdError):
    """The kernel said no, and what was done before is undone.

    Args:
        operation: the plan operation that failed.
        device: the name of its device.
        errno: the kernel's number.
        message: the kernel's words.
    """

    reason = "KERNEL"

    def __init__(self, operation: str, device: str, errno: int, message: str) -> None:
        super().__init__(f"{operation} of {device} failed: {message} (errno {errno})")
        self.operation, self.device, self.errno = operation, device, errno

    @property
    def metadata(self) -> Mapping[str, str]:
        """The operation, device and errno."""
        return {"operation": self.operation, "device": self.device, "errno": str(self.errno)}


class DriverFailed(VifdError):
    """A network driver broke its contract; what was done before is undone."""


class StartError(VifdError):
    """vifd can't start; the text says what the administrator has to do."""


class ConfigError(StartError):
    """The configuration is wrong.

    Args:
        problems: every one of them, by key.
    """

    def __init__(self, problems: Sequence[Violation]) -> None:
        super().__init__(_lines(problems))
        self.problems = tuple(problems)


class JournalDamaged(StartError):
    """The journal's database can't be trusted."""
