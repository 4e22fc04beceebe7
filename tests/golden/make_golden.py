#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files: rows in (*.f32) and the bytes that each codec must make of them (*.bin).

An implementation of its own, from the format comments in codec/integer.hpp and codec/word_layout.hpp: numpy for the numbers, one bit at a
time for the words. Run it after a change of a format only, and say so in the changelog.

    python3 tests/golden/make_golden.py      needs numpy and ml_dtypes
"""
import hashlib
import pathlib

import ml_dtypes
import numpy as np

FOLDER = pathlib.Path(__file__).parent
F32 = np.float32
SCALES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}
FLOAT8 = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
BLOCK = 32


def make_rows(channels, seed):
    """64 tokens: gaussian, an outlier channel, constants, exact ties, numbers that are not finite."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((64, channels)).astype(F32)
    rows[:, 7] *= F32(30)
    rows[:, 9] = F32(0.3)
    rows[4, :] = F32(-1.25)
    rows[11, :] = (np.arange(channels) % 31).astype(F32) / F32(2)  # with 15 steps of 1: every half
    rows[12, :] = 0
    rows[13, :] = (np.arange(channels) % 31).astype(F32) * F32(1.5)  # with 15 steps of 3
    rows[14:16, :] = (random.integers(0, 511, (2, channels)) * 7).astype(F32) / F32(2)  # with 255 steps of 7
    rows[14:16, ::16], rows[14:16, 1::16] = 0, 255 * 7
    rows[40, :] *= F32(1e-6)
    rows[41, :] += F32(1000)
    rows[17, 3], rows[18, 30], rows[19, 31] = np.nan, np.inf, -np.inf
    return rows


def store(x, scale):
    """Rounded to the stored type, saturating."""
    top = float(ml_dtypes.finfo(SCALES[scale]).max)
    return np.clip(x, F32(-top), F32(top)).astype(SCALES[scale])


def quantize(values, bits, zero, scale):
    """One group: codes, stored scale, stored zero (or None)."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min() + F32(0), finite.max()) if finite.size else (F32(0), F32(0))  # + 0: a minimum of zero is +0
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    offset, shift, least = F32(0), 0, 0
    stored_zero = None
    if zero == "none":
        spread, steps, shift, least = max(high, -low), middle - 1, middle, 1
    elif zero == "real":
        stored_zero = store(low, scale)
        offset = stored_zero.astype(F32)
        spread, steps = high - offset, top
    else:
        spread, steps = max(high, F32(0)) - min(low, F32(0)), top
    s = store(F32(spread) / F32(steps), scale) if spread > F32(2.0**-100) else SCALES[scale](0)
    step = s.astype(F32)
    inverse = F32(1) / step if step > F32(2.0**-100) else F32(0)
    if zero == "integer":
        shift = int(np.rint(np.clip(-min(low, F32(0)) * inverse, 0, top)))
        stored_zero = np.uint8(shift)
    x = np.clip(np.where(np.isnan(values), F32(0), values), low, high).astype(F32)
    codes = np.rint(((x - offset).astype(F32) * inverse).astype(F32)).astype(np.int64) + shift
    return np.clip(codes, least, top), s, stored_zero


def quantize_block(values, bits):
    """One block that shares an exponent: codes and the exponent's byte, a power of two by frexp."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (F32(0), F32(0))
    _, e = np.frexp(max(high, -low))  # size = m 2^e with 1/2 <= m < 1
    exponent = int(e) - 1 - (bits - 2)
    if max(high, -low) == 0 or exponent <= -100:
        return np.full(values.shape, 1 << (bits - 1)), np.uint8(0)
    x = np.clip(np.where(np.isnan(values), F32(0), values), low, high).astype(np.float64)
    most = (1 << (bits - 1)) - 1
    return np.clip(np.rint(np.ldexp(x, -exponent)), -most, most).astype(np.int64) + most + 1, np.uint8(exponent + 127)


def quantize_float8(values, kind, scale):
    """One group of 8-bit floats: codes and stored scale (None without one)."""
    most = F32(ml_dtypes.finfo(FLOAT8[kind]).max)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (F32(0), F32(0))
    s, inverse = None, F32(1)
    if scale is None:
        low, high = -most, most
    else:
        size, inverse = max(high, -low), F32(0)
        s = np.uint8(0) if scale == "e8m0" else SCALES[scale](0)
        if size > F32(2.0**-100) and scale == "e8m0":
            exponent = int(np.frexp(size)[1]) - int(np.frexp(most)[1])  # floor(log2 size) - floor(log2 most)
            s, inverse = np.uint8(exponent + 127), F32(np.ldexp(1.0, -exponent))
        elif size > F32(2.0**-100):
            s = store(size / most, scale)
            inverse = F32(1) / s.astype(F32) if s.astype(F32) > 0 else F32(0)
    x = np.clip(np.where(np.isnan(values), F32(0), values), low, high).astype(F32) * inverse
    codes = np.clip(x, -most, most).astype(FLOAT8[kind]).view(np.uint8).astype(np.int64)
    return np.where(codes == 0x80, 0, codes), s


def float8_tables(kind):
    """The value of every code, and pairs of an f32 and the code it becomes: zero, infinity, NaN, every value, and for every two neighbours
    the number half-way between them and the floats just below and above it, of both signs."""
    values = np.arange(256, dtype=np.uint8).view(FLOAT8[kind]).astype("<f4")
    finite = np.unique(np.abs(values[np.isfinite(values)])).astype(np.float64)
    after = finite[-1] + (finite[-1] - finite[-2])  # what the next code would be worth
    middles = (finite + np.append(finite[1:], after)) / 2
    assert np.all(middles == middles.astype("<f4"))
    middles = middles.astype("<f4")
    below, above = np.nextafter(middles, F32(0)), np.nextafter(middles, F32(np.inf))
    extremes = [1e-30, 1e-45, np.finfo(F32).tiny, after, 1e30, np.finfo(F32).max, np.inf]
    positive = np.concatenate([finite, middles, below, above, extremes]).astype("<f4")
    x = np.concatenate([positive, -positive, [np.nan]]).astype("<f4")
    table = np.zeros(x.size, dtype=[("x", "<f4"), ("code", "u1")])  # 5 bytes a pair
    with np.errstate(over="ignore", invalid="ignore"):
        table["x"], table["code"] = x, x.astype(FLOAT8[kind]).view(np.uint8)
    return values.tobytes(), table.tobytes()


def set_bit(block, word, bit):
    block[4 * word + bit // 8] |= 1 << (bit % 8)


PLANES = {3: [2, 1], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1]}


def pack(codes, bits, use):
    """codes [32][channels] to the words of a block."""
    tokens, channels = codes.shape
    lanes, packed = (tokens, channels) if use == "dot" else (channels, tokens)
    first, *higher = PLANES.get(bits, [bits])
    per_word, per_byte = 32 // first, max(8 // first, 1)
    words = -(-packed // per_word)
    block = bytearray(4 * lanes * (words + sum(-(-packed // (32 // width)) for width in higher)))
    for lane in range(lanes):
        for p in range(packed):
            code = int(codes[lane, p] if use == "dot" else codes[p, lane])
            word, place = p // per_word * lanes + lane, p % per_word
            for bit in range(first):
                if code >> bit & 1:
                    set_bit(block, word, place * first + bit)
            b, s = divmod(place, per_byte)  # byte of the word, and step in it
            step = p // per_word * per_byte + s  # of the lane: 8 / width steps share a word of a higher plane
            before, done = words, first
            for width in higher:
                number, k = divmod(step, 8 // width)
                for bit in range(width):
                    if code >> (done + bit) & 1:
                        set_bit(block, (before + number) * lanes + lane, 8 * b + width * k + bit)
                before, done = before + -(-packed // (32 // width)), done + width
    return bytes(block)


def encode(rows, bits, along, group, zero, scale, use, kind="integer"):
    tokens = group if along == "tokens" and group > BLOCK else BLOCK
    rows = rows[:tokens]
    grid = rows.T if along == "tokens" else rows  # the last axis is grouped
    lanes, length = grid.shape
    codes = np.zeros(grid.shape, np.int64)
    scales, zeros = [], []
    for g in range(length // group):
        for lane in range(lanes):
            part = slice(g * group, (g + 1) * group)
            if kind in FLOAT8:
                codes[lane, part], s = quantize_float8(grid[lane, part], kind, scale)
                z = None
            elif scale == "e8m0":
                codes[lane, part], s = quantize_block(grid[lane, part], bits)
                z = None
            else:
                codes[lane, part], s, z = quantize(grid[lane, part], bits, zero, scale)
            scales.append(s)
            zeros.append(z)
    if along == "tokens":
        codes = codes.T
    out = b"".join(pack(codes[first : first + BLOCK], bits, use) for first in range(0, tokens, BLOCK))
    if scale is not None:
        out += b"".join(np.asarray(s).tobytes() for s in scales)
    if zero != "none":
        out += b"".join(np.asarray(z).tobytes() for z in zeros)
    return out + bytes(-len(out) % 64)


def encode_raw(rows, scale, use):
    with np.errstate(over="ignore"):  # f16: infinity
        rows = rows[:BLOCK].astype(SCALES[scale])
    bits = 8 * rows.itemsize
    return pack(rows.view(np.uint32 if bits == 32 else np.uint16).astype(np.int64), bits, use)


def encode_bitmap_sparse(rows, scale, use):
    """Numbers up to 0.5 in size become zeros of either sign, NaN too; what is left of the raw tile's halves, behind a bit for each."""
    x = rows[:BLOCK].astype(F32)
    sign = np.where(x.view(np.uint32) % 2 == 0, F32(0), F32(-0.0))
    halves = np.frombuffer(encode_raw(np.where(np.abs(x) > F32(0.5), x, sign), scale, use), "<u2")
    stored = halves[halves % 0x8000 != 0].tobytes()
    bitmap = np.packbits(halves % 0x8000 != 0, bitorder="little").tobytes()
    return bytes(8) + len(stored).to_bytes(4, "little") + bytes(52) + bitmap + stored


def hadamard(rows, n):
    """Strides 1, 2, 4, ..., in f32."""
    x = np.where(np.isfinite(rows), rows, F32(0)).astype(F32).copy()
    stride = 1
    while stride < n:
        for i in range(rows.shape[1]):
            if i // stride % 2 == 0:
                a, b = x[:, i].copy(), x[:, i + stride].copy()
                x[:, i], x[:, i + stride] = a + b, a - b
        stride *= 2
    return x * F32(1 / np.sqrt(np.float64(n)))


def vectors_of(rows, along, length, page=64):
    """Views of the tile's vectors in their order, the tile, and the tile's tokens."""
    tokens = max(length, BLOCK) if along == "tokens" else BLOCK
    tile = rows[:tokens].astype(F32).copy()
    grid = tile.T if along == "tokens" else tile
    lanes, size = grid.shape
    return [grid[lane, g * length : (g + 1) * length] for g in range(size // length) for lane in range(lanes)], tile


def encode_outliers(rows, which, n, along, length, leave, value):
    """Bytes, and what they decode to."""
    vectors, tile = vectors_of(rows, along, length)
    values, places = [], []
    for x in vectors:
        finite = np.isfinite(x)
        x[:] = np.where(finite, x, F32(0))
        free = [i for i in range(length) if finite[i]]
        taken = []
        for key in [lambda i: -x[i]] * n + [lambda i: x[i]] * n if which == "both_ends" else [lambda i: -abs(x[i])] * n:
            if free:
                taken.append(min(free, key=key))  # the first of equals
                free.remove(taken[-1])
        rest = x[free] if free else np.zeros(1, F32)
        mean = F32(0)
        size = np.abs(rest).max()
        if leave == "mean" and size > 2.0**-100:
            step = 2.0 ** (np.frexp(np.float64(size))[1] - 1 - 20)
            total = int(np.rint(rest.astype(np.float64) / step).sum())
            mean = F32(int(total / len(rest)) * step)  # truncates
        kept = {"zero": lambda v: F32(0), "mean": lambda v: mean, "end": lambda v: np.clip(v, rest.min(), rest.max())}[leave]
        deltas = [store(F32(x[i]) - kept(x[i]), value) for i in taken]
        count = 2 * n if which == "both_ends" else n
        values.append(deltas + [SCALES[value](0)] * (count - len(deltas)))
        places.append(taken + [0] * (count - len(taken)))
        x[:] = 0
        for i, delta in zip(taken, deltas):
            x[i] = delta.astype(F32)
    out = np.array(values, SCALES[value]).T.tobytes() + np.array(places, np.uint8).T.tobytes()
    return out + bytes(-len(out) % 64), tile


def encode_sparse_int2(rows, use):
    """sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>> of 64 tokens."""
    sparse, decoded = encode_outliers(rows, "both_ends", 1, "tokens", 64, "mean", "f16")
    left = np.where(np.isfinite(rows), rows - decoded, F32(0)).astype(F32)
    return sparse + b"".join(encode(left[first : first + BLOCK], 2, "tokens", 32, "real", "f16", use) for first in (0, BLOCK))


OUTLIERS = [  # channels, which, n, along, length, leave, value
    (64, "both_ends", 1, "tokens", 64, "mean", "f16"),
    (80, "magnitudes", 3, "channels", 16, "zero", "bf16"),
    (64, "both_ends", 2, "channels", 64, "end", "f32"),
    (80, "magnitudes", 1, "tokens", 32, "mean", "f16"),
]

CASES = [  # channels, bits, along, group, zero, scale
    (64, 2, "channels", 32, "real", "f16"),
    (64, 2, "tokens", 32, "real", "f16"),
    (80, 3, "channels", 16, "real", "f32"),
    (80, 3, "tokens", 64, "integer", "bf16"),
    (64, 3, "tokens", 16, "none", "f16"),
    (64, 4, "channels", 64, "real", "f16"),
    (64, 4, "tokens", 32, "real", "bf16"),
    (80, 4, "channels", 80, "none", "f32"),
    (64, 4, "channels", 32, "integer", "f16"),
    (80, 5, "channels", 16, "real", "f16"),
    (64, 6, "tokens", 32, "none", "bf16"),
    (80, 7, "channels", 80, "integer", "f16"),
    (64, 7, "tokens", 16, "real", "f32"),
    (80, 8, "tokens", 32, "none", "f16"),
    (64, 8, "channels", 64, "integer", "f32"),
    (64, 8, "tokens", 64, "real", "f32"),
]


FLOAT8_CASES = [  # channels, type, along, group, scale
    (80, "e4m3", "channels", 80, None),
    (64, "e5m2", "channels", 64, None),
    (64, "e4m3", "channels", 64, "bf16"),
    (80, "e5m2", "tokens", 16, "f32"),
    (80, "e4m3", "tokens", 64, "f16"),
    (64, "e4m3", "channels", 32, "e8m0"),
    (64, "e5m2", "tokens", 32, "e8m0"),
]


def write(files):
    """Writes {name: bytes} and their lines of SHA256SUMS."""
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    sums = {name: total for total, name in (line.split("  ") for line in lines)}
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
    (FOLDER / "SHA256SUMS").write_text("".join(f"{total}  {name}\n" for name, total in sorted(sums.items())))


def main():
    inputs = {channels: make_rows(channels, channels) for channels in (64, 80)}
    files = {f"rows_{channels}.f32": rows.tobytes() for channels, rows in inputs.items()}
    for use in ("dot", "mix"):
        for channels, bits, along, group, zero, scale in CASES:
            name = f"int{bits}_{along}_{group}_{zero}_{scale}_{channels}_{use}.bin"
            files[name] = encode(inputs[channels], bits, along, group, zero, scale, use)
        for channels, bits, along, group in [(64, 4, "channels", 32), (80, 5, "tokens", 64), (80, 8, "channels", 16)]:
            name = f"block_float{bits}_{along}_{group}_{channels}_{use}.bin"
            files[name] = encode(inputs[channels], bits, along, group, "none", "e8m0", use)
        for channels, kind, along, group, scale in FLOAT8_CASES:
            name = f"{kind}_{along}_{group}_{scale or 'plain'}_{channels}_{use}.bin"
            files[name] = encode(inputs[channels], 8, along, group, "none", scale, use, kind)
        for scale in SCALES:
            files[f"raw_{scale}_80_{use}.bin"] = encode_raw(np.nan_to_num(inputs[80], nan=0.0), scale, use)
        files[f"hadamard_64_int4_channels_64_real_f16_64_{use}.bin"] = encode(hadamard(inputs[64], 64), 4, "channels", 64, "real", "f16", use)
        for scale in ("bf16", "f16"):
            files[f"bitmap_sparse_{scale}_64_{use}.bin"] = encode_bitmap_sparse(inputs[64], scale, use)
        for channels, which, n, along, length, leave, value in OUTLIERS:
            name = f"{which}_{n}_{along}_{length}_{leave}_{value}_{channels}_{use}.bin"
            files[name] = encode_outliers(inputs[channels], which, n, along, length, leave, value)[0]
        files[f"sum_both_ends_1_int2_tokens_64_{use}.bin"] = encode_sparse_int2(inputs[64], use)
    for kind in FLOAT8:
        files[f"{kind}_values.f32"], files[f"{kind}_codes.bin"] = float8_tables(kind)
    write(files)


if __name__ == "__main__":
    main()
