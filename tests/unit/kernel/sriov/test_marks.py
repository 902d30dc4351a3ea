from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.messages import ID, endpoint_id
from vifd.kernel.markfiles import MarksError
from vifd.kernel.sriov.marks import Mark, Marks
from vifd.kernel.sriov.settings import VfSettings
from vifd.model import VlanProtocol

VF = "0000:01:10.0"
MARK = Mark(ID, "0000:01:00.0", "igbvf", "", VfSettings(vid=7, protocol=VlanProtocol.DOT1AD, spoof_check=None))
BAD = ["", ".", "..", "../x", f"{VF}/..", f"{VF}\n", "x"]


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Marks]:
    with closing(Marks.prepare(tmp_path / "vifd")) as one:
        yield one


def test_a_mark_is_read_as_it_was_written(marks: Marks) -> None:
    marks.create(VF, MARK)
    assert (marks.find(VF), marks.find_of(VF, ID), marks.find_of(VF, endpoint_id(1))) == (MARK, MARK, None)
    assert (marks.find("0000:01:10.2"), marks.marked()) == (None, [VF])


def test_of_two_that_want_one_vf_the_second_fails(tmp_path: Path, marks: Marks) -> None:
    marks.create(VF, MARK)
    with closing(Marks.prepare(tmp_path / "vifd")) as other, pytest.raises(FileExistsError):
        other.create(VF, MARK)
    assert marks.find(VF) == MARK
    assert [path.name for path in (tmp_path / "vifd/functions").iterdir()] == [VF]


def test_a_mark_goes_once(marks: Marks) -> None:
    marks.create(VF, MARK)
    marks.discard(VF)
    marks.discard(VF)
    assert (marks.find(VF), marks.marked()) == (None, [])


@pytest.mark.parametrize("bad", BAD)
def test_nothing_but_an_address_names_a_file(tmp_path: Path, marks: Marks, bad: str) -> None:
    (tmp_path / "x").write_text("mine")
    for action in (lambda: marks.create(bad, MARK), lambda: marks.find(bad), lambda: marks.discard(bad)):
        with pytest.raises(OSError, match="is no PCI address"):
            action()
    assert (tmp_path / "x").read_text() == "mine"
    assert list((tmp_path / "vifd/functions").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"x", b'{"endpoint_id": 1}', b"\xff" * 5000])
def test_what_isnt_vifds_is_told(tmp_path: Path, marks: Marks, content: bytes) -> None:
    (tmp_path / "vifd/functions" / VF).write_bytes(content)
    with pytest.raises(OSError, match="isn't vifd's"):
        marks.find(VF)
    marks.create("0000:01:10.2", MARK)
    assert marks.find_all() == {"0000:01:10.2": MARK}


def test_a_link_is_no_mark(tmp_path: Path, marks: Marks) -> None:
    (tmp_path / "vifd/functions" / VF).symlink_to(tmp_path / "x")
    with pytest.raises(OSError, match="symbolic link"):
        marks.find(VF)


def test_only_its_owner_reads_a_mark(tmp_path: Path, marks: Marks) -> None:
    marks.create(VF, MARK)
    assert (tmp_path / "vifd/functions" / VF).stat().st_mode & 0o777 == 0o600


def test_what_was_left_half_made_is_swept_up(tmp_path: Path, marks: Marks) -> None:
    marks.create(VF, MARK)
    (tmp_path / "vifd/functions/.0123456789abcdef").write_text("{")
    with closing(Marks.prepare(tmp_path / "vifd")) as next_one:
        assert next_one.marked() == [VF]
    assert [path.name for path in (tmp_path / "vifd/functions").iterdir()] == [VF]


def test_a_directory_that_others_may_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vifd").mkdir()
    (tmp_path / "vifd").chmod(0o777)
    with pytest.raises(MarksError, match="has to be a directory that root alone may change"):
        Marks.prepare(tmp_path / "vifd")


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vifd").write_text("")
    with pytest.raises(MarksError, match=r"daemon\.device_dir"):
        Marks.prepare(tmp_path / "vifd")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vifd").mkdir()
    os.chown(tmp_path / "vifd", 12345, 12345)
    with pytest.raises(MarksError, match="has to be a directory that root alone may change"):
        Marks.prepare(tmp_path / "vifd")


def test_whether_a_mark_is_left(tmp_path: Path) -> None:
    assert not Marks.has_any(tmp_path / "vifd")
    with closing(Marks.prepare(tmp_path / "vifd")) as marks:
        assert not Marks.has_any(tmp_path / "vifd")
        marks.create(VF, MARK)
        assert Marks.has_any(tmp_path / "vifd")
