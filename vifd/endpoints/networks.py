"""The networks that are configured now, and who may do what on them. A reload puts others in their place; endpoints stay."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vifd.drivers.base import NetworkDriver
from vifd.endpoints.policy import Policy
from vifd.model import Caller

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Networks:
    """The drivers by network, the policy, and what is wrong with a network, as of now."""

    def __init__(self) -> None:
        self.drivers: Mapping[str, NetworkDriver[Any]] = _NOTHING
        self.policy = Policy(())
        self.problems: dict[str, str] = {}
        self._service_problems: dict[str, str] = {}

    def configure(
        self, drivers: Mapping[str, NetworkDriver[Any]], policy: Policy, problems: Mapping[str, str] = _NOTHING
    ) -> None:
        """Take what a new configuration says.

        Args:
            drivers: by network.
            policy: who may do what.
            problems: by network, why nothing can be made on it now; forgotten when something is.
        """
        self.drivers, self.policy, self.problems = drivers, policy, dict(problems)

    def set_service_problem(self, network: str, problem: str) -> None:
        """Note what guests of a network lack now, like DHCP, though endpoints can be made; an empty text: nothing."""
        self._service_problems[network] = problem

    def problem_of(self, network: str) -> str:
        """Give what is wrong with a network, or nothing."""
        return self.problems.get(network, "") or self._service_problems.get(network, "")

    def admits(self, caller: Caller) -> bool:
        """Tell whether the policy, as it is now, lets a caller talk to vifd at all."""
        return self.policy.admits(caller)
