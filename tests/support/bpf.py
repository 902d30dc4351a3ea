"""Runs classic BPF (Documentation/networking/filter.rst), as much of it as socket filters of vifd use."""

from __future__ import annotations

import struct

_LOADS = {0x20: (">I", 4), 0x28: (">H", 2), 0x30: (">B", 1)}
_EQUAL, _BITS, _RETURN = 0x15, 0x45, 0x06


def run(program: bytes, packet: bytes) -> int:
    """Run a filter over a packet: how many bytes of it pass; 0: none."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, number = instructions[at]
        at += 1
        if code in _LOADS:
            form, size = _LOADS[code]
            if number + size > len(packet):
                return 0  # the kernel drops what a filter reads beyond
            (accumulator,) = struct.unpack_from(form, packet, number)
        elif code == _EQUAL:
            at += if_true if accumulator == number else if_false
        elif code == _BITS:
            at += if_true if accumulator & number else if_false
        elif code == _RETURN:
            return int(number)
        else:
            raise AssertionError(f"instruction {code:#x} isn't known here")
