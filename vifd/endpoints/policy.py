"""Who may do what, by the configuration's `[[policy]]` tables.

Root may do everything; without a table, whoever may connect may use every network.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vifd.config import PolicyRule, Role
from vifd.errors import NotAllowed, QuotaReached, UnknownNetwork
from vifd.model import Caller, EndpointSpec, Feature, Kind, Offer, Owner, Port

_RANK = {role: rank for rank, role in enumerate(Role)}


class Policy:
    """Answers what a caller may do. The most generous of the rules that match a caller counts.

    Args:
        rules: the configuration's tables, names resolved to numbers.
    """

    def __init__(self, rules: Sequence[PolicyRule]) -> None:
        self._rules = tuple(rules)

    def admits(self, caller: Caller) -> bool:
        """Tell whether a caller may talk to vifd at all."""
        return caller.uid == 0 or not self._rules or any(_is_for(rule, caller) for rule in self._rules)

    def may_see(self, caller: Caller, owner: Owner, network: str) -> bool:
        """Tell whether a caller may see an endpoint: the owner, a reader, a delegate and an administrator of its network may.

        A rule of role `read` shows every endpoint of its networks, one of role `use` only the caller's own.
        """
        return owner.uid == caller.uid or self._has(caller, network, (Role.READ, Role.DELEGATE, Role.ADMIN))

    def may_change(self, caller: Caller, owner: Owner, network: str) -> bool:
        """Tell whether a caller may change or release an endpoint."""
        return owner.uid == caller.uid or self._has(caller, network, (Role.DELEGATE, Role.ADMIN))

    def may_use(self, caller: Caller, network: str) -> bool:
        """Tell whether a caller may ask for endpoints on a network."""
        return self._open_to(caller) or any(True for _ in self._using(caller, network))

    def may_read(self, caller: Caller, network: str) -> bool:
        """Tell whether a caller may know that a network is there."""
        return self._open_to(caller) or any(_covers(rule, network) for rule in self._rules if _is_for(rule, caller))

    def check_request(self, caller: Caller, spec: EndpointSpec) -> None:
        """Check that a caller may ask for what it asks for.

        Raises:
            UnknownNetwork: it may not even know the network.
            NotAllowed: it may not use the network, or name this owner.
        """
        if not self.may_read(caller, spec.network):
            raise UnknownNetwork(unknown_network(spec.network))
        if not self.may_use(caller, spec.network):
            raise NotAllowed(
                f"uid {caller.uid} may see network {spec.network}, not use it; "
                'ask the administrator for a policy with role = "use"'
            )
        self._check_owner(caller, spec)

    def forbidden(self, caller: Caller, network: str, offers: Sequence[Offer]) -> dict[Kind, str]:
        """Say which of the kinds that a network's driver offers a caller doesn't get, and why.

        Args:
            caller: who asks.
            network: where.
            offers: what the driver can make.
        """
        rules = self._using(caller, network)
        open_to_all = self._open_to(caller) or any(not rule.kinds for rule in rules)
        reasons = {
            offer.kind: f"the policy allows this caller no {offer.kind} on network {network}"
            for offer in offers
            if not open_to_all and not any(offer.kind in rule.kinds for rule in rules)
        }
        if self._may_go_unguarded(caller, network):
            return reasons
        allowed = [offer for offer in offers if offer.kind not in reasons]
        guarded = [offer.kind for offer in allowed if Feature.GUARD in offer.features]
        way = f"accept {' or '.join(guarded)}, or ask" if guarded else "ask"
        for kind in {offer.kind for offer in allowed}.difference(guarded):
            reasons[kind] = (
                f"{kind} on network {network} can't be guarded, and this caller's endpoints have to be; "
                f'{way} the administrator for a policy with guard = "optional"'
            )
        return reasons

    def check_guard(self, caller: Caller, port: Port, network: str) -> Port:
        """Give the port as it is asked for in effect: who may not switch the guard off has it on, on every kind.

        Raises:
            NotAllowed: it is to be off, and the caller may not have that.
        """
        if self._may_go_unguarded(caller, network):
            return port
        if port.guard_enabled is False:
            raise NotAllowed(
                f"uid {caller.uid} may not switch the guard off on network {network}; "
                'leave port.guard out, or ask the administrator for a policy with guard = "optional"'
            )
        return msgspec.structs.replace(port, guard_enabled=True)

    def check_trust(self, caller: Caller, port: Port, network: str) -> None:
        """Check that a caller may have a port as trusted as it asks for.

        Raises:
            NotAllowed: it is to be trusted, and the caller is no administrator of the network.
        """
        if port.trusted and not self._has(caller, network, (Role.ADMIN,)):
            raise NotAllowed(
                f"uid {caller.uid} may not have a trusted VF on network {network}; leave port.trusted out, or ask the "
                'administrator for a policy with role = "admin"'
            )

    def _may_go_unguarded(self, caller: Caller, network: str) -> bool:
        if self._has(caller, network, (Role.ADMIN,)):
            return True
        return any(rule.guard == "optional" for rule in self._using(caller, network))

    def check_quota(self, caller: Caller, network: str, endpoint_count: int) -> None:
        """Check that a caller may have so many endpoints.

        Args:
            caller: who asks.
            network: where.
            endpoint_count: how many it would have then, on all networks.

        Raises:
            QuotaReached: it may not.
        """
        if self._open_to(caller):
            return
        limits = [rule.max_endpoints for rule in self._using(caller, network)]
        if limits and all(limit is not None and endpoint_count > limit for limit in limits):
            most = max(limit for limit in limits if limit is not None)
            raise QuotaReached(
                f"uid {caller.uid} may have {most} endpoints; release one, or ask the administrator for a larger max_endpoints"
            )

    def _check_owner(self, caller: Caller, spec: EndpointSpec) -> None:
        owner = spec.owner
        if self._open_to(caller) and caller.uid == 0:
            return
        if self._has(caller, spec.network, (Role.DELEGATE, Role.ADMIN)):
            return
        if owner.uid != caller.uid:
            raise NotAllowed(
                f'uid {caller.uid} may not make endpoints for uid {owner.uid}; leave owner out, or ask for role = "delegate"'
            )
        if owner.gid is not None and owner.gid != caller.gid and owner.gid not in caller.groups:
            raise NotAllowed(f"uid {caller.uid} is not in group {owner.gid}; name one of the caller's groups, or none")

    def _open_to(self, caller: Caller) -> bool:
        return caller.uid == 0 or not self._rules

    def _has(self, caller: Caller, network: str, roles: Sequence[Role]) -> bool:
        if caller.uid == 0:
            return True
        return any(rule.role in roles and _covers(rule, network) for rule in self._rules if _is_for(rule, caller))

    def _using(self, caller: Caller, network: str) -> list[PolicyRule]:
        return [r for r in self._rules if _RANK[r.role] >= _RANK[Role.USE] and _is_for(r, caller) and _covers(r, network)]


def unknown_network(network: str) -> str:
    """Give the sentence for a network that isn't there, or that the caller may not know of: the same for both."""
    return f"there is no network {network!r} for this caller; GetHostInfo (vifctl networks) lists those that there are"


def _is_for(rule: PolicyRule, caller: Caller) -> bool:
    if rule.uid is not None:
        return rule.uid == caller.uid
    return rule.gid == caller.gid or rule.gid in caller.groups


def _covers(rule: PolicyRule, network: str) -> bool:
    return "*" in rule.networks or network in rule.networks
