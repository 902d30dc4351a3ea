"""The command `vifctl` itself: its help, and which module has which command."""

from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from vifclient.cli.settings import GLOBAL_OPTIONS

# What `vifctl --help` and completion show, without importing the commands.
_COMMANDS = {
    "request": ("vifclient.cli.endpoints", "Ask for an endpoint on a network."),
    "release": ("vifclient.cli.endpoints", "Take endpoints down."),
    "collect-garbage": ("vifclient.cli.garbage", "Release your endpoints but those to keep."),
    "update": ("vifclient.cli.endpoints", "Change the port of an endpoint while its VM runs."),
    "check": ("vifclient.cli.endpoints", "Compare endpoints with what is there, and mend them."),
    "activate": ("vifclient.cli.endpoints", "Say that the VM of an endpoint runs here now."),
    "list": ("vifclient.cli.endpoints", "List the endpoints."),
    "show": ("vifclient.cli.endpoints", "Show everything about one endpoint."),
    "watch": ("vifclient.cli.endpoints", "Follow the endpoints as they change."),
    "networks": ("vifclient.cli.host", "List the networks and what they offer."),
    "host": ("vifclient.cli.host", "Show what this host's vifd can do."),
    "doctor": ("vifclient.cli.doctor", "Say why SR-IOV would not work here, and what to do."),
    "run": ("vifclient.cli.run", "Run a command with an endpoint of its own."),
    "completion": ("vifclient.cli.completion", "Print the completion script of a shell."),
}

_HELP = """Ask vifd for the network interfaces of virtual machines.

vifd is the daemon of this host that makes them; vifctl talks to it over its Unix socket, as any hypervisor driver does.

\b
Examples:
  vifctl networks                               what there is
  vifctl request default                        make a tap on the network "default"
  vifctl release 3f0c1e9a-...                   take it down
  vifctl run default -- qemu-system-x86_64 -netdev tap,id=n0,fds={fds} \\
      -device virtio-net-pci,netdev=n0,mac={mac} ...
"""

_EPILOG = """\b
Exit status:
  0    done
  1    vifd refused, or failed; check: something differs; doctor: something is wrong
  2    the command line is wrong
  3    vifd can't be reached, or doesn't answer in time
  125  run: COMMAND was not started, for vifd refused or can't be reached
  126  run: COMMAND can't be executed
  127  run: COMMAND was not found
  run otherwise becomes COMMAND, and so has its exit status.

\b
Environment:
  VIFD_SOCKET     vifd's socket (default: /run/vifd/vifd.sock)
  VIFD_FD_SOCKET  its fd socket, for run (default: what vifd says)
  NO_COLOR        no colours

With --json every command prints protobuf's JSON of the API's messages, with the field names of the .proto files: one object, for
list {"endpoints": [...]}, for check {"checks": [...]}, for networks {"networks": [...]}, for doctor {"findings": [...]},
for watch one object a line. Errors go
to stderr as {"error": {...}}.
"""


class Root(click.Group):
    """The group of commands, each imported when it is used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(GLOBAL_OPTIONS)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Name the commands, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name, or an option."""
        commands = [CompletionItem(n, help=summary) for n, (_, summary) in _COMMANDS.items() if n.startswith(incomplete)]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=Root,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 130},
)
@click.version_option(package_name="vifd", prog_name="vifctl")
def root() -> None:
    """Be the root of the commands; they do the work."""
