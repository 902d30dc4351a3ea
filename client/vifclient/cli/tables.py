"""Answers as tables, in colour on a terminal."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vifclient.cli import words
from vifclient.cli.diagnosis import Finding
from vifclient.messages import (
    CheckEndpointResponse,
    ConsiderationOutcome,
    Endpoint,
    EndpointKind,
    EndpointState,
    EswitchMode,
    GetHostInfoResponse,
    KindOffer,
    Network,
    PhysicalFunction,
    PortSpec,
    RequestEndpointResponse,
    VirtualFunction,
    VirtualFunctionState,
    VlanSpec,
    WatchEndpointsResponse,
    WatchEventKind,
)

_GAP = 2  # blanks between columns
_SPARE_COLUMNS = ("PARTNER", "AGE", "MAC", "KIND", "ADDRESS")  # of a list, on a narrow terminal: the first goes first
_STATE_STYLES = {"pending": "yellow", "ready": "green", "attached": "cyan", "active": "bold cyan", "releasing": "yellow"}
_FUNCTION_STYLES = {"free": "green", "in_use": "cyan", "taken": "yellow", "quarantined": "red", "excluded": "dim"}
_EVENT_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}


class Tables:
    """Prints tables."""

    def __init__(self, console: Console, terminal_width: int | None) -> None:
        self._console = console
        self._terminal_width = terminal_width
        self._drifting: set[str] = set()  # of a watch

    def requested(self, answer: RequestEndpointResponse) -> None:
        """Print the endpoint; if it isn't of the first kind that was asked for, why; and what was planned."""
        self._requested(answer)
        lasts = answer.endpoint.generation and not answer.endpoint.HasField("lifetime")
        if self._console.is_terminal and lasts:
            self._print(f"\nTake it down with: vifctl release {answer.endpoint.endpoint_id}", "dim")

    def requested_pair(self, answers: Sequence[RequestEndpointResponse]) -> None:
        """Print the parts one below the other."""
        for number, answer in enumerate(answers):
            if number:
                self._console.print()
            self._requested(answer)
        first = answers[0].endpoint
        if self._console.is_terminal and first.generation and not first.HasField("lifetime"):
            self._print(f"\nTake both down with: vifctl release --pair {first.endpoint_id}", "dim")

    def _requested(self, answer: RequestEndpointResponse) -> None:
        self.endpoint(answer.endpoint)
        planned = bool(answer.plan) or not answer.endpoint.generation
        if planned or len(answer.considered) > 1:
            self._considered(answer)
        if planned:
            self._print("\nNothing was made. It would take:" if answer.plan else "\nNothing was made.", "bold")
            for step in answer.plan:
                self._print(f"  {step}")

    def released(self, endpoint_ids: list[str]) -> None:
        """Print the ids."""
        for endpoint_id in endpoint_ids:
            self._print(f"released {endpoint_id}")

    def collected(self, endpoint_ids: list[str], *, dry_run: bool) -> None:
        """Print the ids."""
        for endpoint_id in endpoint_ids:
            self._print(f"{'would release' if dry_run else 'released'} {endpoint_id}")
        if not endpoint_ids:
            self._print("There is no garbage.", "dim")

    def checked(self, answers: Sequence[CheckEndpointResponse], *, repair: bool) -> None:
        """Print a row for each drift."""
        table = _table("ENDPOINT", "KIND", "EXPECTED", "ACTUAL", *(["NOW"] if repair else []))
        table.add_column("WHAT", overflow="fold")
        for answer in answers:
            left = {drift.kind for drift in answer.endpoint.drifts}
            for drift in answer.drifts:
                kind = Text(words.drift_kind(drift), "red")
                row = [Text(answer.endpoint.endpoint_id), kind, Text(drift.expected), Text(drift.actual)]
                now = [Text("differs", "red") if drift.kind in left else Text("mended", "green")] if repair else []
                table.add_row(*row, *now, Text(drift.message))
        self._show(table, "Nothing differs." if answers else "There are no endpoints that you may see.")

    def endpoint(self, endpoint: Endpoint) -> None:
        """Print a line for each thing that is known."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold", no_wrap=True)
        for name, value in _describe(endpoint):
            if value:
                grid.add_row(name, value if isinstance(value, Text) else Text(value))
        self._print_table(grid)

    def endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Print a row for each endpoint, with the columns that the terminal has room for."""
        rows = [_list_row(endpoint) for endpoint in endpoints]
        columns = _fit(rows, self._terminal_width)
        table = _table(*columns)
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        self._show(table, "There are no endpoints that you may see.")

    def event(self, event: WatchEndpointsResponse) -> None:
        """Print a line."""
        kind = words.enum_word(WatchEventKind.DESCRIPTOR, event.kind)
        if kind == "synced":
            if self._console.is_terminal:
                self._print("That is all there is now; changes follow. Ctrl-C ends it.", "dim")
            return
        endpoint = event.endpoint
        clock = datetime.now().astimezone().strftime("%H:%M:%S")
        line = Text(f"{clock}  ").append(f"{kind:8}", _EVENT_STYLES.get(kind, "")).append(f"  {endpoint.endpoint_id}  ")
        line.append(f"{endpoint.network}  {_kind(endpoint)} {words.device_name(endpoint)}  ").append(_state(endpoint))
        if words.instance_name(endpoint):
            line.append(f"  {words.instance_name(endpoint)}")
        line.append(self._drift_word(endpoint))
        self._console.print(line, soft_wrap=True)

    def _drift_word(self, endpoint: Endpoint) -> Text:
        """Say what differs now, or that what differed before is mended."""
        if endpoint.drifts:
            self._drifting.add(endpoint.endpoint_id)
            return Text(f"  differs: {', '.join(map(words.drift_kind, endpoint.drifts))}", "red")
        mended = endpoint.endpoint_id in self._drifting
        self._drifting.discard(endpoint.endpoint_id)
        return Text("  mended", "green") if mended else Text()

    def networks(self, info: GetHostInfoResponse) -> None:
        """Print a row for each network, with the kinds that can be made now; then why the others can't."""
        table = _table("NETWORK", "DRIVER", "MTU", "ENDPOINTS", "KINDS")
        for network in info.networks:
            kinds = Text(", ").join(_offer(offer) for offer in network.offers)
            row = [network.name, network.network_driver, str(network.mtu_bytes or "-"), str(network.endpoint_count)]
            table.add_row(*map(Text, row), kinds)
        self._show(table, "There are no networks that you may use.")
        for network in info.networks:
            for offer in network.offers:
                if not offer.available:
                    self._print(f"{network.name}: no {_kind_word(offer)} now: {offer.message}", "dim")

    def host(self, info: GetHostInfoResponse) -> None:
        """Print what vifd says of itself, then the networks."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold", no_wrap=True)
        grid.add_row("version", Text(info.version))
        grid.add_row("boot id", Text(info.boot_id))
        grid.add_row("drivers", Text(", ".join(info.network_drivers)))
        grid.add_row("fd socket", Text(info.fd_socket_path or "none"))
        grid.add_row("limits", Text(words.limits_mechanism(info.limits_mechanism)))
        self._print_table(grid)
        self._console.print()
        self.networks(info)
        self._functions(info)

    def diagnosed(self, findings: Sequence[Finding]) -> None:
        """Print each finding, with what to do about it on the next line."""
        for finding in findings:
            self._console.print(Text(f"{finding.subject}: ", "red").append(finding.problem, "default"), soft_wrap=True)
            self._print(f"  {finding.advice}")
        if not findings:
            self._print("Nothing is wrong that vifctl knows of: VMs can have VFs of this host's cards.", "green")

    def _functions(self, info: GetHostInfoResponse) -> None:
        """Print a row for each PF, and one for each VF; nothing where no network has any."""
        pfs = _table("NETWORK", "PF", "ADDRESS", "NUMA", "LINK", "ESWITCH", "VFS")
        vfs = _table("PF", "VF", "ADDRESS", "IOMMU", "DRIVER", "STATE", "ENDPOINT")
        for table, column in ((pfs, "PROBLEM"), (vfs, "WHY")):
            table.add_column(column, overflow="fold")
        for network in info.networks:
            for pf in network.physical_functions:
                pfs.add_row(*map(Text, _pf_row(network, pf)), Text(pf.message, "yellow"))
                for one in pf.virtual_functions:
                    word = words.enum_word(VirtualFunctionState.DESCRIPTOR, one.state)
                    state = Text(word.replace("_", " "), _FUNCTION_STYLES.get(word, ""))
                    vfs.add_row(*map(Text, _vf_row(pf, one)), state, Text(one.endpoint_id), Text(one.message, "dim"))
        for table in (pfs, vfs):
            if table.row_count:
                self._console.print()
                self._print_table(table)

    def _considered(self, answer: RequestEndpointResponse) -> None:
        self._console.print()
        table = _table("PREFERENCE", "OUTCOME")
        table.add_column("WHY", overflow="fold")
        for one in answer.considered:
            outcome = words.enum_word(ConsiderationOutcome.DESCRIPTOR, one.outcome)
            style = "green" if outcome == "chosen" else "dim"
            kind = words.enum_word(EndpointKind.DESCRIPTOR, one.kind)
            table.add_row(Text(kind), Text(outcome.replace("_", " "), style), Text(one.message))
        self._print_table(table)

    def _show(self, table: Table, otherwise: str) -> None:
        if table.row_count:
            self._print_table(table)
        elif self._console.is_terminal:
            self._print(otherwise, "dim")

    def _print_table(self, table: Table) -> None:
        # rich fills every column with blanks, which in the last one serve nobody, and wrap on a terminal.
        with self._console.capture() as capture:
            self._console.print(table)
        for line in capture.get().splitlines():
            self._console.file.write(f"{line.rstrip()}\n")

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)


def open_output() -> Tables:
    """Open the output."""
    # rich cuts what is too wide, even ids. A terminal wraps it, and a file has no width.
    console = Console(highlight=False, width=10_000)
    return Tables(console, shutil.get_terminal_size().columns if console.is_terminal else None)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _list_row(endpoint: Endpoint) -> dict[str, Text]:
    return {
        "ID": Text(endpoint.endpoint_id),
        "NETWORK": Text(endpoint.network),
        "STATE": _state(endpoint),
        "KIND": Text(_kind(endpoint)),
        "DEVICE": Text(words.device_name(endpoint)),
        "MAC": Text(endpoint.port.mac),
        "ADDRESS": Text(words.addresses(endpoint)),
        "AGE": Text(words.age(endpoint)),
        "INSTANCE": Text(words.instance_name(endpoint)),
        "PARTNER": Text(endpoint.partner_endpoint_id),
    }


def _pf_row(network: Network, pf: PhysicalFunction) -> list[str]:
    place = f"{network.name} ({network.physical_network})" if network.physical_network else network.name
    link = "up" if pf.carrier else "no carrier" if pf.up else "down"
    numa = str(pf.numa_node) if pf.HasField("numa_node") else "-"
    row = [place, pf.ifname or "-", pf.address or "-"]
    mode = words.enum_word(EswitchMode.DESCRIPTOR, pf.eswitch_mode) if pf.eswitch_mode else "-"
    count = f"{len(pf.virtual_functions)}/{pf.total_vfs}"
    return [*row, numa, link, mode, count] if pf.address else [*row, *"----"]


def _vf_row(pf: PhysicalFunction, one: VirtualFunction) -> list[str]:
    group = str(one.iommu_group) if one.HasField("iommu_group") else "-"
    return [pf.ifname or pf.address, str(one.vf_index), one.address, group, one.driver or "-"]


def _fit(rows: Sequence[Mapping[str, Text]], width: int | None) -> list[str]:
    widths = {name: max(len(name), *(row[name].cell_len for row in rows)) + _GAP for name in rows[0]} if rows else {}
    for name in ("ADDRESS", "PARTNER"):
        if not any(row[name] for row in rows):
            widths.pop(name, None)
    for name in _SPARE_COLUMNS:
        if name in widths and width is not None and sum(widths.values()) - _GAP > width:
            del widths[name]
    return list(widths)


def _describe(endpoint: Endpoint) -> Iterable[tuple[str, str | Text]]:
    yield "id", endpoint.endpoint_id
    yield "network", f"{endpoint.network} (driver {endpoint.network_driver})"
    yield "state", _state(endpoint)
    yield "kind", _kind(endpoint)
    yield from _describe_location(endpoint)
    yield from _describe_port(endpoint.port)
    if endpoint.HasField("ip_config"):
        yield "guest has", words.ip_config_line(endpoint.ip_config)
    yield "partner", endpoint.partner_endpoint_id
    yield "instance", words.instance_line(endpoint.instance)
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(endpoint.labels.items()))
    yield "owner", _owner(endpoint)
    yield "lives", words.lifetime_line(endpoint.lifetime)
    if endpoint.HasField("create_time"):
        yield "created", endpoint.create_time.ToDatetime().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    yield "generation", str(endpoint.generation or "")
    for drift in endpoint.drifts:
        yield "drift", Text(words.drift_line(drift), "red")


def _describe_location(endpoint: Endpoint) -> Iterable[tuple[str, str]]:
    kind = endpoint.WhichOneof("location")
    location = getattr(endpoint, kind) if kind else None
    for field, value in location.ListFields() if location else ():
        text = words.enum_word(field.enum_type, value) if field.enum_type else _plain(value)
        yield field.name.replace("_", " "), text


def _plain(value: object) -> str:
    if isinstance(value, VlanSpec):
        return words.vlan_line(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _describe_port(port: PortSpec) -> Iterable[tuple[str, str | Text]]:
    yield "mac", port.mac
    yield "mtu", str(port.mtu_bytes or "")
    yield "addresses", ", ".join(port.addresses)
    yield "public addresses", ", ".join(port.public_addresses)
    if port.HasField("guard"):
        yield "guard", "on" if port.guard.enabled else Text("off", "yellow")
    yield "limit from vm", words.limit_line(port.limits.from_vm)
    yield "limit to vm", words.limit_line(port.limits.to_vm)
    yield "vlan", words.vlan_line(port.vlan) if port.HasField("vlan") else ""
    yield "trusted", Text("yes", "yellow") if port.trusted else ""
    yield "isolated", "yes" if port.isolated else ""
    if port.HasField("link_up"):
        yield "link", "up" if port.link_up else Text("down", "yellow")
    yield "tx queue", f"{port.tx_queue_length} frames" if port.tx_queue_length else ""


def _owner(endpoint: Endpoint) -> str:
    owner = endpoint.owner
    return " ".join(f"{name} {getattr(owner, name)}" for name in ("uid", "gid") if owner.HasField(name))


def _state(endpoint: Endpoint) -> Text:
    word = words.enum_word(EndpointState.DESCRIPTOR, endpoint.state)
    return Text(f"{word}!" if endpoint.drifts else word, "red" if endpoint.drifts else _STATE_STYLES.get(word, ""))


def _kind(endpoint: Endpoint) -> str:
    return endpoint.WhichOneof("location") or ""


def _kind_word(offer: KindOffer) -> str:
    return words.enum_word(EndpointKind.DESCRIPTOR, offer.kind)


def _offer(offer: KindOffer) -> Text:
    return Text(_kind_word(offer), "green" if offer.available else "dim strike")
