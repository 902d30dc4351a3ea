"""Run the tier: find out what this host's kernel can't show, run that in one boot of the machine, and tell what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from tests.support.patience import VARIABLE
from tests.vm import machine, results, selection
from tests.vm.emulator import Emulator
from tests.vm.linux import Linux
from tests.vm.machine import INSIDE, SHARED, Job
from tests.vm.selection import Selection

CHECKOUT = Path(__file__).resolve().parents[2]
#: What a run leaves: pytest's report or the bench's figures, the kernel's console, and the coverage's data.
RESULTS = CHECKOUT / ".cache/vm/results"
_TIERS = ("tests/functional", "tests/vm")
_PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
# An emulated processor is ten to twenty times slower than the one that emulates it.
_PATIENCE = 10
_TEST_TIMEOUT_S = 900
_FIGURES = "bench.json"


@dataclass(frozen=True)
class Runner:
    """Runs tests, or anything, in a machine.

    Args:
        emulator: QEMU.
        linux: The machine's kernel.
        cpus: How many processors a single one has.
        machines: How many the tier has, and how many of its tests run at once. Each has one processor, for emulated ones wait
            for each other, and cards of its own.
        timeout_s: How long it may take from its start to its end.
        coverage: Whether to measure which lines the tier runs.
    """

    emulator: Emulator
    linux: Linux
    cpus: int
    machines: int
    timeout_s: float
    coverage: bool = False

    def run(self, command: Sequence[str]) -> int:
        """Run a command in the checkout, on this terminal; give its exit status."""
        _compile()
        with machine.job_folder() as folder:
            return self._boot(Job(folder, command, CHECKOUT, _environment(), interactive=True), self.cpus)

    def run_tests(self, arguments: Sequence[str]) -> int:
        """Run what pytest finds by its arguments; give its exit status."""
        _compile()
        with machine.job_folder() as folder:
            job = Job(folder, [*_PYTEST, "-v", f"--timeout={_TEST_TIMEOUT_S}", *arguments], CHECKOUT, _environment())
            return _told(job, self._boot(job, self.cpus))

    def run_bench(self, arguments: Sequence[str]) -> int:
        """Run the bench, whose figures are left with the results; give its exit status."""
        _compile()
        with machine.job_folder() as folder:
            command = [sys.executable, "-m", "tests.bench", f"--json={INSIDE / _FIGURES}", *arguments]
            job = Job(folder, command, CHECKOUT, _environment())
            return _told(job, self._boot(job, self.cpus))

    def run_tier(self) -> int:
        """Run what this host's kernel can't show, and tell what ran where; 0: all that ran has passed."""
        chosen = selection.select(collect(), missing_features())
        _compile()
        start_s = time.monotonic()
        with machine.job_folder() as folder:
            jobs = self._divide(folder, chosen.groups())
            with ThreadPoolExecutor(self.machines) as threads:
                statuses = [*threads.map(self._run_part, jobs)]
            return self._tell(jobs, chosen, max(statuses, default=0), time.monotonic() - start_s)

    def _divide(self, folder: Path, groups: list[list[str]]) -> list[Job]:
        """Give each machine its job: to take groups of tests of those that are left."""
        shared = folder / "shared"
        shared.mkdir()
        (shared / "tests").write_text("\n".join(test for group in groups for test in group))
        (shared / "groups").write_text(json.dumps(groups))
        (shared / "claims").mkdir()
        jobs = []
        for number in range(1, min(self.machines, len(groups)) + 1):
            own = folder / str(number)
            own.mkdir()
            jobs.append(Job(own, pytest_command(coverage=self.coverage), CHECKOUT, _environment(), shared=shared))
        return jobs

    def _run_part(self, job: Job) -> int:
        try:
            return _told(job, self._boot(job, 1, RESULTS / job.folder.name))
        except machine.MachineError as error:
            click.echo(f"vm: {error}", err=True)
            return 2

    def _tell(self, jobs: Sequence[Job], chosen: Selection, status: int, seconds: float) -> int:
        reports = [job.folder / "junit.xml" for job in jobs]
        found = results.outcomes(chosen.inside, [report.read_text() for report in reports if report.exists()])
        if self.coverage:
            _report_coverage([job.folder / "coverage" for job in jobs])
        for line in results.summary(chosen, found, release=self.linux.release, seconds=seconds):
            click.echo(line)
        return status or int(any(one.status == "failed" for one in found.values()))

    def _boot(self, job: Job, cpus: int, place: Path = RESULTS) -> int:
        try:
            return machine.run(self.emulator, self.linux, job, cpus=cpus, timeout_s=self.timeout_s)
        finally:
            _keep(job.folder, place)


def pytest_command(*, coverage: bool) -> list[str]:
    """Say how pytest runs, in one of several machines, what they share."""
    python, *pytest = _PYTEST
    measured = ["-m", "coverage", "run"] if coverage else []
    told = ["-v", "-o", "console_output_style=classic", f"--timeout={_TEST_TIMEOUT_S}", f"--junitxml={INSIDE / 'junit.xml'}"]
    shared = [f"--vm-groups={SHARED / 'groups'}", f"--vm-claims={SHARED / 'claims'}", f"@{SHARED / 'tests'}"]
    return [python, *measured, *pytest, *told, "-p", "no:xdist", "-p", "tests.vm.claims", *shared]


def collect() -> list[selection.Collected]:
    """Ask pytest for all tests that may take the machine."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "tests.json")
        plugin = ["-p", "tests.vm.selection", f"--vm-list={listed}"]
        command = [*_PYTEST, "--collect-only", "--quiet", "--quiet", *plugin, *_TIERS]
        # pytest keeps what it compiles of the tests, which the machine would do slowly
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise machine.MachineError(f"pytest can't collect the tests:\n{done.stdout}{done.stderr}")
        return selection.read(listed)


def missing_features() -> dict[str, str]:
    """Ask root's process what this host's kernel lacks, and why."""
    root = [] if os.geteuid() == 0 else ["sudo", "env", "PYTHONDONTWRITEBYTECODE=1"]
    command = [*root, sys.executable, "-m", "tests.support.features"]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _environment() -> dict[str, str]:
    wanted = {
        VARIABLE: str(_PATIENCE),
        "COVERAGE_FILE": "/run/coverage/data",
        "PYTHONUNBUFFERED": "1",  # each test's line is seen when the test is done
        "COLUMNS": str(shutil.get_terminal_size().columns),
        "TERM": os.environ.get("TERM", "dumb"),
    }
    return wanted | ({"PY_COLORS": "1"} if sys.stdout.isatty() else {})


def _compile() -> None:
    """Compile what Python would compile in the machine; who may not write here gives it more time."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "vifd", "vif", "client", "tests"]
    subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False)


def _report_coverage(measured: Iterable[Path]) -> None:
    """Put together what every process has measured, and print how much of each file ran."""
    data = f"--data-file={RESULTS / 'coverage'}"
    files = [str(file) for folder in measured for file in folder.glob("data.*")]
    for arguments in (["combine", "--quiet", data, *files], ["report", data]):
        subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=CHECKOUT, check=False)


def _keep(folder: Path, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name in ("junit.xml", "console", _FIGURES):
        (place / name).unlink(missing_ok=True)
        if (folder / name).exists():
            shutil.copyfile(folder / name, place / name)


def _told(job: Job, status: int) -> int:
    """Show the kernel's console where something has failed."""
    if status != 0:
        click.echo(f"--- the machine's console:\n{job.console[-8000:]}--- the end of the console", err=True)
    return status
