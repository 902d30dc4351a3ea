"""What the checks say of the contract is what the contract says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vif.v1.error_pb2 import ErrorReason
from vifclient.sanity import runner
from vifclient.sanity.check import Check

PROTOS = Path(__file__).parents[3] / "protos/vif/v1"
CHECKS = runner.select([], [])


def text_of(file: str) -> str:
    """The comments and code of a file, as one line."""
    return re.sub(r"\s+", " ", re.sub(r"^\s*//", " ", (PROTOS / file).read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_rule_is_quoted_from_where_it_stands(check: Check) -> None:
    file, _, place = check.where.partition(": ")
    assert check.rule in text_of(file)
    assert place in text_of(file)


def test_names_are_unique_and_say_their_group() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z-]+\.[a-z0-9.^-]+", name) for name in names)


def test_every_reason_of_the_table_of_errors_has_a_check() -> None:
    reasons = {name.removeprefix("ERROR_REASON_").lower().replace("_", "-") for name, number in ErrorReason.items() if number}
    assert reasons <= {check.name.removeprefix("error.") for check in CHECKS}
