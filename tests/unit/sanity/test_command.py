"""vif-sanity as its users run it: what it prints, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from tests.support.asking import make
from tests.support.daemon import BIN
from tests.unit.sanity.broken import Broken, Proceed
from vif.v1.endpoint_service_pb2 import BatchReleaseEndpointsResponse, GetEndpointResponse, ReleaseEndpointResponse
from vifclient import Client
from vifclient.messages import Endpoint
from vifclient.sanity import runner
from vifclient.sanity.check import Check
from vifclient.sanity.command import run_sanity
from vifclient.sanity.runner import Outcome
from vifclient.sanity.session import Session
from vifd.errors import QuotaReached, VifdError
from vifd.testing import FakeDaemon

SECONDS = 30


class Done(NamedTuple):
    status: int
    out: str
    err: str


Sanity = Callable[..., Done]


@pytest.fixture
def sanity(capsys: pytest.CaptureFixture[str]) -> Sanity:
    def run(*arguments: str) -> Done:
        status = run_sanity(list(arguments))
        return Done(status, *capsys.readouterr())

    return run


async def pretend(request: Any, proceed: Proceed) -> Any:
    return ReleaseEndpointResponse()


async def pretend_all(request: Any, proceed: Proceed) -> Any:
    return BatchReleaseEndpointsResponse()


@pytest.fixture
def broken() -> Iterator[FakeDaemon]:
    """A vifd that says that it has released an endpoint, and hasn't; a batch it does release."""
    with FakeDaemon(interceptors=[Broken("ReleaseEndpoint", unary=pretend)]) as daemon:
        yield daemon


def endpoints(daemon: FakeDaemon) -> list[Endpoint]:
    with Client(daemon.socket) as client:
        return list(client.list_endpoints())


def test_a_daemon_that_conforms_is_told_so_and_has_no_more_endpoints_than_before(vifd_fake: FakeDaemon, sanity: Sanity) -> None:
    with Client(vifd_fake.socket) as client:
        mine = make(client, network="default")
    done = sanity("--socket", vifd_fake.socket)
    assert done.status == 0
    head, *lines, summary = done.out.splitlines()
    assert head.startswith("vif-sanity: tap on network default (fake), vifd ")
    assert summary.startswith(f"{sum(line.startswith('ok ') for line in lines)} passed, 0 failed, ")
    assert endpoints(vifd_fake) == [mine]


def test_a_broken_rule_is_told_with_what_was_expected_and_what_came(broken: FakeDaemon, sanity: Sanity) -> None:
    done = sanity("--socket", broken.socket, "--only", "release.forgets")
    assert done.status == 1
    assert "FAIL release.forgets" in done.out
    assert "the released endpoint: expected None, got " in done.out
    assert 'rule: "Takes an endpoint down and forgets it." (endpoint_service.proto: ReleaseEndpoint)' in done.out
    assert "0 passed, 1 failed, 0 skipped" in done.out


def test_what_cannot_be_shown_is_skipped_with_the_reason(vifd_fake: FakeDaemon, sanity: Sanity) -> None:
    done = sanity("--socket", vifd_fake.socket, "--only", "error.quota")
    assert done.status == 0
    assert "skip error.quota: the socket alone can't show it: it takes a policy" in done.out


@pytest.mark.parametrize("rpc", ["GetEndpoint", "RequestEndpoint"])
def test_a_lease_that_a_call_does_not_renew_is_noticed(sanity: Sanity, rpc: str) -> None:
    answers: list[Any] = []

    async def from_memory(request: Any, proceed: Proceed) -> Any:
        if request.validate_only:
            return await proceed(request)
        if not answers:
            answers.append(await proceed(request))
        return answers[0]

    async def of_nothing(request: Any, proceed: Proceed) -> Any:
        return GetEndpointResponse()

    unary = from_memory if rpc == "RequestEndpoint" else of_nothing
    with FakeDaemon(interceptors=[Broken(rpc, unary=unary)]) as daemon:
        done = sanity("--socket", daemon.socket, "--only", "lifetime.lease-is-renewed")
    assert done.status == 1
    assert "the generation of an endpoint on a lease of 2 s, called for every 1.2 s: expected 1, got " in done.out


def test_a_lease_that_a_busy_daemon_may_have_ended_tells_nothing(sanity: Sanity) -> None:
    async def slow(request: Any, proceed: Proceed) -> Any:
        await asyncio.sleep(0.5)
        return await proceed(request)

    with FakeDaemon(interceptors=[Broken("GetEndpoint", unary=slow)]) as daemon:
        done = sanity("--socket", daemon.socket, "--only", "lifetime.lease-is-renewed")
    assert done.status == 0
    assert "skip lifetime.lease-is-renewed: the daemon, or this program, is too busy" in done.out


def test_too_little_room_is_no_broken_rule(vifd_fake: FakeDaemon, sanity: Sanity) -> None:
    vifd_fake.fail("BatchRequestEndpoints", QuotaReached("no more than three endpoints for you"))
    done = sanity("--socket", vifd_fake.socket, "--only", "batch.64-requests")
    assert (done.status, "skip batch.64-requests: the network or this user's quota" in done.out) == (0, True)


def test_a_call_that_fails_is_told_with_its_status(vifd_fake: FakeDaemon, sanity: Sanity) -> None:
    vifd_fake.fail("GetEndpoint", VifdError("it broke in the middle"))
    done = sanity("--socket", vifd_fake.socket, "--only", "get.what-was-made")
    assert done.status == 1
    assert "expected the call to be done, got INTERNAL with reason BUG: it broke in the middle" in done.out


def test_an_answer_that_nobody_expects_is_a_failure_with_its_place(vifd_fake: FakeDaemon) -> None:
    def wrong(session: Session) -> None:
        session.make().port.mac.no_such_thing()  # type: ignore[attr-defined]  a check with a bug

    with Session(vifd_fake.socket, timeout_s=SECONDS) as session:
        (result,) = runner.run(session, [Check("x.y", "", "", wrong)])
    assert result.outcome is Outcome.FAILED
    assert "no_such_thing" in result.message


def test_patterns_choose_checks(vifd_fake: FakeDaemon, sanity: Sanity) -> None:
    done = sanity("--socket", vifd_fake.socket, "--only", "release.*", "--only", "get.*", "--skip", "release.o*", "--json")
    names = [result["name"] for result in json.loads(done.out)["results"]]
    assert {name.partition(".")[0] for name in names} == {"release", "get"}
    assert "release.of-nothing" not in names


@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_a_pattern_that_fits_nothing_is_a_mistake(sanity: Sanity, option: str) -> None:
    done = sanity(option, "relaese.*")
    assert (done.status, "'relaese.*' fits no check" in done.err) == (2, True)


def test_the_checks_are_listed_without_a_daemon(sanity: Sanity) -> None:
    done = sanity("--list", "--only", "release.idempotent")
    assert done.status == 0
    assert done.out.splitlines() == [
        "release.idempotent",
        '       "Idempotent: OK also where there is none (any more)." (endpoint_service.proto: ReleaseEndpoint)',
    ]
    listed = json.loads(sanity("--list", "--json").out)["checks"]
    assert [check["name"] for check in listed] == [check.name for check in runner.select([], [])]


def test_a_run_is_one_object_for_programs(broken: FakeDaemon, sanity: Sanity) -> None:
    done = sanity("--socket", broken.socket, "--only", "release.forgets", "--only", "error.quota", "--json")
    answer = json.loads(done.out)
    assert done.status == 1
    assert (answer["network"], answer["kind"], answer["passed"], answer["failed"], answer["skipped"]) == (
        "default",
        "tap",
        0,
        1,
        1,
    )
    failed = answer["results"][0]
    assert (failed["name"], failed["outcome"]) == ("release.forgets", "failed")
    assert failed["message"].startswith("the released endpoint: expected None")


def test_a_run_is_junits_xml_for_ci(broken: FakeDaemon, sanity: Sanity, tmp_path: Path) -> None:
    only = [option for name in ("release.forgets", "error.quota", "host.says-what-it-is") for option in ("--only", name)]
    sanity("--socket", broken.socket, "--junit", str(tmp_path / "report.xml"), *only)
    root = ET.parse(tmp_path / "report.xml").getroot()
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "1"]
    cases = {case.get("name"): case for case in suite}
    failure = cases["release.forgets"].find("failure")
    assert failure is not None
    assert "expected None" in (failure.text or "")
    assert 'rule: "Takes an endpoint down' in (failure.text or "")
    assert cases["release.forgets"].get("classname") == "vif-sanity.release"
    skipped = cases["error.quota"].find("skipped")
    assert skipped is not None
    assert "it takes a policy" in (skipped.get("message") or "")
    assert list(cases["host.says-what-it-is"]) == []


@pytest.mark.parametrize(
    "arguments", [["--network", "green"], ["--kind", "tpa"], ["--timeout", "0"], ["--no-such-option"], ["x"]]
)
def test_what_cannot_be_tested_is_no_broken_rule(vifd_fake: FakeDaemon, sanity: Sanity, arguments: list[str]) -> None:
    done = sanity("--socket", vifd_fake.socket, *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err


def test_a_daemon_that_is_not_there_is_told_so(sanity: Sanity, tmp_path: Path) -> None:
    done = sanity("--socket", str(tmp_path / "none.sock"))
    assert (done.status, "there is no such socket" in done.err) == (2, True)


def test_a_network_that_makes_nothing_is_told_with_the_reason(sanity: Sanity) -> None:
    with FakeDaemon('[networks.blue]\ndriver = "fake"\nkinds = ["tap"]\nunavailable = ["tap"]\n') as daemon:
        done = sanity("--socket", daemon.socket)
    assert done.status == 2
    assert "blue, tap: the configuration of network blue says so" in done.err


def test_the_kind_that_can_do_most_is_made_and_another_if_it_is_wanted(vifd_fake: FakeDaemon) -> None:
    for kind, made in (("", "tap"), ("pci", "pci"), ("bridge", "bridge")):
        with Session(vifd_fake.socket, timeout_s=SECONDS, kind=kind) as session:
            assert session.kind == made


def test_what_a_daemon_does_not_release_is_told(sanity: Sanity) -> None:
    interceptors = [Broken("ReleaseEndpoint", unary=pretend), Broken("BatchReleaseEndpoints", unary=pretend_all)]
    with FakeDaemon(interceptors=interceptors) as daemon:
        done = sanity("--socket", daemon.socket, "--only", "get.what-was-made")
    assert done.status == 1
    assert "endpoints that were released are still there: " in done.out


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(vifd_fake: FakeDaemon, sanity: Sanity) -> None:
    done = sanity("--socket", vifd_fake.socket, "--junit", "/nonexistent/report.xml")
    assert (done.status, done.out, "/nonexistent/report.xml" in done.err) == (2, "", True)


def test_what_an_interrupt_could_not_take_away_is_told() -> None:
    def interrupted(session: Session) -> None:
        session.make()
        raise KeyboardInterrupt

    interceptors = [Broken("ReleaseEndpoint", unary=pretend), Broken("BatchReleaseEndpoints", unary=pretend_all)]
    with FakeDaemon(interceptors=interceptors) as daemon, Session(daemon.socket, timeout_s=SECONDS) as session:
        with pytest.raises(KeyboardInterrupt) as caught:
            list(runner.run(session, [Check("x.y", "", "", interrupted)]))
        (left,) = endpoints(daemon)
    assert caught.value.__notes__ == [f"endpoints that were released are still there: {left.endpoint_id}"]


def test_a_daemon_that_went_away_fails_what_is_left() -> None:
    with FakeDaemon() as daemon:
        session = Session(daemon.socket, timeout_s=SECONDS)
    with session:
        results = list(runner.run(session, runner.select(["get.*", "release.forgets"], [])))
    assert [(result.outcome, "UNAVAILABLE" in result.message) for result in results] == [(Outcome.FAILED, True)] * 2


def test_an_interrupt_while_it_cleans_up_leaves_nothing_behind(vifd_fake: FakeDaemon) -> None:
    argv = [str(BIN / "vif-sanity"), "--socket", vifd_fake.socket, "--only", "get.*"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        with vifd_fake.hold("BatchReleaseEndpoints") as hold:
            hold.wait_for_call(SECONDS)
            assert len(endpoints(vifd_fake)) == 1
            process.send_signal(signal.SIGINT)
            hold.wait_for_call(SECONDS)  # it tries anew
        out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, "interrupted" in out) == (130, True)
    assert endpoints(vifd_fake) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind_and_still_reports(
    vifd_fake: FakeDaemon, tmp_path: Path, number: signal.Signals
) -> None:
    report = tmp_path / "report.xml"
    argv = [str(BIN / "vif-sanity"), "--socket", vifd_fake.socket, "--only", "get.*", "--only", "list.*", "--junit", str(report)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process, vifd_fake.hold("GetEndpoint") as hold:
        hold.wait_for_call(SECONDS)
        assert len(endpoints(vifd_fake)) == 1
        process.send_signal(number)
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "interrupted" in out
    assert ET.parse(report).getroot().tag == "testsuites"
    assert endpoints(vifd_fake) == []
