#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's fused attention over contiguous bf16 keys and values, in the shapes of attention.cu, to be read beside its rows.

    torch_attention.py [--device cpu]      cpu: small shapes, checked against attention in double precision; no figures
"""
import argparse
import sys

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

QUERY_HEADS, KV_HEADS, CHANNELS = 32, 8, 128


def attend(q, k, v):
    """q [sequence][head][token][channel] are the newest of k's and v's tokens."""
    mask = causal_lower_right(q.shape[2], k.shape[2]) if q.shape[2] > 1 else None
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def rows(sequences, heads, tokens, device):
    return torch.randn(sequences, heads, tokens, CHANNELS, device=device, dtype=torch.float32).to(torch.bfloat16)


def exact(q, k, v):
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    scores = q @ k.transpose(2, 3) / CHANNELS**0.5
    newest = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)
    hidden = torch.arange(k.shape[2], device=q.device)[None, :] > newest[:, None]
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v


def check(device):
    for queries, context in ((1, 300), (64, 300), (300, 300)):
        q, k, v = rows(2, QUERY_HEADS, queries, device), rows(2, KV_HEADS, context, device), rows(2, KV_HEADS, context, device)
        wanted, found = exact(q, k, v), attend(q, k, v).double()
        error = ((found - wanted).norm() / wanted.norm()).item()
        if not error < 2**-7:  # two roundings to bf16
            print(f"queries {queries}, context {context}: relative error {error:.2e}")
            return False
    return True


def median_ms(call, flush, repetitions=11):
    times = []
    for i in range(-2, repetitions):
        flush.zero_()  # the second cache level holds nothing of the keys
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 0:
            times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = options.parse_args().device
    torch.manual_seed(1)
    if not check(device):
        return 1
    if device == "cpu":
        print("the calls are right; no figures on a processor")
        return 0
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    shapes = [(sequences, context, 1) for context in (8192, 32768) for sequences in (1, 8, 64)] + [(4, context, 512) for context in (4096, 32768)]
    for sequences, context, queries in shapes:
        name = f"PyTorch bf16                 batch {sequences:4} context {context:6}"
        q, k, v = rows(sequences, QUERY_HEADS, queries, device), rows(sequences, KV_HEADS, context, device), rows(sequences, KV_HEADS, context, device)
        ms = median_ms(lambda: attend(q, k, v), flush)
        if queries == 1:
            print(f"{name}  {1e3 * ms:9.1f} us  {2 * k.numel() * 2 / ms * 1e-6:6.0f} GB/s")
        else:
            operations = 4 * sequences * queries * (context - 0.5 * queries) * CHANNELS * QUERY_HEADS
            print(f"{name} chunk {queries}  {1e3 * ms:9.1f} us  {operations / ms * 1e-9:6.1f} TFLOP/s")
        del q, k, v
    return 0


if __name__ == "__main__":
    sys.exit(main())
