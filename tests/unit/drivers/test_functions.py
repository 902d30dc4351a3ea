import pytest

from vifd.drivers.functions import check, expand


def test_a_list_has_addresses_and_ranges() -> None:
    listed = ["0000:01:10.6-0000:01:11.1", "0000:03:00.0", "0000:01:10.7 - 0000:01:10.7"]
    assert expand(listed) == ("0000:01:10.6", "0000:01:10.7", "0000:01:11.0", "0000:01:11.1", "0000:03:00.0")


def test_a_range_goes_over_the_end_of_a_bus() -> None:
    assert expand(["0000:01:1f.7-0000:02:00.1"]) == ("0000:01:1f.7", "0000:02:00.0", "0000:02:00.1")


def test_a_domain_of_more_digits_is_kept() -> None:
    assert expand(["10000:e1:00.0-10000:e1:00.1"]) == ("10000:e1:00.0", "10000:e1:00.1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no PCI address"),
        ("eth0", "is no PCI address"),
        ("01:10.0", "is no PCI address"),
        ("0000:01:10.8", "is no PCI address"),
        ("0000:01:20.0", "is no PCI address"),
        ("0000:01:10.0-", "is no PCI address"),
        ("0000:01:10.0-x", "is no PCI address"),
        ("0000:01:1A.0", "is no PCI address"),
        ("0000:01:10.2-0000:01:10.0", "ends before it begins"),
        ("0000:01:00.0-0000:ff:1f.7", "has more than 4096"),
    ],
)
def test_what_is_no_list_is_told(text: str, why: str) -> None:
    (problem,) = check("exclude", ["0000:01:10.0", text])
    assert problem.field == "exclude"
    assert why in problem.message


def test_a_list_has_an_end() -> None:
    halves = ["0000:01:00.0-0000:10:1f.7", "0000:20:00.0"]
    assert len(expand(halves[:1])) == 4096
    assert [problem.field for problem in check("vfs", halves)] == ["vfs"]
