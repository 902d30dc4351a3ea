import os
import pwd

import pytest

from tests.support.configs import parse, problems
from vifd.config import PolicyRule, Role

ME = pwd.getpwuid(os.getuid())


def rule(lines: str) -> PolicyRule:
    (only,) = parse(f'[networks.blue]\ndriver = "fake"\n[[policy]]\n{lines}').policy
    return only


def problems_of(lines: str) -> dict[str, str]:
    return problems(f'[networks.blue]\ndriver = "fake"\n[[policy]]\n{lines}')


def test_a_rule_that_says_only_who_lets_them_use_every_network() -> None:
    assert rule("uid = 7") == PolicyRule(uid=7, networks=("*",), kinds=(), role=Role.USE, max_endpoints=None)


def test_each_key_is_read() -> None:
    lines = 'gid = 7\nnetworks = ["blue"]\nkinds = ["tap", "bridge"]\nrole = "delegate"\nmax_endpoints = 3'
    assert rule(lines) == PolicyRule(gid=7, networks=("blue",), kinds=("tap", "bridge"), role=Role.DELEGATE, max_endpoints=3)


def test_a_user_is_looked_up_when_the_configuration_is_read() -> None:
    assert rule(f'user = "{ME.pw_name}"').uid == ME.pw_uid


def test_a_group_is_looked_up_when_the_configuration_is_read() -> None:
    assert rule('group = "root"').gid == 0


@pytest.mark.parametrize("role", list(Role))
def test_each_role_is_read(role: Role) -> None:
    assert rule(f'uid = 1\nrole = "{role}"').role is role


@pytest.mark.parametrize("name", ["no-such-user", "", "a\\u0000b", "../root"])
def test_a_user_that_this_host_has_not_is_an_error(name: str) -> None:
    assert problems_of(f'user = "{name}"')["policy[0]"].startswith("this host has no user ")


@pytest.mark.parametrize("name", ["no-such-group", "", "a\\u0000b"])
def test_a_group_that_this_host_has_not_is_an_error(name: str) -> None:
    assert problems_of(f'group = "{name}"')["policy[0]"].startswith("this host has no group ")


@pytest.mark.parametrize(
    "lines", ["", 'role = "use"', "uid = 1\ngid = 1", 'user = "root"\ngroup = "root"', 'uid = 0\nuser = "root"']
)
def test_a_rule_needs_exactly_one_of_the_four_ways_to_say_who(lines: str) -> None:
    assert problems_of(lines) == {"policy[0]": "needs exactly one of uid, user, gid, group"}


@pytest.mark.parametrize("key", ["uid", "gid"])
@pytest.mark.parametrize("value", ["-1", "4294967295", "1.0", "true", '"0"'])
def test_what_is_no_id_is_an_error(key: str, value: str) -> None:
    assert list(problems_of(f"{key} = {value}")) == [f"policy[0].{key}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("role", '"owner"'),
        ("role", '"USE"'),
        ("max_endpoints", "0"),
        ("max_endpoints", "-1"),
        ("max_endpoints", '"all"'),
        ("kinds", '"tap"'),
        ("kinds", '["tape"]'),
        ("networks", '"blue"'),
        ("networks", "[1]"),
        ("user", "1"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(key: str, value: str) -> None:
    assert list(problems_of(f"{key} = {value}")) == [f"policy[0].{key}"]


def test_an_unknown_network_comes_with_the_one_that_was_meant() -> None:
    assert problems_of('uid = 1\nnetworks = ["bleu"]') == {
        "policy[0].networks": "there is no network 'bleu'; did you mean 'blue'?"
    }


def test_an_unknown_key_comes_with_the_one_that_was_meant() -> None:
    assert problems_of("uid = 1\nmax_endpoint = 1") == {"policy[0].max_endpoint": "unknown key; did you mean 'max_endpoints'?"}


@pytest.mark.parametrize("value", ["1", "{}", '"root"'])
def test_a_policy_that_is_no_array_is_an_error(value: str) -> None:
    assert list(problems(f"policy = {value}")) == ["policy"]


def test_a_rule_that_is_no_table_is_an_error() -> None:
    assert problems("policy = [1]") == {"policy[0]": "has to be a table"}
