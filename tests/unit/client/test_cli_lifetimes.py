import json

import pytest

from tests.unit.client.conftest import Vifctl
from tests.unit.client.fake_vifd import FakeVifd
from vifclient.messages import Lifetime

ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
OTHER = "aaaaaaaa-7c52-4b0e-9d0e-8a1f5f3f2b61"


def lines(text: str) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in text.splitlines()]


def test_without_an_option_an_endpoint_stays(vifctl: Vifctl, vifd: FakeVifd) -> None:
    assert ["lives", "until it is released"] in lines(vifctl("request", "default").out)
    assert not vifd.requests[0].HasField("lifetime")


def test_an_endpoint_of_a_process(vifctl: Vifctl, vifd: FakeVifd) -> None:
    assert ["lives", "as long as process 4242"] in lines(vifctl("request", "default", "--id", ID, "--process", "4242").out)
    assert vifd.requests[0].lifetime.process.pid == 4242
    assert vifctl("show", ID, "--json").json["endpoint"]["lifetime"] == {"process": {"pid": 4242}}


@pytest.mark.parametrize(
    ("text", "milliseconds", "shown"),
    [
        ("30s", 30_000, "30 s"),
        ("90", 90_000, "90 s"),
        ("1.5s", 1_500, "1.5 s"),
        ("5m", 300_000, "5 min"),
        ("48h", 172_800_000, "2 d"),
        ("366d", 31_622_400_000, "366 d"),
    ],
)
def test_an_endpoint_on_a_lease(vifctl: Vifctl, vifd: FakeVifd, text: str, milliseconds: int, shown: str) -> None:
    assert ["lives", f"{shown} after the last call for it"] in lines(vifctl("request", "default", "--lease", text).out)
    assert vifd.requests[0].lifetime.lease.ttl.ToMilliseconds() == milliseconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["request", "default", "--lease", "soon"], "'soon' is no time"),
        (["request", "default", "--lease", "-5s"], "'-5s' is no time"),
        (["request", "default", "--lease", "0.9s"], "0.9s is not 1 s to 366 d"),
        (["request", "default", "--lease", "367d"], "367d is not 1 s to 366 d"),
        (["request", "default", "--process", "0"], "0"),
        (["request", "default", "--process", "7", "--lease", "5s"], "exclude each other"),
        (["collect-garbage"], "--all"),
        (["collect-garbage", ID, "--all"], "--all"),
        (["collect-garbage", "web1"], "web1"),
    ],
)
def test_a_wrong_command_line(vifctl: Vifctl, vifd: FakeVifd, arguments: list[str], words: str) -> None:
    result = vifctl(*arguments)
    assert (result.status, words in result.err) == (2, True), result.err
    assert vifd.calls == []


def test_a_lifetime_of_a_newer_vifd_is_no_mystery(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default", "--id", ID)
    vifd.endpoints[ID].lifetime.CopyFrom(Lifetime())
    assert ["lives", "until it is released"] in lines(vifctl("show", ID).out)


def test_garbage_is_collected(vifctl: Vifctl, vifd: FakeVifd) -> None:
    for endpoint_id in (ID, OTHER):
        vifctl("request", "default", "--id", endpoint_id)
    result = vifctl("collect-garbage", ID.upper(), "--dry-run")
    assert (result.status, result.out, len(vifd.endpoints)) == (0, f"would release {OTHER}\n", 2)
    request = vifd.requests[-1]
    assert (list(request.keep_endpoint_ids), request.allow_empty, request.network) == ([ID], False, "")
    assert vifctl("collect-garbage", ID).out == f"released {OTHER}\n"
    assert vifctl("collect-garbage", ID).out == "There is no garbage.\n"
    assert json.loads(vifctl("--json", "collect-garbage", "--all", "--network", "blue").out) == {"released_endpoint_ids": [ID]}
    assert (vifd.requests[-1].allow_empty, vifd.requests[-1].network) == (True, "blue")
    assert vifctl("collect-garbage", "--all", "--json").json == {"released_endpoint_ids": []}
