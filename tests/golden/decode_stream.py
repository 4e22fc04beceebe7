#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decodes the KV streams of this folder, written from docs/formats/stream.md alone.

  python3 decode_stream.py           writes stream_*.f32 (keys, then values) beside each stream_*_level*.bin; the tests compare the library with them
  python3 decode_stream.py --check   compares instead of writing

Needs numpy.
"""
import glob
import os
import struct
import sys

import numpy as np


def fnv(data, words=False):
    value = 0xcbf29ce484222325
    items = [int.from_bytes(data[i:i + 8], "little") for i in range(0, len(data), 8)] if words else data
    for item in items:
        value = (value ^ item) * 0x100000001b3 & (1 << 64) - 1
    return value


def bf16(bits):
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def round_bf16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return bf16(bits + 0x7fff + (bits >> 16 & 1) >> 16)


class Symbols:
    def __init__(self, data):
        assert data[:8] == b"PITHSY01" and fnv(data[:-8]) == struct.unpack("<Q", data[-8:])[0]
        contexts, tables = struct.unpack_from("<II", data, 8)
        at, self.tables = 16, []
        for _ in range(tables):
            low, high, escape = struct.unpack_from("<BBH", data, at)
            frequency = [0] * 256
            frequency[low:high + 1] = struct.unpack_from(f"<{high - low + 1}H", data, at + 4)
            frequency[255] = escape
            at += 4 + 2 * (high - low + 1)
            assert sum(frequency) == 4096 and all(frequency[low:high + 1])
            start = np.cumsum([0] + frequency)[:256].tolist()
            self.tables.append((frequency, start, [s for s in range(256) for _ in range(frequency[s])]))
        self.of = list(data[at:at + contexts])
        assert at + contexts + 8 == len(data)


class Model:
    def __init__(self, data):
        assert data[:8] == b"PITHSM01"
        self.identity = struct.unpack("<Q", data[-8:])[0]
        assert fnv(data[:-8]) == self.identity
        self.layers, self.keys, self.values, self.group, self.reference, self.follows, levels = struct.unpack_from("<IIIHBBB", data, 8)
        at = 32
        self.factors = [bf16(b) for b in struct.unpack_from(f"<{levels}H", data, at)]
        at += 2 * levels
        self.tops = data[at:at + 2 * self.layers]
        at += 2 * self.layers
        channels = self.layers * (self.keys + self.values)
        self.channels = [[bf16(b) for b in struct.unpack_from("<4H", data, at + 8 * c)] for c in range(channels)]
        at += 8 * channels
        self.symbols = []
        for _ in range(levels + 1):
            size = struct.unpack_from("<Q", data, at)[0]
            self.symbols.append(Symbols(data[at + 8:at + 8 + size]))
            at += 8 + size
        assert at + 8 == len(data)


class Reader:
    def __init__(self, data):
        self.state = list(struct.unpack_from("<8I", data))
        self.words = list(struct.unpack(f"<{(len(data) - 32) // 2}H", data[32:]))
        self.at = 0

    def get(self, lane, bits, frequency, start, slot):
        x = frequency * (self.state[lane] >> bits) + slot - start
        if x < 1 << 16:
            x = x << 16 | self.words[self.at]
            self.at += 1
        self.state[lane] = x

    def plain(self, lane, bits):
        value, at = 0, 0
        for size in [bits % 12] * (bits % 12 > 0) + [12] * (bits // 12):
            slot = self.state[lane] & (1 << size) - 1
            self.get(lane, size, 1, slot, slot)
            value |= slot << at
            at += size
        return value

    def run(self, table, count, plain_bits):
        out = []
        for i in range(count):
            slot = self.state[i % 8] & 4095
            s = table[2][slot]
            self.get(i % 8, 12, table[0][s], table[1][s], slot)
            out.append((s, self.plain(i % 8, plain_bits) if s == 255 else None))
        return out


def decode(model, data):
    """[tokens][keys, values]"""
    assert data[:5] == b"PKVS\x01" and data[7] == 0
    level, how, tokens, zero, layer, keys, values, _, identity, size, check = struct.unpack_from("<BBxHHIIIQQQQ", data, 5)
    assert (zero, keys, values, identity, size) == (0, model.keys, model.values, model.identity, len(data))
    assert check == fnv(data[:48] + data[56:] + (b"\0" * 8 if len(data) % 8 == 0 else b""), words=True)
    channels, width = keys + values, 2 if level == 0 else 4
    body = data[56:]
    if how == 1:
        numbers = np.frombuffer(body, "<u2").astype(np.uint32) << 16 if level == 0 else np.frombuffer(body, "<u4")
        k, v = numbers[:tokens * keys].reshape(tokens, keys), numbers[tokens * keys:].reshape(tokens, values)
        return np.concatenate([k, v], 1).view(np.float32)
    out = np.zeros((tokens, channels), np.uint32)
    symbols = model.symbols[level]
    if level == 0:
        plain = (5 * tokens + 7) // 8
        reader = Reader(body[plain * channels:])
        for c in range(channels):
            low = int.from_bytes(body[plain * c:plain * (c + 1)], "little")
            top = model.tops[2 * layer + (c >= keys)]
            for t, (s, upper) in enumerate(reader.run(symbols.tables[symbols.of[layer * channels + c]], tokens, 11)):
                if s != 255:
                    m = s if s < 124 else 247 - s
                    upper = (s >= 124) << 10 | m + 4 * (top - 30)
                out[t, c] = (upper << 5 | low >> 5 * t & 31) << 16
    else:
        reader = Reader(body)
        f32 = np.float32
        for c in range(channels):
            m, r, w, a = model.channels[layer * channels + c]
            factor = model.factors[level - 1]
            bins = {True: round_bf16(a * factor) if model.follows else a, False: round_bf16(w * factor)}
            offset = float(f32(m - r * m))
            offset = 0.0 if abs(offset) < 2.0 ** -80 else offset
            anchors = [t for t in range(tokens) if t % model.group == 0]
            others = [t for t in range(tokens) if t % model.group != 0]
            coded = {}
            for kind, places in ((0, anchors), (1, others)):
                table = symbols.tables[symbols.of[(2 * layer + kind) * channels + c]]
                coded.update(zip(places, reader.run(table, len(places), 32)))
            column = np.zeros(tokens, np.uint32)
            for t in range(tokens):
                anchor = t % model.group == 0
                p = m
                if not anchor:
                    bits = int(column[t - 1 if model.reference else t - t % model.group])
                    bits = 0 if bits & 0x7fffffff > 0x71800000 else bits & 0xffffff00
                    y = struct.unpack("<f", struct.pack("<I", bits))[0]
                    p = float(f32(offset + float(f32(r * y))))
                s, exact = coded[t]
                column[t] = exact if s == 255 else np.array(f32(p + (s - 127) * bins[anchor])).view(np.uint32)
            out[:, c] = column
    assert reader.state == [1 << 16] * 8 and reader.at == len(reader.words)
    return out.view(np.float32)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    read = lambda name: open(os.path.join(here, name), "rb").read()
    for path in sorted(glob.glob(os.path.join(here, "stream_*_level*.bin"))):
        name = os.path.basename(path)
        model = Model(read(name[:name.index("_level")] + "_model.bin"))
        rows = decode(model, read(name))
        data = rows[:, :model.keys].tobytes() + rows[:, model.keys:].tobytes()
        if "--check" in sys.argv:
            assert data == read(name[:-4] + ".f32"), name
        else:
            open(path[:-4] + ".f32", "wb").write(data)


main()
