"""What a run came to: lines for people as it goes, JSON or JUnit's XML for programs at its end."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, BinaryIO
from xml.etree import ElementTree as ET

import click

from vifclient.sanity.check import Check
from vifclient.sanity.runner import Outcome, Result
from vifclient.sanity.session import Session

_MARKS = {
    Outcome.PASSED: click.style("ok  ", fg="green"),
    Outcome.FAILED: click.style("FAIL", fg="red", bold=True),
    Outcome.SKIPPED: click.style("skip", fg="yellow"),
}
# What XML 1.0 can't hold (https://www.w3.org/TR/xml/#charsets) is left out of messages.
_NO_XML = {code: None for code in range(32) if code not in (9, 10, 13)} | {0xFFFE: None, 0xFFFF: None}


def print_result(result: Result) -> None:
    """Say how a check ended, at once."""
    head = f"{_MARKS[result.outcome]} {result.check.name}"
    if result.outcome is Outcome.SKIPPED:
        _say(f"{head}: {result.message}")
    elif result.outcome is Outcome.FAILED:
        _say(head)
        for line in result.message.splitlines():
            _say(f"       {line}")
        _say(f'       rule: "{result.check.rule}" ({result.check.where})')
    else:
        _say(f"{head} ({result.seconds * 1e3:.0f} ms)")


def print_head(session: Session) -> None:
    """Say what is tested."""
    host, network = session.host, session.network
    what = f"{session.kind} on network {network.name} ({network.network_driver})"
    _say(f"vif-sanity: {what}, vifd {host.version}, {session.socket_path}")


def print_summary(results: Sequence[Result], *, whole: bool) -> None:
    """Say how many checks ended how, and name those that failed once more."""
    counts = Counter(result.outcome for result in results)
    seconds = sum(result.seconds for result in results)
    for result in results:
        if result.outcome is Outcome.FAILED:
            _say(f"failed: {result.check.name}")
    cut = "" if whole else "; interrupted"
    _say(", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome) + f" in {seconds:.1f} s{cut}")


def print_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """List checks with their rules."""
    if as_json:
        click.echo(json.dumps({"checks": [_check_json(check) for check in checks]}, indent=2, ensure_ascii=False))
        return
    for check in checks:
        _say(f'{click.style(check.name, bold=True)}\n       "{check.rule}" ({check.where})')


def print_json(session: Session, results: Sequence[Result]) -> None:
    """Print the whole run as one object."""
    counts = Counter(result.outcome for result in results)
    answer = {
        "socket": session.socket_path,
        "vifd": session.host.version,
        "network": session.network.name,
        "kind": session.kind,
        **{str(outcome): counts[outcome] for outcome in Outcome},
        "results": [
            _check_json(result.check)
            | {"outcome": str(result.outcome), "message": result.message, "seconds": round(result.seconds, 6)}
            for result in results
        ],
    }
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def write_junit(file: BinaryIO, session: Session, results: Sequence[Result]) -> None:
    """Write a report as CI systems read it.

    What was expected stands in the text of a failure, for some show no other part of it; and a check's group is its class.

    Args:
        file: Where to.
        session: What was tested.
        results: What came of it.
    """
    counts = Counter(result.outcome for result in results)
    numbers = {
        "tests": str(len(results)),
        "failures": str(counts[Outcome.FAILED]),
        "errors": "0",
        "skipped": str(counts[Outcome.SKIPPED]),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }
    root = ET.Element("testsuites", {"name": "vif-sanity", **numbers})
    suite = ET.SubElement(root, "testsuite", {"name": f"vif-sanity {session.network.name} {session.kind}", **numbers})
    for result in results:
        _add_case(suite, result)
    ET.indent(root)
    file.write(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _add_case(suite: ET.Element, result: Result) -> None:
    group = result.check.name.partition(".")[0]
    names = {"classname": f"vif-sanity.{group}", "name": result.check.name, "time": f"{result.seconds:.3f}"}
    case = ET.SubElement(suite, "testcase", names)
    message = result.message.translate(_NO_XML)
    if result.outcome is Outcome.FAILED:
        failure = ET.SubElement(case, "failure", {"message": message, "type": "rule broken"})
        failure.text = f'{message}\nrule: "{result.check.rule}" ({result.check.where})'
    elif result.outcome is Outcome.SKIPPED:
        ET.SubElement(case, "skipped", {"message": message})


def _check_json(check: Check) -> dict[str, Any]:
    return {"name": check.name, "rule": check.rule, "where": check.where}


def _say(line: str) -> None:
    click.echo(line, color=False if os.environ.get("NO_COLOR") else None)
