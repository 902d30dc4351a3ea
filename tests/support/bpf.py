"""Runs classic BPF (Documentation/networking/filter.rst), as much of it as socket filters of vifd use."""

from __future__ import annotations

import struct

_LOADS = {0x20: (">I", 4, False), 0x28: (">H", 2, False), 0x30: (">B", 1, False), 0x40: (">I", 4, True), 0x50: (">B", 1, True)}
_LOAD_WORD, _SET, _SET_INDEX, _TO_INDEX = 0x20, 0x00, 0x01, 0x07
_FIND, _FIND_INSIDE = 0xFFFFF00C, 0xFFFFF010  # SKF_AD_NLATTR, SKF_AD_NLATTR_NEST
_EQUAL, _BITS, _RETURN = 0x15, 0x45, 0x06


def run(program: bytes, packet: bytes) -> int:
    """Run a filter over a packet: how many bytes of it pass; 0: none."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    registers, at = [0, 0], 0
    while True:
        code, if_true, if_false, number = instructions[at]
        at += 1
        if code == _EQUAL:
            at += if_true if registers[0] == number else if_false
        elif code == _BITS:
            at += if_true if registers[0] & number else if_false
        elif code == _RETURN:
            return int(number)
        elif not _load(registers, packet, code, number):
            return 0  # the kernel drops what a filter reads beyond


def _load(registers: list[int], packet: bytes, code: int, number: int) -> bool:
    """Load the accumulator or the index register; tell whether the packet has what is to be loaded."""
    accumulator, index = registers
    if code in {_SET_INDEX, _TO_INDEX}:
        registers[1] = number if code == _SET_INDEX else accumulator
    elif code == _SET:
        registers[0] = number
    elif (code, number) == (_LOAD_WORD, _FIND):
        registers[0] = _find(packet, accumulator, len(packet), index)
    elif (code, number) == (_LOAD_WORD, _FIND_INSIDE):
        registers[0] = _find(packet, accumulator + 4, accumulator + struct.unpack_from("=H", packet, accumulator)[0], index)
    else:
        assert code in _LOADS, f"instruction {code:#x} isn't known here"
        form, size, is_indexed = _LOADS[code]
        start = number + (index if is_indexed else 0)
        if start + size > len(packet):
            return False
        (registers[0],) = struct.unpack_from(form, packet, start)
    return True


def _find(packet: bytes, start: int, end: int, kind: int) -> int:
    """Find a netlink attribute; 0: there is none (net/core/filter.c, bpf_skb_get_nlattr)."""
    while start + 4 <= end:
        length, found = struct.unpack_from("=HH", packet, start)
        if found & 0x3FFF == kind:
            return start
        if length < 4:
            break
        start += (length + 3) & ~3
    return 0
