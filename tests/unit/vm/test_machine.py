import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import machine
from tests.vm.emulator import Emulator, unpacked_below
from tests.vm.linux import Linux
from tests.vm.machine import Job, MachineError, argv, run

RELEASE = "6.12.0-test"


@pytest.fixture
def linux(tmp_path: Path) -> Linux:
    """What looks like a kernel's directory."""
    folder = tmp_path / "linux"
    modules = folder / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("kernel/fs/9p/9p.ko:\n")
    (modules / "kernel/fs/9p").mkdir(parents=True)
    (modules / "kernel/fs/9p/9p.ko").write_bytes(b"the module")
    (folder / "release").write_text(f"{RELEASE}\n")
    (folder / "busybox").write_bytes(b"the program")
    return Linux(folder)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "job"
    folder.mkdir()
    return Job(folder, ["echo", "a b"], tmp_path, {"WORD": "it's"})


def emulating(script: str) -> Emulator:
    """A program in QEMU's place; it doesn't look at its arguments."""
    return Emulator((sys.executable, "-c", script))


def test_the_hosts_files_are_read_only_and_the_jobs_folder_is_not(linux: Linux, job: Job) -> None:
    said = argv(Emulator(("qemu",)), linux, job, 2)
    shares = {part.split(",")[1]: part for part in said if part.startswith("local,")}
    assert "readonly=on" in shares["id=host"]
    assert "path=/," in shares["id=host"]
    assert "readonly=off" in shares["id=job"]


def test_each_card_has_a_port_of_its_own_behind_the_iommu(linux: Linux, job: Job) -> None:
    said = argv(Emulator(("qemu",)), linux, job, 2)
    cards = [part for part in said if part.startswith("igb,")]
    assert [card.split(",mac=")[1] for card in cards] == list(machine.CARDS)
    assert len({card.split(",")[1] for card in cards}) == len(cards)
    assert said.index("intel-iommu,intremap=on") < said.index(cards[0])


def test_a_comma_in_a_path_is_no_end_of_it(linux: Linux, tmp_path: Path) -> None:
    said = argv(Emulator(("qemu",)), linux, Job(tmp_path / "a,b", ["true"], tmp_path), 1)
    assert any(f"path={tmp_path}/a,,b," in part for part in said)


def test_a_job_has_its_command_environment_and_modules(linux: Linux, job: Job) -> None:
    job.write(linux)
    ran = subprocess.run(["sh", job.folder / "command"], check=True, capture_output=True, text=True)
    assert ran.stdout == "a b\n"
    assert f"export WORD={shlex.quote(job.environment['WORD'])}" in (job.folder / "command").read_text()
    assert f"modules={linux.modules}" in (job.folder / "settings").read_text()
    packed = (job.folder / "initramfs").read_bytes()
    assert all(content in packed for content in (b"the module", b"the program", b"switch_root"))


def test_the_commands_exit_status_is_the_jobs(linux: Linux, job: Job) -> None:
    script = f"from pathlib import Path; Path({str(job.folder / 'status')!r}).write_text('3\\n')"
    assert run(emulating(script), linux, job, cpus=1, timeout_s=60) == 3


def test_a_machine_that_dies_is_told_with_its_console(linux: Linux, job: Job) -> None:
    script = f"from pathlib import Path; Path({str(job.folder / 'console')!r}).write_text('Kernel panic'); exit('bad option')"
    with pytest.raises(MachineError, match=r"(?s)QEMU's exit status: 1.*bad option.*Kernel panic"):
        run(emulating(script), linux, job, cpus=1, timeout_s=60)


@pytest.mark.parametrize(("started", "told"), [(False, "didn't boot in 0 s"), (True, "wasn't done in 0 minutes")])
def test_a_machine_that_takes_too_long_is_ended(
    linux: Linux, job: Job, monkeypatch: pytest.MonkeyPatch, *, started: bool, told: str
) -> None:
    monkeypatch.setattr(machine, "BOOT_TIMEOUT_S", 0.0)
    if started:
        (job.folder / "started").touch()
    with pytest.raises(MachineError, match=told):
        run(emulating("import time; time.sleep(600)"), linux, job, cpus=1, timeout_s=0)


def test_a_machine_that_doesnt_boot_is_booted_again(linux: Linux, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BOOT_TIMEOUT_S", 2.0)
    script = (
        f"import time; from pathlib import Path; folder = Path({str(job.folder)!r})\n"
        "if not (folder / 'again').exists(): (folder / 'again').touch(); time.sleep(600)\n"
        "(folder / 'started').touch(); (folder / 'status').write_text('0')"
    )
    assert run(emulating(script), linux, job, cpus=1, timeout_s=60) == 0


def test_an_unpacked_qemu_has_its_own_firmware_and_libraries(tmp_path: Path) -> None:
    (tmp_path / "usr/share/seabios").mkdir(parents=True)
    emulator = unpacked_below(tmp_path)
    assert emulator.argv == (f"{tmp_path}/usr/bin/qemu-system-x86_64", "-L", f"{tmp_path}/usr/share/seabios")
    assert str(tmp_path) in emulator.environment["LD_LIBRARY_PATH"]
    assert not emulator.works()
