#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes dfloat11.safetensors: two matrices of the shipped model, as DFloat11's encoder writes the weights of a module.

An encoder of its own after the published description: Huffman codes from a heap, with one more symbol for an end that pads the last byte;
tables of 8 bits a level; a gap of 5 bits for 8 bytes and a position for 4096 bytes of codes.

    python3 tests/golden/make_dfloat11.py      needs numpy and safetensors
"""
import heapq
import itertools
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent
MODEL = FOLDER.parent.parent / "examples/model/pith-kjv.safetensors"
TENSORS = [("model.layers.0.self_attn.q_proj.weight", 9000), ("model.layers.1.mlp.up_proj.weight", 5300)]  # the first numbers of each
END = -1
CHUNK_BITS, BLOCK_CHUNKS = 64, 512


def read_bits(name, count):
    data = MODEL.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    assert entry["dtype"] == "BF16"
    begin = 8 + length + entry["data_offsets"][0]
    return np.frombuffer(data[begin : begin + 2 * count], "<u2")


def huffman(counts):
    """{symbol: its code as a string}; the two lightest trees become one, again and again."""
    order = itertools.count()
    heap = [(count, next(order), {symbol: ""}) for symbol, count in counts.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, _, zeros), (b, _, ones) = heapq.heappop(heap), heapq.heappop(heap)
        tree = {s: "0" + c for s, c in zeros.items()} | {s: "1" + c for s, c in ones.items()}
        heapq.heappush(heap, (a + b, next(order), tree))
    return heap[0][2]


def tables(codes):
    codes = {s: c for s, c in codes.items() if s != END}
    prefixes = sorted({c[: (len(c) - 1) // 8 * 8] for c in codes.values()} | {""}, key=len)
    luts = np.zeros((len(prefixes) + 1, 256), np.uint8)
    value = 0
    for row, prefix in enumerate(prefixes):
        known, depth = {}, len(prefix)
        for symbol, code in codes.items():
            if not code.startswith(prefix) or len(code) <= depth:
                continue
            if len(code) <= depth + 8:
                known[int(code[depth:].ljust(8, "0"), 2)] = symbol
            else:
                known[int(code[depth : depth + 8], 2)] = 256 - prefixes.index(code[: depth + 8])
        for i in range(256):
            value = known.get(i, value)  # entries that no code begins with repeat the one before
            luts[row, i] = value
    for symbol, code in codes.items():
        luts[-1, symbol] = len(code)
    return luts


def main():
    parts = [read_bits(name, count) for name, count in TENSORS]
    bits = np.concatenate(parts)
    exponents = (bits >> 7 & 0xFF).tolist()
    counts = {int(s): int(n) for s, n in zip(*np.unique(exponents, return_counts=True))} | {END: 1}
    codes = huffman(counts)
    gaps, positions, text, total = [], [], [], 0
    for i, symbol in enumerate(exponents + [END]):
        if symbol == END and total % 8 == 0:
            break
        if total // CHUNK_BITS + 1 > len(gaps):
            gaps.append(total % CHUNK_BITS)
        if total // (CHUNK_BITS * BLOCK_CHUNKS) + 1 > len(positions):
            positions.append(i)
        text.append(codes[symbol])
        if symbol != END:
            total += len(codes[symbol])
    positions.append(len(exponents))
    stream = "".join(text)[: (total + 7) // 8 * 8].ljust((total + 7) // 8 * 8, "0")
    encoded = np.array([int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)], np.uint8)
    blocks = -(-len(encoded) * 8 // (CHUNK_BITS * BLOCK_CHUNKS))
    gaps += [0] * (blocks * BLOCK_CHUNKS - len(gaps))
    save_file(
        {
            "luts": tables(codes),
            "encoded_exponent": encoded,
            "sign_mantissa": (bits >> 8 & 0x80 | bits & 0x7F).astype(np.uint8),
            "gaps": np.packbits([int(b) for gap in gaps for b in format(gap, "05b")]),
            "output_positions": np.array(positions, "<u4").view(np.uint8),
            "split_positions": np.cumsum([len(p) for p in parts])[:-1].astype(np.int64),
        },
        FOLDER / "dfloat11.safetensors",
    )
    print(f"{len(bits)} numbers, {8 * len(encoded) / len(bits):.3f} bits a code, longest {max(map(len, codes.values()))}")


if __name__ == "__main__":
    main()
