from collections import Counter

from tests.vm.results import Outcome, outcomes, parse, report_names, summary
from tests.vm.selection import Selection

NAMES = ("passes", "fails[a.b/c-1]", "skips", "lost")
PASSED, FAILED, SKIPPED, LOST = (f"tests/functional/test_a.py::test_{name}" for name in NAMES)
CASE = '<testcase classname="tests.functional.test_a" name="test_'
REPORT = f"""<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" tests="4">
{CASE}passes" time="1.0" />
{CASE}fails[a.b/c-1]"><failure message="assert 1 == 2&#10;more">trace</failure></testcase>
{CASE}fails[a.b/c-1]"><error message="and its teardown">trace</error></testcase>
{CASE}skips"><skipped type="pytest.skip" message="this kernel has no x" /></testcase>
</testsuite></testsuites>"""


def test_a_report_says_what_came_of_each_test() -> None:
    assert list(parse(REPORT).values()) == [
        Outcome("passed"),
        Outcome("failed", "assert 1 == 2"),
        Outcome("skipped", "this kernel has no x"),
    ]


def test_an_error_at_the_end_of_a_test_that_passed_is_a_failure() -> None:
    case = '<testcase classname="a" name="b" />'
    report = f"<testsuite>{case}{case.replace('/>', '>')}<error message='late'/></testcase></testsuite>"
    assert parse(report) == {("a", "b"): Outcome("failed", "late")}


def test_tests_are_found_by_the_names_that_pytest_gives_them() -> None:
    assert report_names("tests/a/test_b.py::test_c") == ("tests.a.test_b", "test_c")
    assert report_names("tests/a/test_b.py::Suite::test_c[x::y/z.py]") == ("tests.a.test_b.Suite", "test_c[x::y/z.py]")


def test_a_test_that_the_report_does_not_know_has_failed() -> None:
    found = outcomes([PASSED, FAILED, SKIPPED, LOST], [REPORT])
    assert [one.status for one in found.values()] == ["passed", "failed", "skipped", "failed"]
    assert found[LOST].why == "it did not run"


def test_a_test_is_in_the_report_of_the_machine_that_ran_it() -> None:
    reports = [f'<testsuite>{CASE}{name}" /></testsuite>' for name in NAMES]
    assert [one.status for one in outcomes([PASSED, FAILED, SKIPPED, LOST], reports).values()] == ["passed"] * 4
    assert outcomes([PASSED], [])[PASSED].why == "it did not run"


def test_the_summary_names_what_ran_what_failed_and_what_ran_nowhere() -> None:
    inside = dict.fromkeys([PASSED, FAILED, SKIPPED], "its group")
    nowhere = {"tests/functional/test_b.py::test_d": "why not"}
    chosen = Selection(inside, nowhere, {"8021q": Counter({"test_a.py": 3})})
    told = summary(chosen, outcomes(chosen.inside, [REPORT]), release="6.12", seconds=125)
    assert told == [
        "in the emulated machine (Linux 6.12): 1 passed, 1 failed, 1 skipped, 2:05 minutes with its boot",
        "  for 8021q: 3",
        "       3 test_a.py",
        "failed:",
        f"  {FAILED}: assert 1 == 2",
        "ran nowhere:",
        "  tests/functional/test_b.py::test_d: why not",
        f"  {SKIPPED}: this kernel has no x",
    ]
