"""A disk that takes no more: what can't be journaled isn't done, or is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support import kernel
from tests.support.asking import BATCH, asked, refusal
from tests.support.daemon import Daemon, network_namespace, short_directory, taps
from vifclient import Client
from vifclient.errors import Unavailable
from vifclient.messages import ReleaseEndpointRequest
from vifclient.retry import NO_RETRY

FILE_BYTES = 300_000


class CrampedDaemon(Daemon):
    """A vifd whose files, so also its journal, can't grow beyond a size."""

    cramped = True

    @property
    def argv(self) -> list[str]:
        return ["prlimit", f"--fsize={FILE_BYTES}", *super().argv] if self.cramped else super().argv


@pytest.fixture
def vifd() -> Iterator[CrampedDaemon]:
    with contextlib.ExitStack() as stack:
        directory, netns = stack.enter_context(short_directory()), stack.enter_context(network_namespace())
        daemon = CrampedDaemon(directory, netns=netns, daemon='log_level = "error"')
        stack.callback(daemon.kill)
        yield daemon.start()
        print(daemon.log()[-3000:])


def filled(client: Client) -> list[str]:
    """Request in batches until the journal takes no more, and give the ids that were answered."""
    answered: list[str] = []
    with contextlib.suppress(Unavailable):
        while len(answered) < 1000:
            answers = client.batch_request_endpoints([asked() for _ in range(8)])
            answered += [answer.endpoint.endpoint_id for answer in answers]
    assert 0 < len(answered) < 1000
    return answered


def listed(client: Client) -> set[str]:
    return {endpoint.endpoint_id for endpoint in client.list_endpoints()}


def test_a_request_that_cannot_be_journaled_is_refused_and_leaves_nothing(vifd: CrampedDaemon) -> None:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        answered = set(filled(client))
        assert listed(client) == answered
        assert len(taps(vifd.netns)) == len(answered)
        before = kernel.snapshot(vifd.netns)
        with refusal("UNAVAILABLE", "TRY_AGAIN"):
            client.batch_request_endpoints([asked() for _ in range(BATCH)])
        assert listed(client) == answered
        assert kernel.snapshot(vifd.netns) == before


def test_a_release_that_cannot_be_journaled_can_be_repeated(vifd: CrampedDaemon) -> None:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        answered = filled(client)
        releases = [ReleaseEndpointRequest(endpoint_id=one) for one in answered[:BATCH]]
        with refusal("UNAVAILABLE", "TRY_AGAIN"):
            client.batch_release_endpoints(releases)
        assert listed(client) == set(answered)
        vifd.stop()
        vifd.cramped = False
        vifd.start()
        with Client(vifd.socket) as again:
            again.batch_release_endpoints(releases)
            assert listed(again) == set(answered[BATCH:])
            assert len(taps(vifd.netns)) == len(answered[BATCH:])


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_answered_before_the_disk_was_full_is_there_after_a_restart(vifd: CrampedDaemon, end: str) -> None:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        answered = set(filled(client))
    (vifd.stop if end == "stop" else vifd.kill)()
    vifd.cramped = False
    vifd.start()
    with Client(vifd.socket) as client:
        assert listed(client) == answered
        assert len(taps(vifd.netns)) == len(answered)
