from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.configs import BUILT_IN, parse, problems
from vifd.config import DaemonConfig, PolicyRule, read
from vifd.errors import ConfigError

KEYS = sorted(
    {*DaemonConfig.__struct_fields__, *PolicyRule.__struct_fields__, "driver", "daemon", "networks", "policy", "default_driver"}
    | {field for driver in BUILT_IN.values() for field in driver.options.__struct_fields__}
)
NAMES = st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
TEXTS = st.sampled_from(["bridge", "fake", "tap", "*", "root", "/x", "0660", "use", "info"]) | NAMES
SCALARS = TEXTS | st.integers() | st.booleans() | st.floats()


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return quoted(value)
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{quoted(k)} = {toml(v)}" for k, v in value.items()) + "}"
        case _:
            return str(value)


VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(NAMES, SCALARS, max_size=3)
TABLES = st.dictionaries(
    st.sampled_from(["daemon", "networks", "policy", "default_driver"]) | NAMES,
    VALUES
    | st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=2)
    | st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=3), max_size=2),
    max_size=4,
)


def check(text: str) -> None:
    try:
        result: object = parse(text)
    except ConfigError as error:
        result = error.problems
    assert result


@given(st.text())
def test_no_text_makes_anything_but_a_configuration_or_an_error(text: str) -> None:
    check(text)


@given(TABLES)
def test_no_tables_make_anything_but_a_configuration_or_an_error(tables: dict[str, object]) -> None:
    check("\n".join(f"{quoted(key)} = {toml(value)}" for key, value in tables.items()))


@pytest.mark.parametrize("text", ["x = " + "[" * 3000, "x = " + "1" * 5000])
def test_toml_beyond_the_limits_of_its_reader_is_an_error(text: str) -> None:
    assert list(problems(text)) == ["TOML"]


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vifd\.toml: can't be read"):
        read(tmp_path / "vifd.toml")


def test_a_file_that_is_no_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "vifd.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"vifd\.toml: can't be read"):
        read(path)
