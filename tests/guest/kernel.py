"""Unpack a distribution's kernel image, so that QEMU can start it directly.

QEMU starts an uncompressed kernel with a PVH entry at once: no real-mode stub, and no decompression by an emulated CPU.
Source: the kernel's Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import struct
import subprocess

_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD_OFFSET = 0x248  # boot protocol 2.08 and later: payload_offset, payload_length
_SECTOR_BYTES = 512
# What Python can't decompress itself, and the program that can; lz4's magic is that of its legacy frame
_TOOLS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}
# An ELF note named "Xen" of type 18, XEN_ELFNOTE_PHYS32_ENTRY (include/xen/interface/elfnote.h)
_PVH_NOTE = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")


def find_vmlinux(vmlinuz: bytes) -> bytes | None:
    """Find the uncompressed kernel in a bzImage; None if it can't be unpacked here or has no PVH entry."""
    if vmlinuz[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        return None
    offset, length = struct.unpack_from("<II", vmlinuz, _PAYLOAD_OFFSET)
    start = (vmlinuz[_SETUP_SECTS] + 1) * _SECTOR_BYTES + offset
    vmlinux = find_decompressed(vmlinuz[start : start + length])
    bootable = vmlinux is not None and vmlinux.startswith(b"\x7fELF") and _PVH_NOTE.search(vmlinux)
    return vmlinux if bootable else None


def find_decompressed(data: bytes) -> bytes | None:
    """Decompress a kernel or module; None if its format isn't known here or its tool is missing.

    A kernel's payload is followed by its size, so what comes after the compressed stream is ignored.
    """
    if data.startswith(b"\x7fELF"):
        return data
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(data)
    for magic, tool in _TOOLS.items():
        if data.startswith(magic):
            return _find_output(tool, data)
    return None


def _find_output(tool: str, data: bytes) -> bytes | None:
    program = shutil.which(tool)
    if program is None:
        return None
    # the tool fails at the size field behind the stream, after it has written all of the stream
    return subprocess.run([program, "-dqc"], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
