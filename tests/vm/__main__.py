"""The command line: `python -m tests.vm --help`."""

from __future__ import annotations

import math
import os
import sys

import click

from tests.guest.packages import PackageError
from tests.vm import CACHE, emulator, linux
from tests.vm.apt import Apt
from tests.vm.machine import MachineError
from tests.vm.tier import Runner


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.option("--prepare", is_flag=True, help="Only download and build what is missing.")
@click.option("--shell", is_flag=True, help="Give a shell in the machine.")
@click.option("--bench", is_flag=True, help="Run the bench in it; TESTS are its arguments.")
@click.option("--cpus", type=click.IntRange(1), default=2, show_default=True, help="Of the machine for TESTS or a shell.")
@click.option(
    "--machines",
    type=click.IntRange(1),
    default=min(os.cpu_count() or 1, 4),
    show_default=True,
    help="For the tier; each has one processor and 2.5 GiB.",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=40, show_default=True, help="What the tests may take."
)
@click.option("--coverage", is_flag=True, help="Say which lines the tier has run.")
@click.argument("tests", nargs=-1, type=click.UNPROCESSED)
def main(
    *, prepare: bool, shell: bool, bench: bool, cpus: int, machines: int, minutes: float, coverage: bool, tests: tuple[str, ...]
) -> None:
    """Run TESTS in an emulated machine: pytest's arguments. Without any: what this host's kernel can't show."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        apt = Apt(CACHE / "apt")
        runner = Runner(
            emulator.ensure(CACHE, apt, print),
            linux.ensure(CACHE, apt, print),
            cpus,
            machines,
            math.inf if shell else minutes * 60,
            coverage,
        )
        if prepare:
            status = 0
        elif shell:
            status = runner.run(["bash", "-i"])
        elif bench:
            status = runner.run_bench(tests)
        else:
            status = runner.run_tests(tests) if tests else runner.run_tier()
    except (PackageError, MachineError) as error:
        print(f"vm: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
