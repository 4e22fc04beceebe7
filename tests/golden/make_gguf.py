#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes weights.gguf and gguf_values.f32: a tensor of every type that is read, of random blocks, and what the gguf package makes of them.

Scales are any finite f16, among them zeros, subnormals and the largest; codes and the other parameters are any bits. The values are those of
the tensors one behind the other, in the file's order, which is not that of their names.

    python3 tests/golden/make_gguf.py      needs numpy and gguf (0.17 or later)
"""
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter, GGUFValueType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from make_golden import write

FOLDER = pathlib.Path(__file__).parent
# type, rows, columns, where the f16 of a block lie
TENSORS = [
    (Type.Q6_K, 2, 512, [208]),
    (Type.F32, 3, 37, []),
    (Type.F16, 3, 37, [0]),
    (Type.BF16, 2, 37, []),
    (Type.Q8_0, 3, 160, [0]),
    (Type.Q4_0, 2, 288, [0]),
    (Type.Q4_1, 2, 288, [0, 2]),
    (Type.Q5_0, 2, 288, [0]),
    (Type.Q5_1, 2, 288, [0, 2]),
    (Type.Q4_K, 2, 512, [0, 2]),
    (Type.Q5_K, 2, 512, [0, 2]),
]
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x3C00], "<u2")


def random_tensor(random, kind, rows, columns, f16_at):
    elements, size = GGML_QUANT_SIZES[kind]
    if kind == Type.F32:
        return random.standard_normal((rows, columns)).astype("<f4")
    if kind == Type.BF16:
        numbers = random.standard_normal((rows, columns)).astype("<f4").view("<u4")
        return (numbers >> 16).astype("<u2").view(np.uint8).reshape(rows, 2 * columns)
    blocks = random.integers(0, 256, (rows * columns // elements, size), np.uint8)
    for at in f16_at:
        scales = random.integers(0, 0x7C00, len(blocks), "<u2") | random.integers(0, 2, len(blocks), "<u2") << 15
        special = random.random(len(blocks)) < 0.25
        scales[special] = random.choice(SPECIAL, special.sum())
        blocks[:, at : at + 2] = scales.astype("<u2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def main():
    random = np.random.default_rng(11)
    path = FOLDER / "weights.gguf"
    writer = GGUFWriter(path, "test")
    writer.add_custom_alignment(64)
    writer.add_key_value("test.u8", 200, GGUFValueType.UINT8)
    writer.add_key_value("test.i8", -7, GGUFValueType.INT8)
    writer.add_key_value("test.u16", 60000, GGUFValueType.UINT16)
    writer.add_key_value("test.i16", -30000, GGUFValueType.INT16)
    writer.add_key_value("test.u32", 4000000000, GGUFValueType.UINT32)
    writer.add_key_value("test.i32", -2000000000, GGUFValueType.INT32)
    writer.add_key_value("test.u64", 2**63 + 1, GGUFValueType.UINT64)
    writer.add_key_value("test.i64", -(2**63), GGUFValueType.INT64)
    writer.add_key_value("test.f32", 0.1, GGUFValueType.FLOAT32)
    writer.add_key_value("test.f64", 0.1, GGUFValueType.FLOAT64)
    writer.add_key_value("test.true", True, GGUFValueType.BOOL)
    writer.add_key_value("test.text", "caf\u00e9", GGUFValueType.STRING)
    writer.add_array("test.numbers", [3, 1, 2])
    writer.add_array("test.words", ["one", "", "three"])
    expected = []
    for kind, rows, columns, f16_at in TENSORS:
        data = random_tensor(random, kind, rows, columns, f16_at)
        raw_type = kind if data.dtype == np.uint8 else None
        writer.add_tensor(f"{kind.name.lower()}.weight", data, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    for tensor, (kind, rows, columns, _) in zip(GGUFReader(path).tensors, TENSORS, strict=True):
        assert tensor.tensor_type == kind and tensor.shape.tolist() == [columns, rows]
        values = dequantize(tensor.data, kind).astype("<f4")
        assert values.size == rows * columns and np.isfinite(values).all()
        expected.append(values.tobytes())
    write({"weights.gguf": path.read_bytes(), "gguf_values.f32": b"".join(expected)})


if __name__ == "__main__":
    main()
