"""Runs checks one after the other; each begins with nothing of the one before."""

from __future__ import annotations

import fnmatch
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import grpc

from vifclient.errors import Exhausted, VifError
from vifclient.sanity import checks
from vifclient.sanity.check import CHECKS, Check, FailedError, SkippedError, describe
from vifclient.sanity.session import Session


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """What a check came to.

    Attributes:
        check: The check.
        outcome: How it ended.
        message: Why it failed or was skipped.
        seconds: How long it took.
    """

    check: Check
    outcome: Outcome
    message: str
    seconds: float


def select(only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """Choose checks by patterns of their names, as a shell has them.

    Args:
        only: Which are meant. Empty: all.
        skip: Which of those aren't.

    Returns:
        The checks in their order.

    Raises:
        ValueError: A pattern fits no check.
    """
    assert checks  # noqa: S101  they are there because the package is imported
    for pattern in (*only, *skip):
        if not any(fnmatch.fnmatchcase(check.name, pattern) for check in CHECKS):
            raise ValueError(f"{pattern!r} fits no check; --list names them")

    def fits(check: Check, patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(check.name, pattern) for pattern in patterns)

    return [check for check in CHECKS if (not only or fits(check, only)) and not fits(check, skip)]


def run(session: Session, selected: Iterable[Check]) -> Iterator[Result]:
    """Run checks.

    Args:
        session: With whom.
        selected: Which.

    Yields:
        What each came to, as soon as it has ended and all that it made is gone.
    """
    for check in selected:
        started = time.monotonic()
        outcome, message = _run_one(session, check)
        yield Result(check, outcome, message, time.monotonic() - started)


def _run_one(session: Session, check: Check) -> tuple[Outcome, str]:
    session.begin_check()
    try:
        outcome, message = _judge(session, check)
        left = _clean_up(session)
    except BaseException as error:  # Ctrl-C too, also as it cleans up: nothing stays behind, or it is told
        if left := _clean_up(session):
            error.add_note(left)
        raise
    return (outcome, message) if not left or outcome is Outcome.FAILED else (Outcome.FAILED, left)


def _judge(session: Session, check: Check) -> tuple[Outcome, str]:
    try:
        check.run(session)
    except SkippedError as error:
        return Outcome.SKIPPED, str(error)
    except FailedError as error:
        return Outcome.FAILED, str(error)
    except Exhausted as error:
        return Outcome.SKIPPED, f"the network or this user's quota has too little room: {error.message}"
    except VifError as error:
        return Outcome.FAILED, f"expected the call to be done, got {describe(error)}"
    except grpc.RpcError as error:
        return Outcome.FAILED, f"expected the call to be done, got {error}"
    except Exception:  # an answer that no check expects; what it was stands in the traceback
        return Outcome.FAILED, f"the answer is none that the check understands:\n{traceback.format_exc()}"
    return Outcome.PASSED, ""


def _clean_up(session: Session) -> str:
    try:
        session.clean_up()
    except FailedError as error:
        return str(error)
    except VifError as error:
        return f"the check's endpoints can't be released: {describe(error)}"
    return ""
