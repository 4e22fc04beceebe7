#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns a checkpoint of train.py into the files that the examples and tests read, and measures the model card.

  pith-kjv.safetensors   weights in bf16 under the tensor names that Llama models use; sizes as text in the metadata
  golden.safetensors     a fixed prompt (U8) and its last logits (F32), computed in f32 from the bf16 weights
  held_out.txt           the last 5 % of the text, which the model never saw
  loss.csv, loss.svg     the training log and its picture
  README.md              the model card; every figure in it is measured here

  python3 export.py --text kjv.txt --run run/          writes beside this file

Needs torch, numpy, safetensors.
"""
import argparse
import csv
import math
import os

import torch
from safetensors.torch import save_file

from train import Config, Data, Model, held_out_bits, recall_accuracy

DISTANCES = (256, 512, 1024, 1900)
PROMPT_BYTES, GOLDEN_ROWS = 384, 8


def llama_names(state, config):
    """The checkpoint's tensors under the names that other Llama readers know, rounded to bf16."""
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
    block = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
             "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    for layer in range(config.layers):
        for ours, theirs in block.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    assert set(names) == set(state), set(names) ^ set(state)
    return {theirs: state[ours].to(torch.bfloat16).contiguous() for ours, theirs in names.items()}


def metadata(config, seen):
    return {
        "format": "pt", "architecture": "LlamaForCausalLM", "vocab_size": str(config.vocab), "hidden_size": str(config.dim),
        "num_hidden_layers": str(config.layers), "num_attention_heads": str(config.heads), "num_key_value_heads": str(config.kv_heads),
        "head_dim": str(config.head_dim), "intermediate_size": str(config.hidden), "max_position_embeddings": str(config.context),
        "rope_theta": str(config.rope_theta), "rms_norm_eps": str(config.norm_eps), "tokenizer": "bytes", "trained_tokens": str(seen),
    }


# ---------------------------------------------------------------------------------------------------- loss

def read_log(path):
    """The rows that led to the checkpoint: a resumed run repeats the steps since the last save, and the repetition counts."""
    rows = []
    for row in csv.reader(open(path, newline="")):
        while rows and int(rows[-1][1]) >= int(row[1]):
            rows.pop()
        rows.append(row)
    return rows


def smooth(values, width=15):
    """Running mean over the values that are numbers."""
    out = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - width):i + width + 1] if not math.isnan(v)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


def loss_svg(rows):
    """Two curves over the tokens seen; colours follow the reader's light or dark theme."""
    width, height, left, right, top, bottom = 720, 360, 56, 16, 16, 44
    seen = [float(r[1]) / 1e6 for r in rows]
    curves = [("all but recalled digits, bits per byte", "a", smooth([float(r[3]) for r in rows])),
              ("recalled digits, bits per digit", "b", smooth([float(r[4]) for r in rows]))]
    high = 4.0

    def x(v):
        return left + (width - left - right) * v / seen[-1]

    def y(v):
        return top + (height - top - bottom) * (1 - min(v, high) / high)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           "<title>Training loss of the example model</title>",
           "<style>text{fill:#333}.grid{stroke:#ccc}.a{stroke:#1f6feb;fill:none;stroke-width:2}.b{stroke:#c2410c;fill:none;stroke-width:2}"
           "@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}.a{stroke:#79b8ff}.b{stroke:#fb923c}}</style>"]
    for v in range(int(high) + 1):
        out.append(f'<path class="grid" d="M{left} {y(v):.1f}H{width - right}"/><text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>')
    step = max(1, round(seen[-1] / 8))
    for v in range(0, int(seen[-1]) + 1, step):
        out.append(f'<text x="{x(v):.1f}" y="{height - bottom + 18}" text-anchor="middle">{v}</text>')
    changes = [(s, r[2]) for s, r, before in zip(seen[1:], rows[1:], rows) if r[2] != before[2]]
    for s, context in [(0.0, rows[0][2])] + changes:
        out.append(f'<path class="grid" stroke-dasharray="3 3" d="M{x(s):.1f} {top}V{height - bottom}"/>'
                   f'<text x="{x(s) + 4:.1f}" y="{height - bottom - 6}">context {context}</text>')
    out.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">million bytes seen</text>')
    for i, (name, style, values) in enumerate(curves):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(seen, values) if not math.isnan(v))
        out.append(f'<polyline class="{style}" points="{points}"/>')
        out.append(f'<path class="{style}" d="M{width - 290} {top + 12 + 18 * i}h24"/><text x="{width - 258}" y="{top + 16 + 18 * i}">{name}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


# ---------------------------------------------------------------------------------------------- model card

CARD = """# pith-kjv: a byte-level language model of {parameters:,} parameters

A small Llama-architecture model that makes the figures of Pith's examples real: its keys and values are those of a trained model,
not random numbers, and some of its questions can only be answered by looking far back. It is a measuring instrument, not a product.

| | |
|---|---|
| architecture | decoder only: RMSNorm, rotary positions (half-split pairs, theta {theta:.0f}), SwiGLU, grouped-query attention |
| sizes | {layers} layers, width {dim}, {heads} query heads, {kv_heads} KV heads of {head_dim}, hidden {hidden}, context {context} |
| vocabulary | the 256 bytes; embedding and head are separate |
| weights | `pith-kjv.safetensors`, bf16, {weight_bytes:,} bytes |
| text | King James Bible as Debian's package `bible-kjv` prints it: {train_bytes:,} bytes for training, {held_out_bytes:,} held out |
| licence of the text | public domain: the translation is of 1611 and its copyright has expired (Debian's copyright file says so) |
| licence of the weights | Apache-2.0, as the project |

## Measured

By `export.py`, in f32 from the bf16 weights.

| measure | value |
|---|---|
| held-out loss, {windows} windows of {context} bytes | {held_out:.4f} bits per byte (perplexity {perplexity:.3f} per byte) |
{recall_rows}

Recall is the share of {samples} passages in which all four digits of a number stated that many bytes earlier come out right under
greedy decoding (chance 0.0001): "the number of X is 4821." with an invented name X, then held-out text with up to four other such
facts, then "the number of X is ". The standard error of such a share p is sqrt(p (1 - p) / {samples}), at most {error:.3f}.

## Training

`train.py`, {seen:.1f} million bytes: Muon for the matrices inside the blocks, AdamW for the rest, warm-up, constant rate, linear
decay to zero, bf16 autocast, on two CPU cores. Contexts grew:
{stages}.
Windows are of three kinds: invented words and numbers repeated over and over (30 % at context 256, 15 % at 512, 10 % beyond), text
alone (10 %, 25 %, 40 %), and text with invented facts and questions about them at log-uniform distances; the asked digits weigh three
times, and digits that cannot be known weigh nothing. In the last 1.3 million bytes text alone was 30 %, and half of the asked
distances were uniform instead of log-uniform. The run was stopped and resumed several times, with batches of 4096 or 8192 bytes;
until 10.8 million bytes the windows were 40 % text and 60 % facts, without repeated words, and recall did not rise.

![loss](loss.svg)

The same figures are in `loss.csv`: step, bytes seen, context, loss on all but asked digits (bits per byte; repeated words are in it),
loss on recalled digits (bits per digit), learning-rate scale; each row is one batch, the picture a running mean.

## Limits

* It writes King James English and nothing else; what it says is not true of anything.
* Positions past {context} were never trained.
* Bytes, not words: {context} tokens of context are about {words} words.
* It is small: the order of caches that it gives may hold for large models, the size of the differences need not.

## Files

`pith-kjv.safetensors` weights; `golden.safetensors` a prompt of {prompt_bytes} bytes and its last {golden_rows} logits for the test
of the forward pass; `held_out.txt` the held-out text; `loss.csv`, `loss.svg`; `train.py`, `export.py`.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--samples", type=int, default=200, help="recall passages per distance")
    parser.add_argument("--windows", type=int, default=40, help="held-out windows")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    saved = torch.load(os.path.join(args.run, "model.pt"), map_location="cpu")
    config = Config(**saved["config"])
    weights = llama_names(saved["model"], config)
    weight_path = os.path.join(args.out, "pith-kjv.safetensors")
    save_file(weights, weight_path, metadata=metadata(config, saved["seen"]))
    os.chmod(weight_path, 0o644)

    data = Data(open(args.text, "rb").read())
    with open(os.path.join(args.out, "held_out.txt"), "wb") as f:
        f.write(data.held_out)

    model = Model(config)
    model.load_state_dict({name: tensor.to(torch.bfloat16).float() for name, tensor in saved["model"].items()})
    model.eval()
    prompt = data.held_out[:PROMPT_BYTES]
    with torch.no_grad():
        logits = model(torch.tensor([list(prompt)]))[0, -GOLDEN_ROWS:]
    golden_path = os.path.join(args.out, "golden.safetensors")
    save_file({"prompt": torch.tensor(list(prompt), dtype=torch.uint8), "logits": logits.contiguous()}, golden_path)
    os.chmod(golden_path, 0o644)

    rows = read_log(os.path.join(args.run, "log.csv"))
    with open(os.path.join(args.out, "loss.csv"), "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["step", "bytes_seen", "context", "text_bits_per_byte", "recall_bits_per_digit", "rate_scale"])
        writer.writerows(rows)
    with open(os.path.join(args.out, "loss.svg"), "w") as f:
        f.write(loss_svg(rows))

    held_out = held_out_bits(model, data.held_out, config.context, args.windows)
    print("held-out bits per byte", held_out, flush=True)
    recall = {}
    for distance in DISTANCES:
        recall[distance] = recall_accuracy(model, data.held_out, distance, args.samples)
        print("recall at", distance, recall[distance], flush=True)

    stages, bounds = [], [0] + [i for i in range(1, len(rows)) if rows[i][2] != rows[i - 1][2]] + [len(rows)]
    for a, b in zip(bounds, bounds[1:]):
        first = int(rows[a - 1][1]) if a else 0
        stages.append(f"{rows[a][2]} for {(int(rows[b - 1][1]) - first) / 1e6:.1f} million bytes")
    card = CARD.format(
        parameters=sum(t.numel() for t in weights.values()), theta=config.rope_theta, layers=config.layers, dim=config.dim,
        heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim, hidden=config.hidden, context=config.context,
        weight_bytes=os.path.getsize(weight_path), train_bytes=len(data.train), held_out_bytes=len(data.held_out), windows=args.windows,
        held_out=held_out, perplexity=2 ** held_out, samples=args.samples, error=0.5 / math.sqrt(args.samples), seen=saved["seen"] / 1e6,
        stages=", ".join(stages), words=config.context // 5, prompt_bytes=PROMPT_BYTES, golden_rows=GOLDEN_ROWS,
        recall_rows="\n".join(f"| recall at {d} bytes | {recall[d]:.3f} |" for d in DISTANCES))
    with open(os.path.join(args.out, "README.md"), "w") as f:
        f.write(card)


if __name__ == "__main__":
    main()
