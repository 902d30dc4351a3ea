"""apt with package lists, and a suite, of its own: what the host has configured is read, and stays as it is.

It has the host's Debian mirrors and believes what Debian's keyring has signed. On Debian 12 it knows the backports as well, from
which the kernel and QEMU come: its own are too old.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.guest import packages
from tests.guest.packages import PackageError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: The releases whose own kernel or QEMU are too old, and whose backports have newer ones.
_TOO_OLD = {"bookworm"}
_TARGET_FORMAT = "$(ORIGIN) $(CREATED_BY) $(REPO_URI) $(RELEASE) $(COMPONENT)"
_INSTALLED = re.compile(r"^Inst (?P<name>\S+) (\[\S+\] )?\((?P<version>\S+) ", re.MULTILINE)


class Target(NamedTuple):
    """One list of packages that apt knows.

    Args:
        uri: Of the mirror.
        release: `bookworm-updates`, say.
        component: `main`, say.
    """

    uri: str
    release: str
    component: str


class Apt:
    """apt-get and apt-cache with lists of their own.

    Args:
        folder: Where it has its lists and configuration.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._codename = _codename()
        self.suite = suite_for(self._codename)

    def update(self) -> None:
        """Get the lists.

        Raises:
            PackageError: There is no Debian here, or no mirror answers.
        """
        packages.check_machine()
        targets = parse_targets(packages.output("apt-get", "indextargets", "--format", _TARGET_FORMAT))
        for name in ("sources", "lists/partial", "cache/archives/partial"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "sources" / "debian.sources").write_text(sources(targets, self._codename))
        command = ["apt-get", "update", "-q", "--error-on=any", *packages.sandbox(), *self._options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PackageError(f"apt can't get the lists of {self.suite}:\n{done.stderr.strip()}")

    def missing(self, package: str) -> list[str]:
        """Name what would have to be installed on this host for a package, with versions; itself first, if anything."""
        listed = packages.output(
            *(
                "apt-get",
                "install",
                "--simulate",
                "--no-install-recommends",
                "--target-release",
                self.suite,
                *self._options,
                package,
            )
        )
        found = parse_installed(listed)
        if not any(one.startswith(f"{package}=") for one in found):
            raise PackageError(f"apt can't say what {package} of {self.suite} needs: 'apt-get check' says what hinders it")
        return found

    def version(self, package: str) -> str:
        """Give the version of a package."""
        return self._field(package, r"^Version: (\S+)")

    def depends(self, package: str, pattern: str) -> str:
        """Name the first package that a package depends on and that matches."""
        return self._field(package, rf"^Depends: (?:.*, )?({pattern})")

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Download packages, of the suite where it has them and no version is named."""
        folder.mkdir(parents=True, exist_ok=True)
        packages.download([*names], folder, ["--target-release", self.suite, *self._options])

    def _field(self, package: str, pattern: str) -> str:
        shown = packages.output("apt-cache", "show", *self._options, f"{package}/{self.suite}")
        found = re.search(pattern, shown, re.MULTILINE)
        if found is None:
            raise PackageError(f"{self.suite} has no {package} with '{pattern}'")
        return found[1]

    @property
    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": self._folder / "sources",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": self._folder / "lists",
            "Dir::Cache": self._folder / "cache",
            "Acquire::Languages": "none",
        }
        return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def suite_for(codename: str) -> str:
    """Say which suite has a kernel and a QEMU that are new enough."""
    return f"{codename}-backports" if codename in _TOO_OLD else codename


def parse_targets(listed: str) -> list[Target]:
    """Read what `apt-get indextargets` says: Debian's lists of packages, each once."""
    rows = [line.split() for line in listed.splitlines()]
    return list(dict.fromkeys(Target(*row[2:]) for row in rows if row[:2] == ["Debian", "Packages"] and len(row) == 5))


def sources(targets: Sequence[Target], codename: str) -> str:
    """Write the private sources: the host's, and the suite with what is new enough, from the release's mirror.

    Raises:
        PackageError: apt knows no mirror of the release.
    """
    mirrors = [target for target in targets if target.release == codename and target.component == "main"]
    if not mirrors:
        raise PackageError(f"apt knows no Debian mirror of {codename or 'this system'}: run 'apt-get update'")
    wanted = dict.fromkeys([*targets, mirrors[0]._replace(release=suite_for(codename))])
    return "\n".join(
        f"Types: deb\nURIs: {one.uri}\nSuites: {one.release}\nComponents: {one.component}\nSigned-By: {KEYRING}\n"
        for one in wanted
    )


def parse_installed(simulated: str) -> list[str]:
    """Read from `apt-get install --simulate` what would be installed, as `NAME=VERSION`."""
    return [f"{found['name']}={found['version']}" for found in _INSTALLED.finditer(simulated)]


def _codename() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""
