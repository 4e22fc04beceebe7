#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the small byte-level Llama-architecture language model that the examples run.

Text       King James Bible as Debian's package bible-kjv prints it (public domain), last 5 % held out.
Recall     generated passages: "the number of X is 4821." ... "the number of X is 4821.", X an invented name,
           scattered through the text at log-uniform distances, so that the model learns to look far back.
Model      decoder-only: RMSNorm, rotary positions (half-split pairs), SwiGLU, grouped-query attention; see Config.
Optimizer  Muon for the matrices inside the blocks, AdamW for the rest; warm-up, constant, linear decay to zero.

  python3 train.py --text kjv.txt --out run/          trains; run/log.csv is the loss curve
  kill -USR1 PID                                      starts the final decay now

Needs torch, numpy, safetensors.  export.py turns run/model.pt into the shipped safetensors and the golden logits.
"""
import argparse
import csv
import dataclasses
import math
import os
import signal
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclasses.dataclass
class Config:
    vocab: int = 256
    dim: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 704
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rope_tables(config, length):
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Half-split rotary embedding: pairs (i, i + head_dim / 2).  x [batch, head, token, channel]"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.attention_norm = Norm(c.dim, c.norm_eps)
        self.q = nn.Linear(c.dim, c.heads * c.head_dim, bias=False)
        self.k = nn.Linear(c.dim, c.kv_heads * c.head_dim, bias=False)
        self.v = nn.Linear(c.dim, c.kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.heads * c.head_dim, c.dim, bias=False)
        self.mlp_norm = Norm(c.dim, c.norm_eps)
        self.gate = nn.Linear(c.dim, c.hidden, bias=False)
        self.up = nn.Linear(c.dim, c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.dim, bias=False)

    def forward(self, x, cos, sin):
        c = self.c
        batch, length, _ = x.shape
        h = self.attention_norm(x)
        q = self.q(h).view(batch, length, c.heads, c.head_dim).transpose(1, 2)
        k = self.k(h).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.v(h).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(batch, length, -1))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab, c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = Norm(c.dim, c.norm_eps)
        self.head = nn.Linear(c.dim, c.vocab, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02 if not name.endswith(("o.weight", "down.weight")) else 0.02 / math.sqrt(2 * c.layers)
                nn.init.normal_(p, std=std)
        cos, sin = rope_tables(c, c.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return self.head(self.norm(x))


# ---------------------------------------------------------------------------------------------------- data

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def invented_name(rng):
    return "".join(rng.choice(list(CONSONANTS)) + rng.choice(list(VOWELS)) for _ in range(rng.integers(2, 4)))


def fact(name, number):
    return f"the number of {name} is {number}.\n"


ANSWER = 4  # digits


class Data:
    """Windows of text and recall passages, with a weight for each target byte."""

    def __init__(self, text):
        cut = int(len(text) * 0.95)
        self.train, self.held_out = text[:cut], text[cut:]
        self.starts = np.array([i + 1 for i, c in enumerate(self.train[:-4096]) if c == 10])

    def window(self, length, rng):
        kind = rng.random()
        copies, prose = (0.3, 0.1) if length <= 256 else (0.15, 0.25) if length <= 512 else (0.1, 0.3)  # copying is learnt first, on short windows
        if kind < copies:  # invented words repeated over and over: teaches copying, which recall is built on
            words = " ".join(invented_name(rng) if rng.random() < 0.5 else f"{rng.integers(0, 10000):04d}"
                             for _ in range(rng.integers(4, max(6, length // 24)))).encode() + b"\n"
            repeated = words * (length // len(words) + 2)
            return np.frombuffer(repeated[:length + 1], np.uint8), np.where(np.arange(length) < len(words), 0.2, 1.0).astype(np.float32)
        if kind < copies + prose:  # text only
            start = rng.integers(0, len(self.train) - length - 1)
            return np.frombuffer(self.train[start:start + length + 1], np.uint8), np.ones(length, np.float32)
        out, weight, facts = bytearray(), [], []
        filler = math.exp(rng.uniform(math.log(4), math.log(max(16, length / 8))))  # mean bytes of text between facts
        fresh = rng.uniform(0.25, 0.6)
        while len(out) < length + 1:
            n = int(rng.exponential(filler))
            if n > 4:
                start = rng.choice(self.starts)
                out += self.train[start:start + n] + b"\n"
                weight += [1.0] * (n + 1)
            asked = facts and rng.random() > fresh
            if asked:  # uniform in the logarithm of the distance or, half of the time on long windows, in the distance itself
                age = np.array([len(out) - f[2] for f in facts], float)
                age = age if length > 1024 and rng.random() < 0.5 else np.log(age)
                target = rng.uniform(age.min(), age.max() + 1e-9)
                name, number, _ = facts[int(np.argmin(np.abs(age - target)))]
            else:
                name, number = invented_name(rng), f"{rng.integers(0, 10000):04d}"
                if any(name == f[0] for f in facts):
                    continue
                facts.append((name, number, len(out)))
            line = fact(name, number).encode()
            digits = line.rindex(b" ") + 1
            out += line
            weight += [1.0] * digits + [3.0 if asked else 0.0] * ANSWER + [1.0] * (len(line) - digits - ANSWER)
        return np.frombuffer(bytes(out[:length + 1]), np.uint8), np.array(weight[1:length + 1], np.float32)

    def batch(self, size, length, rng):
        windows = [self.window(length, rng) for _ in range(size)]
        tokens = torch.from_numpy(np.stack([w[0] for w in windows]).astype(np.int64))
        return tokens[:, :-1], tokens[:, 1:], torch.from_numpy(np.stack([w[1] for w in windows]))


def recall_passage(text, distance, distractors, rng):
    """A prompt that ends just before the answer; `distance` bytes lie between the stated number and the question.

    The fact asked for and `distractors` others (each at its own random place) are set into held-out text."""
    name, number = invented_name(rng), f"{rng.integers(0, 10000):04d}"
    stated, question = fact(name, number), f"the number of {name} is "
    others = []
    while len(others) < distractors:
        other = invented_name(rng)
        if other != name:
            others.append(fact(other, f"{rng.integers(0, 10000):04d}"))
    between = distance - len(question) - 2
    start = int(rng.integers(0, len(text) - between - 8))
    body = text[start:start + between].decode()
    for other in others:  # replaces text, so that the distance stays exact
        place = int(rng.integers(0, max(1, len(body) - len(other))))
        body = body[:place] + "\n" + other + body[place + len(other) + 1:]
    body = (body + " " * between)[:between - 1] + "\n"
    return stated + body + question, number


@torch.no_grad()
def recall_accuracy(model, text, distance, samples, seed=1, distractors=None):
    """Share of passages whose four digits are all right under greedy decoding (chance 1e-4)."""
    rng = np.random.default_rng(seed)
    right = 0
    for _ in range(samples):
        few = min(4, distance // 100) if distractors is None else distractors
        prompt, number = recall_passage(text, distance, few, rng)
        tokens = torch.tensor([list((prompt + number).encode())])
        guess = model(tokens)[0, -ANSWER - 1:-1].argmax(-1)  # teacher forcing: all right iff greedy is all right
        right += bytes(guess.tolist()) == number.encode()
    return right / samples


@torch.no_grad()
def held_out_bits(model, text, length, windows):
    total = 0.0
    for i in range(windows):
        start = i * (len(text) - length - 1) // max(1, windows - 1)
        tokens = torch.tensor([list(text[start:start + length + 1])])
        total += F.cross_entropy(model(tokens[:, :-1])[0].float(), tokens[0, 1:]).item() / math.log(2)
    return total / windows


# ------------------------------------------------------------------------------------------------ training

def orthogonalize(g):
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix (Muon; Jordan et al., 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (g / (g.norm() + 1e-7)).bfloat16()
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return (x.T if flip else x).float()


class Muon:
    def __init__(self, parameters, momentum=0.95):
        self.parameters, self.momentum = list(parameters), momentum
        self.state = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate):
        for p, m in zip(self.parameters, self.state):
            m.lerp_(p.grad, 1 - self.momentum)
            update = orthogonalize(p.grad.lerp(m, self.momentum))
            p.mul_(1 - rate * 0.01)
            p.add_(update, alpha=-rate * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--stages", default="256:8e6,512:5e6,1024:5e6,2048:10e6", help="context:tokens,...")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--decay-tokens", type=float, default=8e6)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile (needs a C++ compiler)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    data = Data(open(args.text, "rb").read())
    config = Config()
    model = Model(config)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(data.train)} + {len(data.held_out)} bytes", flush=True)
    matrices = [p for n, p in model.blocks.named_parameters() if p.dim() == 2]
    ids = {id(p) for p in matrices}
    muon = Muon(matrices)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in ids], betas=(0.9, 0.95), weight_decay=0.0)

    stages = [(int(s.split(":")[0]), float(s.split(":")[1])) for s in args.stages.split(",")]
    total = sum(t for _, t in stages)
    decay_from = total - args.decay_tokens
    seen, step = 0, 0
    checkpoint = os.path.join(args.out, "model.pt")
    if args.resume and os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        muon.state, seen, step = saved["muon"], saved["seen"], saved["step"]
        rng = np.random.default_rng(args.seed + step)

    def finish_soon(*_):
        nonlocal decay_from, total
        if seen < decay_from:
            decay_from, total = seen, seen + args.decay_tokens
    signal.signal(signal.SIGUSR1, finish_soon)

    def save():
        torch.save({"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.state, "seen": seen,
                    "step": step, "config": dataclasses.asdict(config)}, checkpoint + ".tmp")
        os.replace(checkpoint + ".tmp", checkpoint)

    log = open(os.path.join(args.out, "log.csv"), "a", newline="")
    writer = csv.writer(log)
    started, last_save, smooth = time.time(), time.time(), None
    while seen < total:
        length, reached = stages[-1][0], 0.0
        if seen < decay_from:
            for context, tokens in stages:
                reached += tokens
                if seen < reached:
                    length = context
                    break
        scale = min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (total - seen) / (total - decay_from)))
        inputs, targets, weight = data.batch(max(1, args.batch_tokens // length), length, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        recalled = weight.flatten() == 3.0
        text_loss = loss[weight.flatten() == 1.0].mean().item() / math.log(2)
        recall_loss = loss[recalled].mean().item() / math.log(2) if recalled.any() else float("nan")
        loss = (loss * weight.flatten()).sum() / weight.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(args.muon_rate * scale)
        for group in adam.param_groups:
            group["lr"] = args.adam_rate * scale
        adam.step()
        model.zero_grad(set_to_none=True)
        seen += inputs.numel()
        step += 1
        if step % 20 == 0:
            writer.writerow([step, seen, length, f"{text_loss:.4f}", f"{recall_loss:.4f}", f"{scale:.4f}"])
            log.flush()
            print(f"{step} {seen/1e6:.2f}M T={length} text {text_loss:.3f} recall {recall_loss:.3f} bits/byte, "
                  f"{(time.time()-started)/60:.1f} min", flush=True)
        if step % 500 == 0:
            model.eval()
            print("  recall@200", recall_accuracy(model, data.held_out, 200, 20),
                  f"held-out {held_out_bits(model, data.held_out, 1024, 8):.3f}", flush=True)
            model.train()
        if time.time() - last_save > 240:
            save()
            last_save = time.time()
    save()
    model.eval()
    for distance in (256, 512, 1024, 1900):
        print(distance, recall_accuracy(model, data.held_out, distance, 100), flush=True)
    print("held-out bits per byte", held_out_bits(model, data.held_out, 2048, 40), flush=True)


if __name__ == "__main__":
    main()
