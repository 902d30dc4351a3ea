"""What holds for every command: the global options, and how text is checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click


@dataclass(slots=True)
class Settings:
    """What the global options say, before or after the command's name.

    Attributes:
        socket: vifd's socket. None: the client's default.
        json: Whether to print JSON.
        timeout: How long a call may take, in seconds. None: the client's default.
    """

    socket: str | None = None
    json: bool = False
    timeout: float | None = None


def _store(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value:  # an option that isn't given after the command doesn't undo the one before it
        setattr(ctx.ensure_object(Settings), str(param.name), value)


GLOBAL_OPTIONS = (
    click.Option(
        ["--socket"],
        type=click.Path(),
        expose_value=False,
        callback=_store,
        is_eager=True,
        help="vifd's socket. [default: $VIFD_SOCKET, else /run/vifd/vifd.sock]",
    ),
    click.Option(["--json"], is_flag=True, expose_value=False, callback=_store, is_eager=True, help="Print JSON."),
    click.Option(
        ["--timeout"],
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        expose_value=False,
        callback=_store,
        is_eager=True,
        help="How long vifd may take. [default: 30; watch: for ever]",
    ),
)


class SectionOption(click.Option):
    """An option that the help shows in a section of its own.

    Args:
        section: The section's heading.
    """

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class PlainCommand(click.Command):
    """A command that takes the global options too, for that is where people write them, and has examples in its help.

    Args:
        examples: Lines of a shell.
    """

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(GLOBAL_OPTIONS)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on its line."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {example}\n")


def report_usage_as_json(error: click.UsageError) -> None:
    """Print a wrong command line as JSON on stderr.

    Args:
        error: What is wrong with it.
    """
    click.echo(json.dumps({"error": {"code": "USAGE", "message": error.format_message()}}), err=True)


def check_text(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Check that protobuf can carry a text. A command line may hold any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{value.encode(errors='surrogateescape')!r} is not UTF-8") from None
    return value


def split_labels(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    """Split each KEY=VALUE."""
    labels = []
    for value in values:
        key, equals, text = check_text(ctx, param, value).partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        labels.append((key, text))
    return labels
