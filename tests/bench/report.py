"""The report: tables for people, JSON for programs (its shape: README.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.machine import Machine
from tests.bench.measure import Row
from tests.bench.targets import Target

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """One run."""

    machine: Machine
    options: dict[str, int]
    rows: Sequence[Row]
    targets: Sequence[Target]

    def write_json(self, path: Path) -> None:
        """Write it for programs."""
        document = {
            "schema": SCHEMA,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": self.machine,
            "options": self.options,
            "rows": self.rows,
            "targets": [{**msgspec.to_builtins(target), "passed": target.passed} for target in self.targets],
        }
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")

    def print(self, console: Console) -> None:
        """Show it to people."""
        console.print(self._rows_table(), self._targets_table())

    def _rows_table(self) -> Table:
        table = Table(title=f"{self.machine.cpus} x {self.machine.cpu}, Linux {self.machine.kernel}")
        for heading in ("contender", "operation"):
            table.add_column(heading)
        for heading in ("p50", "p90", "per second", "of bare kernel", "samples"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(
                row.contender,
                row.operation,
                _amount(row.p50, row.unit),
                _amount(row.p90, row.unit) if row.samples > 1 else "",
                f"{1000 / row.p50:,.0f}" if row.unit == "ms" else "",
                self._ratio(row),
                str(row.samples),
            )
        return table

    def _ratio(self, row: Row) -> str:
        operation = row.operation.partition(",")[0]
        for base in self.rows:
            if (base.contender, base.operation) == ("bare kernel", operation) and base is not row:
                return f"{row.p50 / base.p50:.2f}"
        return ""

    def _targets_table(self) -> Table:
        table = Table(title="Targets")
        table.add_column("figure")
        for heading in ("measured", "limit", "measured / limit"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for target in self.targets:
            table.add_row(target.name, *_figures(target), _VERDICTS[target.passed])
        return table


_VERDICTS = {True: "[green]pass[/]", False: "[bold red]miss[/]", None: "[yellow]not measured[/]"}


def _figures(target: Target) -> tuple[str, str, str]:
    if target.passed is None:
        return ("", "", "")
    sign = "≥" if target.at_least else "≤"
    ratio = f"{target.measured / target.limit:.2f}" if target.limit else ""
    return (_amount(target.measured, target.unit), f"{sign} {_amount(target.limit, target.unit)}", ratio)


def _amount(value: float, unit: str) -> str:
    digits = 2 if unit in ("ms", "MiB", "%") else 0
    return f"{value:,.{digits}f} {unit}".strip()
