"""The command that says what is wrong: doctor."""

from pathlib import Path

import click

from vifclient import errors
from vifclient.cli.command import connect
from vifclient.cli.diagnosis import Finding, Places, find_problems
from vifclient.cli.output import open_output
from vifclient.cli.settings import PlainCommand, Settings
from vifclient.messages import GetHostInfoResponse

FOUND_EXIT = 1
_PLACES = Places()


@click.command(
    "doctor",
    cls=PlainCommand,
    examples=[
        "vifctl doctor",
        "vifctl doctor --json | jq -r '.findings[].advice'",
    ],
)
@click.option("--sysfs", type=click.Path(path_type=Path), default=_PLACES.sysfs, hidden=True)
@click.option("--modules", type=click.Path(path_type=Path), default=_PLACES.modules, hidden=True)
@click.pass_obj
def doctor_command(settings: Settings, sysfs: Path, modules: Path) -> int:
    """Say why VMs could get no VFs of SR-IOV cards on this host, or no vDPA devices, and what to do about it.

    It looks at what the kernel shows, also where vifd doesn't run, and at the PFs of vifd's networks; of vDPA at what vifd says.
    It changes nothing. The exit status is 0 when all is well, and 1 when something was found.
    """
    info, findings = _ask(settings)
    findings += find_problems(Places(sysfs, modules), info)
    open_output(settings).diagnosed(findings)
    return FOUND_EXIT if findings else 0


def _ask(settings: Settings) -> tuple[GetHostInfoResponse | None, list[Finding]]:
    """Ask vifd about its networks; that it can't be asked is the first finding."""
    try:
        with connect(settings) as client:
            return client.get_host_info(), []
    except errors.VifError as error:
        advice = "start it (systemctl start vifd), or ask as somebody who may; its networks were not looked at"
        return None, [Finding("vifd", error.message, advice)]
