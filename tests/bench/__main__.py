"""The command line: `python -m tests.bench --help`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import activation, cards, function_steps, functions, guarded, in_flight, migration, one_by_one, resident
from tests.bench.contenders.vifd import BATCH_SIZE
from tests.bench.hotplug import HOT_PLUGS, measure_hot_plug
from tests.bench.machine import describe_machine
from tests.bench.measure import Row
from tests.bench.report import Report
from tests.bench.targets import BURST, judge

NAMES = (*one_by_one.NAMES, "in-flight", "guard", "memory", "cycles", "activation", "hotplug", "migration", "vfs-stand-in")
#: What takes the emulated machine's network cards.
OF_CARDS = ("vf-steps", "vfs")


@dataclass(frozen=True)
class Size:
    """How much a run does."""

    rounds: int = 200
    burst_rounds: int = 4
    burst_count: int = 25
    flight_rounds: int = 4
    flight_count: int = 512
    guard_rounds: int = 60
    warm_up: int = 10_240
    cycles: int = 20_000
    activations: int = 100
    migrations: int = 10
    function_steps: int = 10
    function_rounds: int = 5


QUICK = Size(
    rounds=20,
    burst_rounds=1,
    burst_count=10,
    flight_rounds=1,
    flight_count=128,
    guard_rounds=5,
    warm_up=640,
    cycles=1_280,
    activations=10,
    migrations=2,
    function_steps=3,
    function_rounds=1,
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A small run: it shows that the bench works, not how fast vifd is.")
@click.option("--only", multiple=True, type=click.Choice((*NAMES, *OF_CARDS)), help="Measure only this; may be repeated.")
@click.option("--cycles", type=click.IntRange(min=BATCH_SIZE), help="How many lives the growth is measured over.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default="bench.json", show_default=True)
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
@click.pass_context
def main(context: click.Context, *, quick: bool, only: tuple[str, ...], cycles: int | None, json_path: Path, check: bool) -> None:
    """Measure vifd, the bare kernel, `ip` and CNI's bridge plugin side by side, in private network namespaces. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("the bench makes network namespaces and taps: run it as root")
    if not set(OF_CARDS).isdisjoint(only) and not cards.are_there():
        raise click.ClickException("VFs are measured in the emulated machine alone: make bench-vm")
    size = QUICK if quick else Size()
    size = Size(**(asdict(size) | {"cycles": cycles or size.cycles}))
    machine = describe_machine()
    with _progress() as progress:
        rows = _measure(set(only or NAMES), size, progress)
    report = Report(machine, asdict(size), rows, judge(rows))
    report.print(_console())
    report.write_json(json_path)
    click.echo(f"written: {json_path}")
    context.exit(1 if check and any(target.passed is False for target in report.targets) else 0)


def _measure(names: Collection[str], size: Size, progress: Progress) -> list[Row]:
    def step(description: str, total: int) -> Callable[[], None]:
        task = progress.add_task(description, total=total)
        return lambda: progress.advance(task)

    def flights() -> list[Row]:
        turns = step("64 in flight", size.flight_rounds * in_flight.WAYS)
        return in_flight.measure_in_flight(size.flight_rounds, size.flight_count, turns)

    def memory() -> list[Row]:
        batches = resident.count_batches(resident.RESIDENT_COUNT)
        return resident.measure_memory(step(f"{resident.RESIDENT_COUNT:,} endpoints", batches))

    def cycles() -> list[Row]:
        batches = resident.count_batches(size.warm_up) + resident.count_batches(size.cycles)
        return resident.measure_cycles(size.warm_up, size.cycles, step(f"{size.cycles:,} cycles", batches))

    def migrations() -> list[Row]:
        moves = size.migrations * migration.CONTENDERS
        return migration.measure_migration(size.migrations, step("migrations", moves))

    def stand_in() -> list[Row]:
        turns = size.function_rounds * functions.TURNS
        return functions.measure_stand_in(size.function_rounds, step("VFs of stand-in cards", turns))

    parts: dict[str, Callable[[], list[Row]]] = {
        "in-flight": flights,
        "guard": lambda: guarded.measure_guarded(size.guard_rounds, step("guard and limits", size.guard_rounds * guarded.TURNS)),
        "hotplug": lambda: measure_hot_plug(step("hot-plugs", HOT_PLUGS)),
        "memory": memory,
        "cycles": cycles,
        "activation": lambda: activation.measure_activation(size.activations, step("first frames", size.activations)),
        "migration": migrations,
        "vfs-stand-in": stand_in,
        "vf-steps": lambda: function_steps.measure_steps(size.function_steps, step("VFs by step", size.function_steps)),
        "vfs": lambda: functions.measure_functions(size.function_rounds, step("VFs", size.function_rounds * functions.TURNS)),
    }
    rows = _measure_one_by_one(set(names).intersection(one_by_one.NAMES), size, step)
    for name, measure in parts.items():
        rows += measure() if name in names else []
    return rows


def _measure_one_by_one(contenders: set[str], size: Size, step: Callable[[str, int], Callable[[], None]]) -> list[Row]:
    if not contenders:
        return []
    turns = step("one by one", size.rounds * len(contenders))
    rows = one_by_one.measure_one_by_one(contenders, size.rounds, 1, turns)
    turns = step("one by one, in bursts", size.burst_rounds * len(contenders))
    return rows + one_by_one.measure_one_by_one(contenders, size.burst_rounds, size.burst_count, turns, BURST)


def _console() -> Console:
    """Where the report goes: in a file or a pipe as wide as it needs to be."""
    console = Console()
    return console if console.is_terminal else Console(width=130)


def _progress() -> Progress:
    """A bar for each part, on stderr, so that stdout has only the report."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


if __name__ == "__main__":
    main()
