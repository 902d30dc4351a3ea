"""One operation after the other: every contender in short rounds by turns, for the machine's mood changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from tests.bench.contenders.bare import bare_kernel
from tests.bench.contenders.cni import cni_bridge
from tests.bench.contenders.empty import empty_call
from tests.bench.contenders.iproute import ip_command
from tests.bench.contenders.vifd import one_by_one
from tests.bench.daemon import Daemon, running_daemon
from tests.bench.measure import Contender, Row, Samples, make_row
from tests.bench.namespaces import Namespace, private_namespace

_IN_NAMESPACE: dict[str, Callable[[Namespace], AbstractContextManager[Contender]]] = {
    "bare": bare_kernel,
    "ip": ip_command,
    "cni": cni_bridge,
}
_AT_DAEMON: dict[str, Callable[[Daemon], AbstractContextManager[Contender]]] = {"empty": empty_call, "vifd": one_by_one}
_WARM_UP = 20
NAMES = ("bare", "empty", "vifd", "ip", "cni")


def measure_one_by_one(
    names: Collection[str], rounds: int, count: int, advance: Callable[[], None], suffix: str = ""
) -> list[Row]:
    """Let the contenders make and delete `count` interfaces each, `rounds` times, by turns.

    Args:
        names: which of NAMES.
        rounds: how many turns each gets.
        count: how many operations of each kind a turn has.
        advance: is called after each turn.
        suffix: of the operations' names.
    """
    samples: defaultdict[tuple[str, str], Samples] = defaultdict(list)
    with _open_contenders(names) as contenders:
        for contender in contenders:
            for _ in range(_WARM_UP):
                contender.round(1)  # whoever comes first pays for loading modules and filling caches
        for _ in range(rounds):
            for contender in contenders:
                for operation, measured in contender.round(count).items():
                    samples[contender.name, operation] += measured
                advance()
    return [make_row(name, f"{operation}{suffix}", measured) for (name, operation), measured in samples.items()]


@contextmanager
def _open_contenders(names: Collection[str]) -> Iterator[list[Contender]]:
    with ExitStack() as stack:
        namespaces = {name: stack.enter_context(private_namespace(name)) for name in _IN_NAMESPACE if name in names}
        contenders = {name: stack.enter_context(_IN_NAMESPACE[name](namespace)) for name, namespace in namespaces.items()}
        if not contenders.keys() >= set(names):
            daemon = stack.enter_context(running_daemon())
            contenders |= {name: stack.enter_context(open_(daemon)) for name, open_ in _AT_DAEMON.items() if name in names}
        yield [contenders[name] for name in NAMES if name in contenders]
