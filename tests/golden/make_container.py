#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes container_weights.safetensors, the tensors that the golden containers are made from: each type that is packed, odd shapes, and
tensors that stay as they are. The containers themselves are what `pith compress` makes of it (see SHA256SUMS); decode_container.py reads them.

    python3 tests/golden/make_container.py      needs numpy, ml_dtypes and safetensors
"""
import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
         "float8_e5m2": ml_dtypes.float8_e5m2}


def main():
    random = np.random.default_rng(11)
    tensors = {}
    shapes = {"bfloat16": (60, 185), "float16": (32, 128), "float32": (64, 64), "float8_e4m3fn": (32, 256), "float8_e5m2": (8, 16, 64)}
    for name, shape in shapes.items():
        x = (random.standard_normal(shape) * np.exp(random.standard_normal((shape[0],) + (1,) * (len(shape) - 1)) * 0.3)).astype(np.float32)
        tensors["weights." + name] = (name, x.astype(TYPES[name]))
    first = tensors["weights.bfloat16"][1].view(np.uint16).reshape(-1)
    first[:6] = [0x7fc1, 0xff80, 0x0000, 0x8001, 0x7f81, 0xffff]  # NaNs with payloads, an infinity, a subnormal
    tensors["noise"] = ("bfloat16", random.integers(0, 65536, (64, 64)).astype(np.uint16).view(ml_dtypes.bfloat16))  # does not get smaller
    tensors["scalar"] = ("int64", np.array(-5, np.int64))
    tensors["empty"] = ("float32", np.zeros((0, 3), np.float32))
    tensors["norm \"ü\""] = ("bfloat16", np.ones(33, ml_dtypes.bfloat16))
    save_file({key: x for key, (name, x) in tensors.items()}, FOLDER / "container_weights.safetensors", {"format": "pt"})


main()
