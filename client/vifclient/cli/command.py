"""Commands that talk to vifd: the connection, and failures in words."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from vifclient import errors, sockets
from vifclient.channel import DEFAULT_TIMEOUT_S
from vifclient.cli.json_output import to_dict
from vifclient.cli.settings import PlainCommand, Settings
from vifclient.cli.words import enum_word
from vifclient.client import Client
from vifclient.messages import Consideration, ConsiderationOutcome, EndpointKind

REFUSED_EXIT = 1
UNREACHABLE_EXIT = 3

# What vifd's or gRPC's own sentence doesn't say.
_ADVICE = {
    errors.DeadlineExceeded: "It may or may not have been done: repeat it to know; --timeout gives it more time.",
    errors.ServerError: "Report it, with what vifd logged at this time.",
}


class Failure(click.ClickException):
    """A call that failed, as vifctl reports it."""

    exit_code = REFUSED_EXIT

    def __init__(self, error: errors.VifError, *, as_json: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it on stderr."""
        if self.as_json:
            click.echo(json.dumps({"error": to_json(self.error)}), file=file, err=True)
            return
        colour = False if os.environ.get("NO_COLOR") else None
        summary, *lines = explain(self.error)
        click.echo(click.style("vifctl: ", fg="red", bold=True) + summary, file=file, err=True, color=colour)
        for line in lines:
            click.echo(f"  {line}", file=file, err=True)


class UnreachableFailure(Failure):
    """vifd can't be reached, or doesn't answer in time."""

    exit_code = UNREACHABLE_EXIT


class Command(PlainCommand):
    """A command that talks to vifd, and reports what it answers."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except errors.VifError as error:
            unreachable = isinstance(error, errors.TransientError | errors.SocketDenied)
            failure = UnreachableFailure if unreachable else Failure
            raise failure(error, as_json=ctx.ensure_object(Settings).json) from error


@contextmanager
def connect(settings: Settings) -> Iterator[Client]:
    """Connect to vifd, or say at once why that can't be.

    Args:
        settings: What the global options say.

    Yields:
        The client.

    Raises:
        Unreachable: Nobody listens on the socket. A library waits for vifd to come back; a person wants to know.
        SocketDenied: This user may not open it.
    """
    path = sockets.find_socket_path(settings.socket)
    obstacle = sockets.find_obstacle(path)
    if obstacle:
        raise obstacle
    with Client(path, timeout_s=settings.timeout or DEFAULT_TIMEOUT_S) as client:
        yield client


def explain(error: errors.VifError) -> list[str]:
    """Say what is wrong: every violation, every preference's outcome, what to do.

    Args:
        error: The error.

    Returns:
        Lines for people; the first is the summary.
    """
    advice = [advice for kind, advice in _ADVICE.items() if isinstance(error, kind)]
    if isinstance(error, errors.InvalidArgument) and len(error.violations) > 1:  # the message has them all on one line
        return ["the request is wrong in several places", *(f"{field}: {text}" for field, text in error.violations)]
    if isinstance(error, errors.NoAcceptableKind) and error.considered:  # likewise
        return ["the network can make none of the acceptable kinds", *map(consideration_line, error.considered)]
    metadata = error.metadata.items() if isinstance(error, errors.ServerError) else ()
    return [error.message, *(f"{key}: {value}" for key, value in metadata), *advice]


def consideration_line(one: Consideration) -> str:
    """Say what became of a preference.

    Args:
        one: The preference's outcome.

    Returns:
        A line for people.
    """
    kind = enum_word(EndpointKind.DESCRIPTOR, one.kind)
    outcome = enum_word(ConsiderationOutcome.DESCRIPTOR, one.outcome).replace("_", " ")
    return f"{kind}: {outcome}: {one.message}" if one.message else f"{kind}: {outcome}"


def to_json(error: errors.VifError) -> dict[str, Any]:
    """Turn an error into what `--json` prints.

    Args:
        error: The error.

    Returns:
        `code`, `reason`, `message`, `metadata`, and where they belong to it `violations` and `considered`.
    """
    answer: dict[str, Any] = {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "metadata": dict(error.metadata),
    }
    if isinstance(error, errors.InvalidArgument):
        answer["violations"] = [{"field": field, "description": text} for field, text in error.violations]
    if isinstance(error, errors.NoAcceptableKind):
        answer["considered"] = [to_dict(one) for one in error.considered]
    return answer
