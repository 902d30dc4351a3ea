"""What a check is, and the three ways it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vifclient.errors import VifError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vifclient.sanity.session import Session


class FailedError(Exception):
    """The daemon breaks the rule; the text says what was expected and what came."""


class SkippedError(Exception):
    """The daemon can't show the rule here; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the contract, as a check.

    Attributes:
        name: "request.same-spec-same-endpoint".
        rule: The rule, as the contract has it.
        where: Where the contract has it: "endpoint_service.proto: RequestEndpoint".
        run: Raises FailedError where the daemon breaks the rule, and SkippedError where it can't show it.
    """

    name: str
    rule: str
    where: str
    run: Callable[[Session], None]


CHECKS: list[Check] = []


def check(name: str, rule: str, where: str) -> Callable[[Callable[[Session], None]], Callable[[Session], None]]:
    """Let a function be a check.

    Args:
        name: Its name.
        rule: The words of the contract.
        where: The file and the name of the thing that they explain.
    """

    def register(run: Callable[[Session], None]) -> Callable[[Session], None]:
        CHECKS.append(Check(name, rule, where, run))
        return run

    return register


class Caught:
    """The refusal that a block expected; `error` is there after the block."""

    error: VifError


@contextmanager
def refused(what: str, code: str, reason: str, *, detail: str = "") -> Iterator[Caught]:
    """Expect that the block's call is refused.

    Args:
        what: The call, in words.
        code: The name of the status code.
        reason: The ErrorReason, without prefix.
        detail: For messages: what was wrong with the call.

    Raises:
        FailedError: It succeeds, or is refused in another way.
    """
    caught = Caught()
    expected = f"{code} with reason {reason}{f' ({detail})' if detail else ''}"
    try:
        yield caught
    except VifError as error:
        caught.error = error
        if (error.code.name, error.reason) != (code, reason):
            raise FailedError(f"{what}: expected {expected}, got {describe(error)}") from error
    else:
        raise FailedError(f"{what}: expected {expected}, but it was done")


def expect(what: str, actual: object, expected: object) -> None:
    """Expect a value.

    Raises:
        FailedError: It is another.
    """
    if actual != expected:
        raise FailedError(f"{what}: expected {_show(expected)}, got {_show(actual)}")


def expect_true(what: str, actual: object, *, condition: bool, expected: str) -> None:
    """Expect that a condition holds of a value.

    Raises:
        FailedError: It doesn't.
    """
    if not condition:
        raise FailedError(f"{what}: expected {expected}, got {_show(actual)}")


def expect_same(what: str, values: Iterable[object]) -> None:
    """Expect that all values are the same.

    Raises:
        FailedError: Two differ.
    """
    first, *others = values
    for other in others:
        expect(what, other, first)


def describe(error: VifError) -> str:
    """Say how a call was refused."""
    return f"{error.code.name} with reason {error.reason or 'none'}: {error.message}"


def _show(value: object) -> str:
    return value if isinstance(value, str) and value else repr(value).replace("\n", " ")
