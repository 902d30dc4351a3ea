"""Pairs by one command: asked for, shown, and taken down, at a vifd that checks them."""

from collections.abc import Callable, Iterator

import pytest

from tests.unit.client.conftest import Result
from vifclient.cli import run_vifctl
from vifd.testing import FakeDaemon

ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
NETWORKS = """
[networks.fast]
driver = "fake"
kinds = ["pci"]

[networks.blue]
driver = "fake"
kinds = ["tap"]
"""

Vifctl = Callable[..., Result]


@pytest.fixture
def vifctl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Vifctl]:
    with FakeDaemon(NETWORKS) as vifd:
        monkeypatch.setenv("VIFD_SOCKET", vifd.socket)

        def run(*arguments: str) -> Result:
            capfd.readouterr()
            status = run_vifctl(list(arguments))
            return Result(status, *capfd.readouterr())

        yield run


def test_a_pair_is_a_function_and_what_stands_in_for_it_with_one_mac(vifctl: Vifctl) -> None:
    options = ["--mtu", "1400", "--vlan", "7", "--queues", "2", "--instance-name", "web1", "--label", "a=b", "--lease", "1h"]
    made = vifctl("request", "fast", "--standby", "blue", *options, "--json")
    assert (made.status, made.err) == (0, "")
    function, standby = (one["endpoint"] for one in made.json["responses"])
    assert (function["network"], standby["network"]) == ("fast", "blue")
    assert ("pci" in function, standby["tap"]["queues"]) == (True, 2)
    assert (function["partner_endpoint_id"], standby["partner_endpoint_id"]) == (standby["endpoint_id"], function["endpoint_id"])
    assert function["port"]["mac"] == standby["port"]["mac"]
    assert [one["port"]["mtu_bytes"] for one in (function, standby)] == [1400, 1400]
    assert (function["port"]["vlan"]["vid"], "vlan" in standby["port"]) == (7, False)
    assert [one["instance"]["name"] for one in (function, standby)] == ["web1", "web1"]
    assert [one["labels"] for one in (function, standby)] == [{"a": "b"}, {"a": "b"}]
    assert [one["lifetime"]["lease"]["ttl"] for one in (function, standby)] == ["3600s", "3600s"]


def test_the_same_id_gives_the_same_pair(vifctl: Vifctl) -> None:
    first, again = (vifctl("request", "fast", "--standby", "blue", "--id", ID, "--json").json for _ in range(2))
    assert first["responses"][0]["endpoint"]["endpoint_id"] == ID
    assert [one["endpoint"]["endpoint_id"] for one in again["responses"]] == [
        one["endpoint"]["endpoint_id"] for one in first["responses"]
    ]
    assert len(vifctl("list", "--json").json["endpoints"]) == 2


def test_a_pair_is_shown_with_its_partners(vifctl: Vifctl) -> None:
    assert "PARTNER" not in vifctl("list").out
    out = vifctl("request", "fast", "--standby", "blue", "--id", ID, "--mac", "52:54:00:12:34:56").out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("network ")] == ["fast", "blue"]
    (partner, back) = (line.split()[1] for line in out.splitlines() if line.startswith("partner "))
    assert back == ID
    assert ["partner", partner] in [line.split() for line in vifctl("show", ID).out.splitlines()]
    heading, *rows = vifctl("list").out.splitlines()
    assert heading.split()[-1] == "PARTNER"
    assert {row.split()[0]: row.split()[-1] for row in rows} == {ID: partner, partner: ID}


def test_nothing_is_made_by_a_preview(vifctl: Vifctl) -> None:
    assert vifctl("request", "fast", "--standby", "blue", "--validate-only").out.count("Nothing was made.") == 2
    assert vifctl("list").out == ""


def test_both_parts_are_released_by_either(vifctl: Vifctl) -> None:
    (_, standby) = vifctl("request", "fast", "--standby", "blue", "--id", ID, "--json").json["responses"]
    partner = standby["endpoint"]["endpoint_id"]
    assert vifctl("release", "--pair", partner).out == f"released {partner}\nreleased {ID}\n"
    assert vifctl("list").out == ""
    assert vifctl("release", "--pair", ID).out == f"released {ID}\n"
    assert "--generation goes with one ID" in vifctl("release", "--pair", ID, "--generation", "3").err


def test_an_endpoint_that_is_alone_is_released_alone(vifctl: Vifctl) -> None:
    vifctl("request", "blue", "--id", ID)
    assert vifctl("release", "--pair", ID).out == f"released {ID}\n"


def test_what_no_pair_can_be_is_refused(vifctl: Vifctl) -> None:
    assert "--standby goes with --kind pci alone." in vifctl("request", "fast", "--standby", "blue", "--kind", "tap").err
    assert vifctl("request", "fast", "--standby", "blue", "--kind", "pci", "--id", ID).status == 0
    assert vifctl("request", "fast", "--standby", "fast").status != 0
    assert len(vifctl("list", "--json").json["endpoints"]) == 2
