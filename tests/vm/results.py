"""What came of the tests: read from pytest's report (junit.xml), compared with what should have run, and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from tests.vm.selection import Selection

_OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


class Outcome(NamedTuple):
    """What came of a test.

    Args:
        status: `passed`, `failed` or `skipped`.
        why: The reason of a skip, or a failure's last line.
    """

    status: str
    why: str = ""


def parse(report: str) -> dict[tuple[str, str], Outcome]:
    """Read pytest's report: what came of each test, by the two names that it has there (`report_names`)."""
    found: dict[tuple[str, str], Outcome] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        names = case.get("classname", ""), case.get("name", "")
        outcome = _outcome(case)
        # what fails after it has passed is there twice
        if names not in found or found[names].status != "failed":
            found[names] = outcome
    return found


def report_names(test_id: str) -> tuple[str, str]:
    """Give the class's name and the test's that a test has in the report.

    Source: `mangle_test_address` of pytest's junitxml.py: dots for the slashes of the path and for what is between names.
    """
    path, bracket, parameters = test_id.partition("[")
    file, *names = path.split("::")
    parts = [file.removesuffix(".py").replace("/", "."), *names]
    return ".".join(parts[:-1]), parts[-1] + bracket + parameters


def outcomes(tests: Iterable[str], reports: Iterable[str]) -> dict[str, Outcome]:
    """Say what came of each test that should have run; one that no report knows has failed."""
    found = {names: outcome for report in reports for names, outcome in parse(report).items()}
    return {test: found.get(report_names(test), Outcome("failed", "it did not run")) for test in tests}


def summary(selection: Selection, found: dict[str, Outcome], *, release: str, seconds: float) -> list[str]:
    """Tell what ran in the machine and how that ended, and what ran nowhere."""
    counts = Counter(outcome.status for outcome in found.values())
    told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing ran"
    minutes, rest = divmod(round(seconds), 60)
    failed, skipped = (
        [(test, one.why) for test, one in found.items() if one.status == status] for status in ("failed", "skipped")
    )
    return [
        f"in the emulated machine (Linux {release}): {told}, {minutes}:{rest:02} minutes with its boot",
        *(line for reason, files in selection.reasons.items() for line in _counted(reason, files)),
        *_listed("failed", failed),
        *_listed("ran nowhere", [*selection.nowhere.items(), *skipped]),
    ]


def _counted(reason: str, files: Counter[str]) -> Iterator[str]:
    yield f"  for {reason}: {sum(files.values())}"
    yield from (f"    {count:4} {path}" for path, count in files.items())


def _listed(title: str, tests: Sequence[tuple[str, str]]) -> Iterator[str]:
    if tests:
        yield f"{title}:"
        yield from (f"  {test}: {why}" for test, why in tests)


def _outcome(case: ElementTree.Element) -> Outcome:
    for tag, status in _OUTCOMES.items():
        element = case.find(tag)
        if element is not None:
            return Outcome(status, (element.get("message", "").strip().splitlines() or ["without a reason"])[0])
    return Outcome("passed")
