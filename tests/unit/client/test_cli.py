import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.unit.client.conftest import Vifctl
from tests.unit.client.fake_vifd import FakeVifd, make_status
from vifclient.cli import run_vifctl
from vifclient.cli.root import root
from vifclient.messages import Drift, DriftKind, EndpointPreference, TapPreference

ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
OTHER = "aaaaaaaa-7c52-4b0e-9d0e-8a1f5f3f2b61"


def test_request_makes_a_tap_with_a_new_id(vifctl: Vifctl, vifd: FakeVifd) -> None:
    result = vifctl("request", "default", "--label", "tier=web", "--instance-name", "web1")
    assert (result.status, result.err) == (0, "")
    (endpoint,) = vifd.endpoints.values()
    lines = [line.split(maxsplit=1) for line in result.out.splitlines()]
    assert ["id", endpoint.endpoint_id] in lines
    assert ["ifname", "vdtfake"] in lines
    assert ["labels", "tier=web"] in lines
    assert ["instance", "web1"] in lines
    assert "\x1b" not in result.out  # no terminal, no colour
    assert not any(line.endswith(" ") for line in result.out.splitlines())


def test_request_carries_every_option(vifctl: Vifctl, vifd: FakeVifd) -> None:
    options = ["--queues", "2", "--no-vnet-hdr", "--mac", "52:54:00:00:00:01", "--mtu", "9000", "--instance-name", "n"]
    labels = ["--label", "a=b", "--label", "c=d=e"]
    owner = ["--owner-uid", "5", "--owner-gid", "6"]
    result = vifctl("request", "default", "--id", ID.upper(), "--instance-uuid", OTHER, *options, *labels, *owner, "--json")
    assert result.status == 0
    request = vifd.requests[0]
    assert request.endpoint_id == ID
    assert list(request.acceptable) == [EndpointPreference(tap=TapPreference(queues=2, vnet_hdr=False))]
    assert (request.port.mac, request.port.mtu_bytes) == ("52:54:00:00:00:01", 9000)
    assert (request.instance.name, request.instance.uuid) == ("n", OTHER)
    assert dict(request.labels) == {"a": "b", "c": "d=e"}
    assert (request.owner.uid, request.owner.gid) == (5, 6)
    assert result.json["endpoint"]["endpoint_id"] == ID
    assert result.json["considered"][0]["outcome"] == "CONSIDERATION_OUTCOME_CHOSEN"


def test_kinds_are_asked_for_in_order(vifctl: Vifctl, vifd: FakeVifd) -> None:
    result = vifctl("request", "default", "--kind", "vdpa", "--kind", "bridge", "--kind", "tap", "--queues", "3")
    assert [one.WhichOneof("kind") for one in vifd.requests[0].acceptable] == ["vdpa", "bridge", "tap"]
    assert [vifd.requests[0].acceptable[0].vdpa.queues, vifd.requests[0].acceptable[2].tap.queues] == [3, 3]
    assert "the driver fake makes no vdpa" in result.out
    assert "br-fake" in result.out


def test_an_option_that_no_kind_has_is_refused(vifctl: Vifctl, vifd: FakeVifd) -> None:
    result = vifctl("request", "default", "--kind", "bridge", "--queues", "2")
    assert result.status == 2
    assert "No kind that is asked for has queues: bridge." in result.err
    assert vifd.calls == []


def test_validate_only_shows_the_plan(vifctl: Vifctl, vifd: FakeVifd) -> None:
    result = vifctl("request", "default", "--validate-only")
    assert "Nothing was made. It would take:\n  create tap vdtfake\n" in result.out
    assert "tap         chosen" in result.out
    assert vifd.endpoints == {}
    assert vifctl("request", "default", "--validate-only", "--json").json["plan"] == ["create tap vdtfake"]


def test_release_list_show(vifctl: Vifctl, vifd: FakeVifd) -> None:
    for endpoint_id in (ID, OTHER):
        vifctl("request", "default", "--id", endpoint_id)
    assert vifctl("list").out.splitlines()[1].startswith(f"{ID}  default  ready  tap   vdtfake")
    assert [one["endpoint_id"] for one in vifctl("list", "--json").json["endpoints"]] == [ID, OTHER]
    assert vifctl("show", ID, "--json").json["endpoint"]["tap"]["ifname"] == "vdtfake"
    assert f"id          {ID}" in vifctl("show", ID).out
    assert vifctl("release", ID, OTHER, ID).out == f"released {ID}\nreleased {OTHER}\n"
    assert vifctl("release", ID, "--json", "--generation", "3").json == {"released_endpoint_ids": [ID]}
    assert vifd.requests[-1].requests[0].generation == 3
    assert vifctl("list").out == ""
    assert vifctl("list", "--json").json == {"endpoints": []}


def test_a_generation_goes_with_one_id(vifctl: Vifctl) -> None:
    assert "--generation goes with one ID" in vifctl("release", ID, OTHER, "--generation", "3").err


def test_filters_reach_vifd(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("list", "--network", "default", "--instance", ID, "--label", "a=b")
    found = vifd.requests[0].filter
    assert (found.network, found.instance_uuid, dict(found.labels)) == ("default", ID, {"a": "b"})


def test_drifts_stand_out(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default", "--id", ID)
    vifd.endpoints[ID].drifts.append(Drift(kind=DriftKind.DRIFT_KIND_MTU, expected="1500", actual="9000"))
    assert "ready!" in vifctl("list").out
    assert "drift       mtu: 9000 instead of 1500" in vifctl("show", ID).out


def test_networks_and_host(vifctl: Vifctl) -> None:
    networks = vifctl("networks").out
    assert networks.splitlines()[1].split() == ["default", "fake", "1500", "0", "tap,", "bridge"]
    assert "default: no bridge now: the fake has no bridge" in networks
    assert vifctl("networks", "--json").json["networks"][0]["name"] == "default"
    assert "version    0.0.fake" in vifctl("host").out
    assert "limits     police: what a VM sends too much of is dropped" in vifctl("host").out
    assert vifctl("--json", "host").json["version"] == "0.0.fake"


def test_watch_ends_at_its_time(vifctl: Vifctl) -> None:
    vifctl("request", "default", "--id", ID)
    result = vifctl("watch", "--timeout", "1")
    assert result.status == 0
    assert f"current   {ID}  default  tap vdtfake  ready" in result.out
    lines = [json.loads(line) for line in vifctl("watch", "--timeout", "1", "--json").out.splitlines()]
    assert [line["kind"] for line in lines] == ["WATCH_EVENT_KIND_CURRENT", "WATCH_EVENT_KIND_SYNCED"]


def test_every_violation_is_listed(vifctl: Vifctl, vifd: FakeVifd) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="port.mac", description="is multicast")
    bad.field_violations.add(field="network", description="is empty")
    vifd.failures += [make_status(grpc.StatusCode.INVALID_ARGUMENT, "both", "INVALID_FIELD", bad)] * 2
    result = vifctl("networks")
    assert result.status == 1
    assert result.err.splitlines()[1:] == ["  port.mac: is multicast", "  network: is empty"]
    error = json.loads(vifctl("networks", "--json").err)["error"]
    assert error["violations"][0] == {"field": "port.mac", "description": "is multicast"}
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "INVALID_FIELD")


def test_why_no_kind_would_do(vifctl: Vifctl) -> None:
    result = vifctl("request", "default", "--kind", "pci")
    assert result.status == 1
    assert "  pci: kind not offered: the driver fake makes no pci" in result.err.splitlines()
    error = json.loads(vifctl("request", "default", "--kind", "pci", "--json").err)["error"]
    assert error["considered"][0]["outcome"] == "CONSIDERATION_OUTCOME_KIND_NOT_OFFERED"


def test_a_kernel_error_shows_its_metadata(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifd.failures.append(make_status(grpc.StatusCode.INTERNAL, "the kernel said no", "KERNEL"))
    assert vifctl("networks").err.splitlines()[1:] == ["  fake: yes", "  Report it, with what vifd logged at this time."]


def test_too_late(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifd.hang.clear()
    result = vifctl("networks", "--timeout", "0.1")
    assert result.status == 3
    assert "--timeout gives it more time" in result.err


def test_nobody_there(vifctl: Vifctl, folder: Path) -> None:
    path = str(folder / "none")
    result = vifctl("--socket", path, "list")
    assert result.status == 3
    assert f"vifd can't be reached on {path}: there is no such socket. Start vifd" in result.err
    assert json.loads(vifctl("list", "--socket", path, "--json").err)["error"]["code"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--bogus"], "--bogus"),
        (["frobnicate"], "frobnicate"),
        (["show", "web1"], "web1"),
        (["request", "default", "--label", "nothing"], "'nothing' is not KEY=VALUE"),
        (["request", "default", "--instance-name", os.fsdecode(b"\xff")], r"b'\xff' is not UTF-8"),
        (["request", "default", "--queues", "0"], "0"),
        (["run", "default"], "COMMAND is missing"),
    ],
)
def test_a_wrong_command_line(vifctl: Vifctl, vifd: FakeVifd, arguments: list[str], words: str) -> None:
    result = vifctl(*arguments)
    assert result.status == 2
    assert words in result.err
    error = json.loads(vifctl(*arguments, "--json").err)["error"]
    assert error["code"] == "USAGE"
    assert words in error["message"]
    assert vifd.calls == []


def test_json_after_the_dashes_is_the_commands(vifctl: Vifctl) -> None:
    assert vifctl("run", "--bogus", "default", "--", "cmd", "--json").err.startswith("Usage:")


@pytest.mark.parametrize("name", root.list_commands(None))
def test_every_command_has_help_with_an_example(vifctl: Vifctl, name: str) -> None:
    result = vifctl(name, "--help")
    assert result.status == 0
    assert "Examples:\n" in result.out
    assert f"vifctl {name}" in result.out.partition("Examples:")[2]


def test_help_names_commands_and_exit_status(vifctl: Vifctl) -> None:
    out = vifctl("--help").out
    assert all(f"\n  {name} " in out for name in root.list_commands(None))
    assert "Exit status:" in out
    assert vifctl("--version").out.startswith("vifctl, version ")


def complete(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: str) -> list[str]:
    monkeypatch.setenv("_VIFCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    capfd.readouterr()
    with pytest.raises(SystemExit):  # click's way to end a completion
        run_vifctl([])
    monkeypatch.delenv("_VIFCTL_COMPLETE")
    return [line.removeprefix("plain,") for line in capfd.readouterr().out.splitlines() if line]


def test_completion(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], vifctl: Vifctl, vifd: FakeVifd, folder: Path
) -> None:
    for endpoint_id in (ID, OTHER):
        vifctl("request", "default", "--id", endpoint_id)
    assert complete(monkeypatch, capfd, "vifctl re") == ["request", "release"]
    assert complete(monkeypatch, capfd, "vifctl --js") == ["--json"]
    assert complete(monkeypatch, capfd, "vifctl request d") == ["default"]
    assert complete(monkeypatch, capfd, "vifctl list --network ") == ["default"]
    assert complete(monkeypatch, capfd, "vifctl show ") == [ID, OTHER]
    assert complete(monkeypatch, capfd, f"vifctl release {ID} ") == [OTHER]
    assert complete(monkeypatch, capfd, f"vifctl check {ID} ") == [OTHER]
    assert complete(monkeypatch, capfd, "vifctl update a") == [OTHER]
    assert complete(monkeypatch, capfd, f"vifctl update {ID} --no-l") == ["--no-link", "--no-limits"]
    assert complete(monkeypatch, capfd, "vifctl request default --macvtap-mode p") == ["private", "passthru"]
    assert complete(monkeypatch, capfd, f"vifctl --socket {folder}/none show ") == []
    vifd.failures += [make_status(grpc.StatusCode.PERMISSION_DENIED, "no", "NOT_ALLOWED")]
    assert complete(monkeypatch, capfd, "vifctl show ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(vifctl: Vifctl, shell: str) -> None:
    script = vifctl("completion", shell).out
    assert "_VIFCTL_COMPLETE" in script
    assert vifctl("completion", shell, "--json").json == {"shell": shell, "script": script.removesuffix("\n")}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("arguments", "kept_out"), [(["--help"], "grpc"), (["completion", "bash"], "grpc"), (["list"], "rich")])
def test_what_must_start_fast_imports_little(vifd: FakeVifd, arguments: list[str], kept_out: str) -> None:
    given = [*arguments, "--socket", vifd.socket_path, "--json"] if kept_out == "rich" else arguments
    code = f"import sys; from vifclient.cli import run_vifctl; run_vifctl({given!r}); print('{kept_out}' in sys.modules)"
    assert run_python(code).splitlines()[-1] == "False"


def test_a_reader_that_goes_away_is_no_error(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default")
    code = "import sys; from vifclient.cli import run_vifctl; sys.exit(run_vifctl(['list']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
