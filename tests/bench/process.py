"""What a daemon's processes hold: memory, open files, its database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """A daemon with its helper, at one moment."""

    rss_mib: float
    pss_mib: float
    open_files: int
    database_mib: float


def measure_footprint(pid: int, state: Path) -> Footprint:
    """Add the process and its children up.

    Args:
        pid: the main process.
        state: the directory with its database.
    """
    processes = [pid, *_children(pid)]
    rollups = [_rollup(process) for process in processes]
    return Footprint(
        rss_mib=sum(rollup["Rss"] for rollup in rollups) / 1024,
        # Pages that both have count once: what memory the two take together.
        pss_mib=sum(rollup["Pss"] for rollup in rollups) / 1024,
        open_files=sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in processes),
        database_mib=sum(file.stat().st_size for file in state.rglob("*") if file.is_file()) / 2**20,
    )


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def _rollup(pid: int) -> dict[str, int]:
    """The sums of /proc/PID/smaps_rollup (proc(5)), in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
