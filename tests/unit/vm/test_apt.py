import pytest

from tests.guest.packages import PackageError
from tests.vm.apt import Target, parse_installed, parse_targets, sources, suite_for

TARGETS = """\
Debian Packages http://deb.example.org/debian/ bookworm main
Debian Translations http://deb.example.org/debian/ bookworm main
Debian Packages http://deb.example.org/debian/ bookworm-updates main
Debian Packages http://deb.example.org/debian/ bookworm main
 Packages http://other.example.org/ stable main
Node Source Packages http://node.example.org/ nodistro main
"""
BOOKWORM = Target("http://deb.example.org/debian/", "bookworm", "main")
SIMULATED = """\
Reading package lists...
Inst libslirp0 (4.7.0-1 Debian:12.5/oldstable [amd64])
Inst qemu-system-x86 [1:7.2+dfsg-7] (1:10.0.2+ds-2~bpo12+1 Debian Backports:oldstable-backports [amd64]) []
Conf libslirp0 (4.7.0-1 Debian:12.5/oldstable [amd64])
"""


def test_the_hosts_debian_mirrors_are_used_and_nobody_elses() -> None:
    assert parse_targets(TARGETS) == [BOOKWORM, BOOKWORM._replace(release="bookworm-updates")]


def test_bookworm_has_its_backports_from_the_same_mirror_signed_by_debian() -> None:
    entries = sources([BOOKWORM], "bookworm").split("\n\n")
    assert [entry.splitlines()[1:3] for entry in entries] == [
        ["URIs: http://deb.example.org/debian/", "Suites: bookworm"],
        ["URIs: http://deb.example.org/debian/", "Suites: bookworm-backports"],
    ]
    assert all("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in entry for entry in entries)


def test_a_newer_debian_has_no_other_suite() -> None:
    target = BOOKWORM._replace(release="trixie")
    assert sources([target], "trixie").count("Types:") == 1
    assert suite_for("trixie") == "trixie"


def test_backports_that_the_host_has_are_there_once() -> None:
    assert sources([BOOKWORM, BOOKWORM._replace(release="bookworm-backports")], "bookworm").count("Types:") == 2


def test_without_a_mirror_of_debian_it_says_what_to_do() -> None:
    with pytest.raises(PackageError, match="apt knows no Debian mirror of noble"):
        sources([BOOKWORM], "noble")


def test_what_an_installation_would_bring_is_read_from_its_simulation() -> None:
    assert parse_installed(SIMULATED) == ["libslirp0=4.7.0-1", "qemu-system-x86=1:10.0.2+ds-2~bpo12+1"]
