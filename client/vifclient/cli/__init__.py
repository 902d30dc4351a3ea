"""`vifctl`: vifd from the command line.

Starting fast matters here, for shell completion runs it at every key: this module and what it imports know click alone. A
command's module is imported when it is used, and rich when a table is printed.
"""

import itertools
import os
import sys

import click

from vifclient.cli.root import root
from vifclient.cli.settings import Settings, report_usage_as_json

INTERRUPTED_EXIT = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE_EXIT = 1  # as click and rich have it, when they notice first


def main() -> None:
    """Run vifctl with the arguments of the process, and exit."""
    # What gRPC logs on stderr by itself stands in the error as well. It isn't for the command of `run`: so not by os.environ.
    if "GRPC_VERBOSITY" not in os.environ:
        os.putenv("GRPC_VERBOSITY", "NONE")
    sys.exit(run_vifctl(sys.argv[1:]))


def run_vifctl(arguments: list[str]) -> int:
    """Run vifctl.

    Args:
        arguments: The arguments, without the program's name.

    Returns:
        The exit status; `vifctl --help` says what each means.
    """
    settings = Settings()
    try:
        status = root.main(arguments, prog_name="vifctl", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except click.UsageError as error:
        if settings.json or _wants_json(arguments):
            report_usage_as_json(error)
        else:
            error.show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED_EXIT
    except BrokenPipeError:
        # Else the interpreter writes what is left at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT
    return status if isinstance(status, int) else 0


def _wants_json(arguments: list[str]) -> bool:
    # Where parsing stopped at a mistake, --json may not have been reached yet.
    return "--json" in itertools.takewhile(lambda argument: argument != "--", arguments)
