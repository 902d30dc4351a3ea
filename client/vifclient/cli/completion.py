"""The command that prints completion scripts. A shell runs it at each start, so it imports nothing of gRPC."""

import json

import click
from click.shell_completion import get_completion_class

from vifclient.cli.settings import PlainCommand, Settings


@click.command(
    "completion",
    cls=PlainCommand,
    examples=[
        r"""echo 'eval "$(vifctl completion bash)"' >> ~/.bashrc""",
        r"""echo 'eval "$(vifctl completion zsh)"' >> ~/.zshrc""",
        "vifctl completion fish > ~/.config/fish/completions/vifctl.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete vifctl's commands, networks and endpoint ids."""
    complete = get_completion_class(shell)
    if complete is None:
        raise click.ClickException(f"click knows no completion for {shell}")
    script = complete(ctx.find_root().command, {}, "vifctl", "_VIFCTL_COMPLETE").source()
    settings = ctx.ensure_object(Settings)
    click.echo(json.dumps({"shell": shell, "script": script}) if settings.json else script)
