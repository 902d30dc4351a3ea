"""The command line of vif-sanity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import click

from vifclient import sockets
from vifclient.errors import VifError
from vifclient.sanity import report, runner
from vifclient.sanity.check import Check
from vifclient.sanity.runner import Outcome, Result
from vifclient.sanity.session import KINDS, NothingToTestError, Session

CONFORMS_EXIT, BROKEN_EXIT, USAGE_EXIT, INTERRUPTED_EXIT = 0, 1, 2, 130
_TIMEOUT_S = 30.0

_HELP = """Test whether a daemon keeps the contract vif.v1.

It talks to the daemon's public socket as any hypervisor driver does, needs no root, and tests each rule of the contract by a
check with a name. What it makes has random ids and labels vif-sanity/...; it releases all of it, after each check and after
Ctrl-C or SIGTERM, and touches nothing else.

\b
Examples:
  vif-sanity --socket /run/vifd/vifd.sock           every check
  vif-sanity --network blue --kind macvtap          on another network, with another kind
  vif-sanity --only 'watch.*' --only 'race.*'       some of them
  vif-sanity --junit report.xml                     for CI
  vif-sanity --list                                 the checks and the rules that they test
"""
_EPILOG = """\b
Exit status:
  0    the daemon keeps every rule that it could be made to show
  1    it breaks one
  2    nothing could be tested: the command line is wrong, or vifd can't be reached, or makes no endpoints for this user
  130  interrupted
"""


@dataclass(frozen=True, slots=True)
class _Options:
    """The options, as click gives them."""

    socket: str | None
    network: str
    kind: str | None
    only: tuple[str, ...]
    skip: tuple[str, ...]
    list_only: bool
    junit: BinaryIO | None
    as_json: bool
    timeout: float


@click.command(
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 130},
)
@click.option("--socket", type=click.Path(), help="The daemon's socket. [default: $VIFD_SOCKET, else /run/vifd/vifd.sock]")
@click.option("--network", default="", metavar="NAME", help="Where to make endpoints. [default: the first that can make one]")
@click.option("--kind", type=click.Choice(KINDS), help="What to make. [default: the one that can do most]")
@click.option("--only", multiple=True, metavar="PATTERN", help="Only checks with such names, `race.*`; may be repeated.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="No checks with such names; may be repeated.")
@click.option("--list", "list_only", is_flag=True, help="Only list the checks.")
@click.option("--junit", type=click.File("wb", lazy=False), metavar="FILE", help="Write JUnit's XML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_TIMEOUT_S,
    metavar="SECONDS",
    help="How long a call, or the wait for an event, may take. [default: 30]",
)
def sanity_command(**values: Any) -> int:
    """Run vif-sanity; returns its exit status."""
    options = _Options(**values)
    try:
        selected = runner.select(options.only, options.skip)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if options.list_only:
        report.print_checks(selected, as_json=options.as_json)
        return CONFORMS_EXIT
    try:
        session = _open_session(options)
    except VifError as error:
        click.echo(f"vif-sanity: {error.message}", err=True)
        return USAGE_EXIT
    except NothingToTestError as error:
        click.echo(f"vif-sanity: {error}", err=True)
        return USAGE_EXIT
    with session:
        results, whole = _run(session, selected, quiet=options.as_json)
        if options.as_json:
            report.print_json(session, results)
        else:
            report.print_summary(results, whole=whole)
        if options.junit is not None:
            report.write_junit(options.junit, session, results)
    if not whole:
        return INTERRUPTED_EXIT
    return BROKEN_EXIT if any(result.outcome is Outcome.FAILED for result in results) else CONFORMS_EXIT


def _open_session(options: _Options) -> Session:
    path = sockets.find_socket_path(options.socket)
    if obstacle := sockets.find_obstacle(path):
        raise obstacle
    return Session(path, timeout_s=options.timeout, network=options.network, kind=options.kind or "")


def _run(session: Session, selected: list[Check], *, quiet: bool) -> tuple[list[Result], bool]:
    """Run checks; give their results, and whether all were run."""
    results: list[Result] = []
    if not quiet:
        report.print_head(session)
    try:
        for result in runner.run(session, selected):
            results.append(result)
            if not quiet:
                report.print_result(result)
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            click.echo(f"vif-sanity: {note}", err=True)
        return results, False
    return results, True


def run_sanity(arguments: list[str]) -> int:
    """Run vif-sanity.

    Args:
        arguments: The arguments, without the program's name.

    Returns:
        The exit status; `vif-sanity --help` says what each means.
    """
    try:
        status = sanity_command.main(arguments, prog_name="vif-sanity", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USAGE_EXIT
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED_EXIT
    return status if isinstance(status, int) else CONFORMS_EXIT
