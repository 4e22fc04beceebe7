#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads the packed tensors of this folder, written from docs/formats/container.md, dynamic_float.md and tiles.md alone.

  python3 decode_container.py --check         compares the containers of this folder with container_weights.safetensors
  python3 decode_container.py FILE OTHER      compares FILE, unpacked, with the safetensors file OTHER
  python3 decode_container.py --unknown       writes container_unknown.safetensors: valid, of a codec that there is not

Codecs: dynamic_float with window and planes, int8 and int4. Needs numpy and xxhash.
"""
import json
import os
import struct
import sys

import numpy as np
import xxhash

HERE = os.path.dirname(os.path.abspath(__file__))
BITS = {"bf16": (8, 7), "f16": (5, 10), "f32": (8, 23), "e4m3": (4, 3), "e5m2": (5, 2)}  # exponent, mantissa
WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1}


def header(data):
    n = struct.unpack_from("<Q", data)[0]
    return 8 + n, json.loads(bytes(data[8:8 + n]))


def check_sums(data):
    table_bytes, file_bytes, total = struct.unpack_from("<QQQ", data, len(data) - 32)
    table = data[len(data) - table_bytes:]
    assert table[:8] == b"PITHSUMS" and table[-8:] == b"PITHEND1" and file_bytes == len(data)
    assert total == xxhash.xxh3_64_intdigest(table[:-16])
    block, head, head_sum, count = struct.unpack_from("<QQQQ", table, 8)
    assert table_bytes == 72 + 8 * count and head % 64 == 0 and 4096 <= block <= 1 << 30 and block & (block - 1) == 0
    assert head_sum == xxhash.xxh3_64_intdigest(data[:head])
    sums = list(struct.unpack_from(f"<{count}Q", table, 40))
    at, described = header(data)
    assert at == head
    order = sorted((t["data_offsets"] for name, t in described.items() if name not in ("__metadata__", "pith.checksums")))
    for begin, end in order:
        for first in range(begin, end, block):
            assert sums.pop(0) == xxhash.xxh3_64_intdigest(data[at + first:at + min(first + block, end)])
    assert not sums and at + described["pith.checksums"]["data_offsets"][1] == len(data)


def bits_of(data, at, count, width=1):
    """Fields of `width` bits, lowest bits first."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=at), bitorder="little")[:count * width].reshape(count, width)
    return (bits << np.arange(width)).sum(1).astype(np.int64)


def escapes_list(tail):
    """common[4], count, 1 bit each, 2 bits for those that are 1, bytes from the end downwards."""
    common, count = tail[:4], struct.unpack_from("<H", tail, 4)[0]
    first = bits_of(tail, 6, count)
    codes = bits_of(tail, 6 + (count + 7) // 8, int(first.sum()), 2)
    out, code, back = [], iter(codes), len(tail)
    for bit in first:
        which = next(code) if bit else -1
        if which == 3:
            back -= 1
        out.append(tail[back] if which == 3 else common[1 + which])
    return out


def window_symbols(planes, tail, numbers):
    if len(tail) == numbers:
        return np.frombuffer(tail, np.uint8).astype(np.int64)
    sign, low, high = planes[:, 0].reshape(-1), planes[:, 1].reshape(-1), planes[:, 2].reshape(-1)
    h = low + 2 * high
    h[h == 3] = escapes_list(tail)
    return sign << 7 | h


def planes_symbols(planes, tail, numbers):
    if len(tail) == numbers:
        return np.frombuffer(tail, np.uint8).astype(np.int64)
    table, others, further = tail[:7], *struct.unpack_from("<HH", tail, 7)
    code = planes[:, 0].reshape(-1) + 2 * planes[:, 1].reshape(-1)
    at = 11
    second = bits_of(tail, at, others)
    at += (others + 7) // 8
    third = bits_of(tail, at, further) + 2 * bits_of(tail, at + (further + 7) // 8, further)
    escapes = iter(escapes_list(tail[at + 2 * ((further + 7) // 8):]) if (third == 3).any() else [])
    symbols, second, third = [], iter(second), iter(third)
    for c in code:
        if c < 3:
            symbols.append(table[c])
        elif next(second) == 0:
            symbols.append(table[3])
        else:
            t = next(third)
            symbols.append(table[4 + t] if t < 3 else next(escapes))
    return np.array(symbols, np.int64)


def lossless_tile(data, at, scalar, coder, panel):
    e_bits, m_bits = BITS[scalar]
    distance, tail_bytes = struct.unpack_from("<QI", data, at)
    starts = np.frombuffer(data, np.uint8, 32, at + 16).astype(np.int64)
    tail = bytes(data[at + distance:at + distance + tail_bytes])
    kinds = 3 if coder == "window" else 2
    rests, planes = [], []
    place = at + 64
    for _ in range(32 * panel // 512):
        rest, left, shift = np.zeros(512, np.int64), 1 + m_bits, 0
        for width in (8, 4, 2, 1):  # 24 bits: three planes of 8
            while left >= width:
                rest |= bits_of(data, place, 512, width) << shift
                place, left, shift = place + 64 * width, left - width, shift + width
        rests.append(rest)
        planes.append(bits_of(data, place, 512 * kinds).reshape(8, kinds, 64))
        place += 64 * kinds
    rest, planes = np.concatenate(rests), np.concatenate(planes)
    if coder == "window":
        symbol = window_symbols(planes, tail, 32 * panel)
        sign, e = symbol >> 7, (symbol & 127) << 1 | rest >> m_bits
    else:
        symbol = planes_symbols(planes, tail, 32 * panel)
        sign, e = rest >> m_bits, symbol << 1 | symbol >> (e_bits - 1)
    y = sign << (e_bits + m_bits) | (e & (1 << e_bits) - 1) << m_bits | rest & (1 << m_bits) - 1
    row, channel = np.mgrid[0:32, 0:panel]
    where = 64 * (channel // 2) + row % 16 // 4 * 16 + row // 16 * 8 + row % 4 * 2 + channel % 2
    return y[where] + (starts[:, None] << m_bits) & (1 << (1 + e_bits + m_bits)) - 1


def integer_tile(data, at, bits, panel):
    """Words of 32 bits: word w, lane = row; field k of it is channel (32 / bits) w + k. Scales, f16: [channel group][row]."""
    codes = bits_of(data, at, 32 * panel, bits).reshape(panel * bits // 32, 32, 32 // bits).transpose(1, 0, 2).reshape(32, panel)
    scales = np.frombuffer(data, "<f2", panel // 64 * 32, at + 32 * panel * bits // 8).astype(np.float32).reshape(panel // 64, 32)
    return (codes - (1 << bits - 1)).astype(np.float32) * np.repeat(scales.T, 64, axis=1)


def unpack(data, p):
    """The tensor's bytes."""
    rows, columns, panel = int(p["rows"]), int(p["columns"]), int(p["panel"])
    name, inside = p["codec"].split("<", 1)
    blocks, panels = -(-rows // 32), -(-columns // panel)
    out = np.zeros((32 * blocks, panel * panels), np.float32 if name.startswith("int") else np.int64)
    at = 0
    for block in range(blocks):
        for j in range(panels):
            if name == "dynamic_float":
                scalar, coder = inside[:-1].split(",")
                tile = lossless_tile(data, at, scalar, coder, panel)
                at += 64 + 32 * panel // 512 * (64 * (1 + BITS[scalar][1]) + 64 * (3 if coder == "window" else 2))
            else:
                bits = int(name[3:])
                tile = integer_tile(data, at, bits, panel)
                at += -(-(32 * panel * bits // 8 + panel // 64 * 64) // 64) * 64
            out[32 * block:32 * block + 32, panel * j:panel * j + panel] = tile
    out = out[:rows, :columns]
    if name == "dynamic_float":
        return out.astype({1: "<u1", 2: "<u2", 4: "<u4"}[WIDTH[p["dtype"]]]).tobytes()
    if p["dtype"] == "BF16":
        word = np.ascontiguousarray(out).view(np.uint32).astype(np.int64)
        return (word + 0x7fff + (word >> 16 & 1) >> 16).astype("<u2").tobytes()
    return out.astype({"F16": "<f2", "F32": "<f4"}[p["dtype"]]).tobytes()


def read(path):
    data = memoryview(open(path, "rb").read())
    check_sums(data)
    at, described = header(data)
    metadata = described.pop("__metadata__")
    assert metadata["pith.format"] == "1"
    out = {}
    for name, t in described.items():
        if name == "pith.checksums":
            continue
        begin, end = t["data_offsets"]
        stored = data[at + begin:at + end]
        text = metadata.get("pith.tensor." + name)
        if text is None:
            out[name] = (t["dtype"], t["shape"], bytes(stored))
            continue
        p = dict(field.split("=", 1) for field in text.split(" "))
        assert list(p) == "codec version use panel rows columns dtype shape bytes".split() and p["version"] == "1" and p["use"] == "dot"
        assert t["dtype"] == "U8" and len(t["shape"]) == 1 and (at + begin) % 64 == 0 and end - begin == -(-int(p["bytes"]) // 64) * 64
        assert not any(stored[int(p["bytes"]):])
        out[name] = (p["dtype"], [int(x) for x in p["shape"].split(",") if x], unpack(stored, p))
    if "pith.original" in metadata:
        text = metadata["pith.original"].encode()
        out[""] = text
    return out


def plain(path):
    data = open(path, "rb").read()
    at, described = header(data)
    described.pop("__metadata__", None)
    out = {name: (t["dtype"], t["shape"], data[at + t["data_offsets"][0]:at + t["data_offsets"][1]]) for name, t in described.items()}
    out[""] = data[8:at]
    return out


def compare(path, other):
    mine, theirs = read(path), plain(other)
    assert mine.keys() == theirs.keys(), path
    for name in mine:
        assert mine[name] == theirs[name], (path, name)
    print(os.path.basename(path), "is", os.path.basename(other))


def write_unknown():
    data = bytes(64)
    packing = "codec=dynamic_float<bf16,tomorrow> version=1 use=dot panel=64 rows=32 columns=64 dtype=BF16 shape=32,64 bytes=60"
    described = {"__metadata__": {"pith.format": "1", "pith.tensor.w": packing},
                 "w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]},
                 "pith.checksums": {"dtype": "U8", "shape": [80], "data_offsets": [64, 144]}}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    head = struct.pack("<Q", len(text)) + text
    table = b"PITHSUMS" + struct.pack("<QQQQQQQ", 65536, len(head), xxhash.xxh3_64_intdigest(head), 1, xxhash.xxh3_64_intdigest(data), 80,
                                      len(head) + 64 + 80)
    table += struct.pack("<Q", xxhash.xxh3_64_intdigest(table)) + b"PITHEND1"
    open(os.path.join(HERE, "container_unknown.safetensors"), "wb").write(head + data + table)


if sys.argv[1:] == ["--unknown"]:
    write_unknown()
elif sys.argv[1:] == ["--check"]:
    for name in ("window", "planes"):
        compare(os.path.join(HERE, f"container_{name}.safetensors"), os.path.join(HERE, "container_weights.safetensors"))
else:
    compare(*sys.argv[1:])
