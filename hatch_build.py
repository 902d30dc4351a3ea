"""Generate the Python package `vif.v1` from protos/.

The build runs it (hatchling's custom hook), and so does `make protos` (`python hatch_build.py`). It needs no protoc: grpcio-tools
brings one. What it writes, `vif/`, is never committed and never edited.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def generate(root: Path = ROOT) -> None:
    """Write `vif/v1/*_pb2*.py` and their type stubs below `root`.

    Raises:
        RuntimeError: protoc failed; it has printed why.
    """
    from grpc_tools import protoc  # noqa: PLC0415  only the build environment has it

    protos = root / "protos"
    files = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    shutil.rmtree(root / "vif", ignore_errors=True)
    builtin = Path(protoc.__file__).parent / "_proto"
    outs = [f"--{kind}_out={root}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    arguments = ["protoc", f"-I{protos}", f"-I{builtin}", *_plugin("mypy"), *_plugin("mypy_grpc"), *outs, *files]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")
    for package in ("vif", "vif/v1"):
        (root / package / "__init__.py").write_text('"""Generated from protos/: never edited."""\n')
        (root / package / "py.typed").touch()


def _plugin(name: str) -> list[str]:
    """Find a protoc plugin beside this Python, where PATH may not reach."""
    program = f"protoc-gen-{name}"
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    return [f"--plugin={program}={found}"] if found else []


class ProtoBuildHook(BuildHookInterface[Any]):
    """hatchling's hook: generate before anything is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate `vif` unless a source archive is being built, which has protos/ instead."""
        if self.target_name == "wheel":
            generate(Path(self.root))


if __name__ == "__main__":
    generate()
