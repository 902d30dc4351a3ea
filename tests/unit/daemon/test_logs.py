import json
import logging
from collections.abc import Callable

import pytest

from vifd import logs

HOSTILE = ["a\nerror: forged", "\x1b[31mred", "a b", "", "é", "\u2028", 'a"b c', "\0", "x\ty"]


Log = Callable[[], str]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    """What the log has said."""
    return lambda: capsys.readouterr().err


def test_a_line_for_people_has_level_message_and_fields(log: Log) -> None:
    logs.setup("info", "text")
    logging.getLogger("vifd").info("vifd serves", extra={"socket": "/run/x", "networks": 2})
    assert log() == "info: vifd serves socket=/run/x networks=2\n"


@pytest.mark.parametrize("value", HOSTILE)
def test_what_strangers_send_writes_no_lines_of_its_own(log: Log, value: str) -> None:
    logs.setup("info", "text")
    logging.getLogger("vifd").warning("call failed", extra={"error": value})
    line, end = log().split("\n")
    assert (end, line.isascii(), line.isprintable()) == ("", True, True)
    assert json.loads(line.removeprefix("warning: call failed error=")) == value


@pytest.mark.parametrize("value", HOSTILE)
def test_a_line_for_programs_is_json_with_every_field(log: Log, value: str) -> None:
    logs.setup("info", "json")
    logging.getLogger("vifd.server").error("call failed", extra={"error": value, "uid": 7})
    (line,) = log().splitlines()
    found = json.loads(line)
    stamp = found.pop("time")
    assert (len(stamp), stamp[10], stamp[-1]) == (24, "T", "Z")
    assert found == {"level": "error", "logger": "vifd.server", "message": "call failed", "error": value, "uid": 7}


def test_what_json_has_no_form_for_is_written_as_text(log: Log) -> None:
    logs.setup("info", "json")
    logging.getLogger("vifd").info("x", extra={"groups": frozenset()})
    assert json.loads(log())["groups"] == "frozenset()"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_kept(log: Log, form: str) -> None:
    logs.setup("info", form)
    logging.getLogger("vifd").error("broken", exc_info=ValueError("the cause"))
    assert "ValueError: the cause" in log()


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_a_level_keeps_what_is_below_it_away(log: Log, level: str, lines: int) -> None:
    logs.setup(level, "text")
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("vifd").log(number, "x")
    assert len(log().splitlines()) == lines


def test_oslo_privsep_says_only_what_matters(log: Log) -> None:
    logs.setup("info", "text")
    logging.getLogger("oslo_privsep.daemon").info("privsep daemon running as pid 1")
    logging.getLogger("oslo.privsep.daemon").info("privsep daemon starting")
    assert log() == ""
