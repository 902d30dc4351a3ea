"""An emulated machine with a kernel that has everything, for the tests that the running kernel can't show.

`apt` fetches what Debian has of it and installs nothing, `emulator` is a QEMU with SR-IOV network cards, `linux` a kernel and its
modules, `machine` boots them over the host's own files, `selection` says which tests run there, `results` what came of them.
"""

from pathlib import Path

#: What is downloaded and built for it.
CACHE = Path(__file__).resolve().parents[2] / ".cache/vm"
