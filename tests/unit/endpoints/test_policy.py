import pytest

from vifd.config import PolicyRule, Role
from vifd.endpoints.policy import Policy
from vifd.errors import NotAllowed, QuotaReached, UnknownNetwork
from vifd.model import Caller, EndpointSpec, Feature, Kind, Offer, Owner, Port

ROOT = Caller(0, 0)
ALICE = Caller(1000, 1000, frozenset({1000, 36}))
BOB = Caller(1001, 1001)
GUARD = frozenset({Feature.GUARD})
GUARDED, UNGUARDED = [Offer(kind, GUARD) for kind in Kind], [Offer(kind) for kind in Kind]


def rule(role: Role = Role.USE, *, uid: int = ALICE.uid, **fields: object) -> PolicyRule:
    return PolicyRule(uid=uid, role=role, **fields)


def spec(uid: int = ALICE.uid, gid: int | None = None, network: str = "blue") -> EndpointSpec:
    return EndpointSpec(network, (), Owner(uid, gid))


def allowed(policy: Policy, caller: Caller, wanted: EndpointSpec) -> bool:
    try:
        policy.check_request(caller, wanted)
    except NotAllowed:
        return False
    return True


def test_without_a_rule_whoever_may_connect_may_use_every_network() -> None:
    policy = Policy(())
    assert policy.admits(ALICE)
    assert policy.may_use(ALICE, "blue")
    assert allowed(policy, ALICE, spec())


def test_without_a_rule_nobody_may_act_for_others() -> None:
    policy = Policy(())
    assert not allowed(policy, ALICE, spec(BOB.uid))
    assert not policy.may_see(ALICE, Owner(BOB.uid), "blue")
    assert not policy.may_change(ALICE, Owner(BOB.uid), "blue")


def test_root_may_do_everything_whatever_the_rules_say() -> None:
    policy = Policy([rule(uid=BOB.uid, max_endpoints=1)])
    assert policy.admits(ROOT)
    assert allowed(policy, ROOT, spec(BOB.uid, 77))
    assert policy.may_see(ROOT, Owner(5), "blue")
    assert policy.may_change(ROOT, Owner(5), "blue")
    assert not policy.forbidden(ROOT, "blue", UNGUARDED)
    policy.check_quota(ROOT, "blue", 10_000)


def test_who_is_in_no_rule_isnt_admitted() -> None:
    assert not Policy([rule()]).admits(BOB)


@pytest.mark.parametrize(
    "mine", [PolicyRule(uid=1000), PolicyRule(gid=1000), PolicyRule(gid=36), PolicyRule(uid=1000, role=Role.READ)]
)
def test_a_rule_is_for_a_uid_a_gid_or_a_supplementary_group(mine: PolicyRule) -> None:
    assert Policy([mine]).admits(ALICE)
    assert not Policy([mine]).admits(BOB)


def test_a_rule_for_a_uid_isnt_for_the_gid_of_the_same_number() -> None:
    assert not Policy([PolicyRule(uid=36)]).admits(ALICE)
    assert not Policy([PolicyRule(gid=1001)]).admits(Caller(1001, 5))


def test_a_network_outside_a_callers_rules_is_as_unknown_as_none() -> None:
    policy = Policy([rule(networks=("blue",))])
    policy.check_request(ALICE, spec())
    with pytest.raises(UnknownNetwork, match="'red'"):
        policy.check_request(ALICE, spec(network="red"))


def test_who_may_only_read_may_not_use() -> None:
    policy = Policy([rule(Role.READ)])
    assert policy.may_read(ALICE, "blue")
    assert not policy.may_use(ALICE, "blue")
    with pytest.raises(NotAllowed, match='role = "use"'):
        policy.check_request(ALICE, spec())


@pytest.mark.parametrize(
    ("role", "use", "see", "change", "delegate"),
    [
        (Role.READ, False, True, False, False),
        (Role.USE, True, False, False, False),
        (Role.DELEGATE, True, True, True, True),
        (Role.ADMIN, True, True, True, True),
    ],
)
def test_each_role_may_do_what_it_says(role: Role, use: bool, see: bool, change: bool, delegate: bool) -> None:
    policy = Policy([rule(role)])
    others = Owner(BOB.uid)
    assert policy.may_use(ALICE, "blue") is use
    assert policy.may_see(ALICE, others, "blue") is see
    assert policy.may_change(ALICE, others, "blue") is change
    assert allowed(policy, ALICE, spec(BOB.uid)) is delegate


@pytest.mark.parametrize("role", list(Role))
def test_a_role_on_one_network_says_nothing_of_another(role: Role) -> None:
    policy = Policy([rule(role, networks=("blue",))])
    assert not policy.may_use(ALICE, "red")
    assert not policy.may_see(ALICE, Owner(BOB.uid), "red")
    assert not policy.may_change(ALICE, Owner(BOB.uid), "red")


@pytest.mark.parametrize("role", list(Role))
def test_everybody_sees_and_changes_their_own(role: Role) -> None:
    policy = Policy([rule(role)])
    assert policy.may_see(ALICE, Owner(ALICE.uid), "red")
    assert policy.may_change(ALICE, Owner(ALICE.uid), "red")


def test_the_most_generous_rule_counts() -> None:
    policy = Policy([rule(Role.READ), PolicyRule(gid=36, role=Role.ADMIN, networks=("blue",))])
    assert policy.may_change(ALICE, Owner(BOB.uid), "blue")
    assert not policy.may_change(ALICE, Owner(BOB.uid), "red")


@pytest.mark.parametrize("gid", [None, 1000, 36])
def test_an_owner_may_be_in_a_group_of_the_callers(gid: int | None) -> None:
    assert allowed(Policy(()), ALICE, spec(gid=gid))


def test_an_owner_may_be_in_no_other_group() -> None:
    with pytest.raises(NotAllowed, match="not in group 77"):
        Policy(()).check_request(ALICE, spec(gid=77))


def test_a_delegate_names_any_owner() -> None:
    assert allowed(Policy([rule(Role.DELEGATE)]), ALICE, spec(BOB.uid, 77))


def test_a_rule_without_kinds_forbids_none() -> None:
    assert not Policy([rule()]).forbidden(ALICE, "blue", GUARDED)


def test_a_rule_with_kinds_forbids_the_others() -> None:
    policy = Policy([rule(kinds=("tap", "bridge"))])
    assert set(Kind) - set(policy.forbidden(ALICE, "blue", GUARDED)) == {Kind.BRIDGE, Kind.TAP}


def test_the_kinds_of_several_rules_add_up() -> None:
    policy = Policy([rule(kinds=("tap",)), PolicyRule(gid=36, kinds=("pci",))])
    assert set(Kind) - set(policy.forbidden(ALICE, "blue", GUARDED)) == {Kind.TAP, Kind.PCI}


def test_a_rule_that_only_reads_gives_no_kind() -> None:
    policy = Policy([rule(kinds=("tap",)), PolicyRule(gid=36, role=Role.READ)])
    assert "no pci" in policy.forbidden(ALICE, "blue", GUARDED)[Kind.PCI]


@pytest.mark.parametrize("rules", [[], [rule()], [rule(networks=("red",), guard="optional"), PolicyRule(gid=36)]])
def test_a_kind_that_cant_be_guarded_is_forbidden_where_the_guard_has_to_be(rules: list[PolicyRule]) -> None:
    found = Policy(rules).forbidden(ALICE, "blue", [Offer(Kind.TAP, GUARD), Offer(Kind.MACVTAP, GUARD), Offer(Kind.BRIDGE)])
    assert found == {
        Kind.BRIDGE: "bridge on network blue can't be guarded, and this caller's endpoints have to be; "
        'accept tap or macvtap, or ask the administrator for a policy with guard = "optional"'
    }


@pytest.mark.parametrize("mine", [rule(guard="optional"), rule(Role.ADMIN)])
def test_who_may_go_unguarded_gets_kinds_that_cant_be_guarded(mine: PolicyRule) -> None:
    assert not Policy([mine]).forbidden(ALICE, "blue", UNGUARDED)


def test_nobody_is_told_to_accept_a_kind_that_is_forbidden_as_well() -> None:
    found = Policy([rule(kinds=("bridge",))]).forbidden(ALICE, "blue", [Offer(Kind.TAP, GUARD), Offer(Kind.BRIDGE)])
    assert found[Kind.BRIDGE].endswith('have to be; ask the administrator for a policy with guard = "optional"')


@pytest.mark.parametrize("rules", [(), [rule(guard="optional")], [rule(Role.DELEGATE)], [rule(Role.ADMIN, networks=("red",))]])
def test_a_port_that_is_trusted_is_for_no_one_but_an_administrator(rules: list[PolicyRule]) -> None:
    with pytest.raises(NotAllowed, match="may not have a trusted VF on network blue"):
        Policy(rules).check_trust(ALICE, Port(trusted=True), "blue")
    for port in (Port(), Port(trusted=False)):
        Policy(rules).check_trust(ALICE, port, "blue")


def test_an_administrator_may_have_a_trusted_port() -> None:
    Policy([rule(Role.ADMIN)]).check_trust(ALICE, Port(trusted=True), "blue")
    Policy(()).check_trust(ROOT, Port(trusted=True), "blue")


def test_a_quota_is_what_a_caller_may_have_at_most() -> None:
    policy = Policy([rule(max_endpoints=2)])
    policy.check_quota(ALICE, "blue", 2)
    with pytest.raises(QuotaReached, match="may have 2 endpoints"):
        policy.check_quota(ALICE, "blue", 3)


def test_the_largest_quota_counts() -> None:
    policy = Policy([rule(max_endpoints=2), PolicyRule(gid=36, max_endpoints=5)])
    policy.check_quota(ALICE, "blue", 5)
    with pytest.raises(QuotaReached, match="may have 5"):
        policy.check_quota(ALICE, "blue", 6)


def test_a_rule_without_a_quota_lifts_the_others() -> None:
    Policy([rule(max_endpoints=2), PolicyRule(gid=36)]).check_quota(ALICE, "blue", 1000)


def test_a_quota_of_a_rule_for_another_network_doesnt_count() -> None:
    Policy([rule(networks=("blue",)), PolicyRule(gid=36, networks=("red",), max_endpoints=1)]).check_quota(ALICE, "blue", 9)


def test_without_a_rule_there_is_no_quota() -> None:
    Policy(()).check_quota(ALICE, "blue", 100_000)
