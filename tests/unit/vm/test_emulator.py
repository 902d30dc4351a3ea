from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm.emulator import PROGRAM, Emulator


def test_the_program_starts_it_with_its_files_and_passes_on_what_it_is_given(tmp_path: Path) -> None:
    given = Emulator(("/usr/bin/env", "-u", "PATH", "sh", "-c", 'echo "$WHERE" "$@"', "name"), {"WHERE": "in a folder's place"})
    given.write_program(tmp_path / "bin")
    done = subprocess.run([tmp_path / "bin" / PROGRAM, "-m", "a b"], capture_output=True, text=True, check=True)
    assert done.stdout == "in a folder's place -m a b\n"


def test_what_is_found_by_its_name_is_this_hosts_own() -> None:
    assert not Emulator((PROGRAM,)).is_unpacked
    assert Emulator((f"/x/{PROGRAM}",)).is_unpacked
