"""What the documentation shows of the client works as it stands there."""

import inspect
import re
import shlex
import textwrap
from pathlib import Path

import click
import pytest

import vifclient
from vifclient import Client
from vifclient.cli.root import root
from vifclient.cli.settings import PlainCommand, Settings
from vifd.testing import FakeDaemon

README = (Path(__file__).parents[3] / "README.md").read_text()
IN_README = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
IN_PACKAGE = re.findall(r"\n\n((?:    .*\n|\n)+)", inspect.getdoc(vifclient) or "")


@pytest.mark.parametrize("code", [*IN_README, *map(textwrap.dedent, IN_PACKAGE)])
def test_code_works_and_leaves_nothing(vifd_fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text("#!/bin/sh\necho started > $0.log\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("VIFD_SOCKET", vifd_fake.socket)
    exec(compile(code, "documentation", "exec"), {})
    assert ("subprocess" in code) == (tmp_path / "qemu-system-x86_64.log").exists()
    with Client() as client:
        assert list(client.list_endpoints()) == []


def test_there_is_code() -> None:
    assert (len(IN_README), len(IN_PACKAGE)) == (1, 1)


def written_commands() -> list[str]:
    """Find every command line of vifctl that README and its own help show."""
    helps = [root.help or ""]
    for name in root.list_commands(click.Context(root)):
        command = root.get_command(click.Context(root), name)
        assert isinstance(command, PlainCommand)
        helps += command.examples
    text = "\n".join([README, *helps]).replace("\\\n", " ")
    # without the pipe, the redirection, the explanation or the comment behind it
    return [re.split(r" \| | > |   ", line)[0] for line in re.findall(r"^ *(vifctl .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("line", written_commands())
def test_command_lines_are_understood(line: str) -> None:
    words = shlex.split(line.replace("3f0c1e9a-...", "ID").replace("ID", "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"))[1:]
    context = root.make_context("vifctl", words, obj=Settings())
    name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None
    command.make_context(name, rest, parent=context)
