#!/usr/bin/env python3
"""Times the flash kernel against PyTorch's cuDNN and flash attention on one GPU, in turn and in one run.

    python3 peers.py --attn ./attn [--only SUBSTRING] [--rounds N] [--json FILE]

For each shape, ours and the peers are timed one after the other, `rounds` times over; the table gives medians of all
timings, in TFLOP/s, and the ratio of medians to the faster peer. Causal products are counted half. The first lines
give the two ceilings of this GPU as PyTorch reaches them: a large matrix product and a large copy.
"""

import argparse
import json
import statistics
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# (batch, seq, heads, kv_heads, head_dim, causal): 16k tokens of 2048 features, as FlashAttention-3 reports.
SHAPES = [
    (batch, 16384 // batch, 2048 // head_dim, 2048 // head_dim, head_dim, causal)
    for head_dim in (64, 128, 256)
    for batch in (16, 2, 1)
    for causal in (False, True)
] + [(1, 8192, 32, 8, 128, causal) for causal in (False, True)]
# The bars, at seq 8192: our speed over the faster peer's.
BARS = {64: 1.0, 128: 1.0, 256: 1.1}
PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def milliseconds(work, runs=10):
    """Times of single runs, by events on the device."""
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def ceilings():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / statistics.median(milliseconds(lambda: a @ b)) / 1e9
    source = torch.randint(0, 256, (1 << 31,), device="cuda", dtype=torch.uint8)
    to = torch.empty_like(source)
    copy = 2 * source.numel() / statistics.median(milliseconds(lambda: to.copy_(source))) / 1e6
    return {"gemm_tflops": product, "copy_gb_per_s": copy}


def ours(program, shape, form, runs=10):
    batch, seq, heads, kv_heads, head_dim, causal = shape
    command = [
        program, "bench", "--device", "cuda", "--dtype", "bf16", "--backend", "flash", "--json",
        "--shape", f"{batch},{seq},{heads},{head_dim}", "--kv-heads", str(kv_heads),
        "--mask", "causal" if causal else "none", "--runs", str(runs), "--form", form,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[0])["median_ms"]


def peer(backend, shape):
    batch, seq, heads, kv_heads, head_dim, causal = shape
    q = torch.randn(batch, heads, seq, head_dim, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, kv_heads, seq, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    attention = torch.nn.functional.scaled_dot_product_attention
    try:
        with sdpa_kernel(backend):
            times = milliseconds(lambda: attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads))
    except RuntimeError:
        return None
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--attn", default="./attn")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()

    found = ceilings()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(f"ceilings: matrix product {found['gemm_tflops']:.0f} TFLOP/s, copy {found['copy_gb_per_s']:.0f} GB/s")
    print(f"{'shape b,s,h/kv,d':28}{'overlapped':>11}{'simple':>8}{'cudnn':>8}{'flash':>8}{'ratio':>8}  bar")
    rows, missed = [], []
    for shape in SHAPES:
        batch, seq, heads, kv_heads, head_dim, causal = shape
        name = f"{batch},{seq},{heads}/{kv_heads},{head_dim}{' causal' if causal else ''}"
        if arguments.only not in name:
            continue
        times = {}
        for _ in range(arguments.rounds):
            for form in ("overlapped", "simple"):
                times.setdefault(form, []).append(ours(arguments.attn, shape, form))
            for label, backend in PEERS.items():
                times.setdefault(label, []).append(peer(backend, shape))
        flops = 4 * batch * heads * seq * seq * head_dim / (2 if causal else 1)
        medians = {label: statistics.median(t) for label, t in times.items() if None not in t}
        speed = {label: flops / ms / 1e9 for label, ms in medians.items()}
        best = max((speed[label] for label in PEERS if label in speed), default=None)
        # The default is what users get; the table says what it is.
        ratio = speed["overlapped"] / best if best else None
        bar = BARS[head_dim] if seq == 8192 else None
        if bar and ratio and ratio < bar:
            missed.append(name)
        cells = "".join(
            f"{speed[label]:>{width}.0f}" if label in speed else f"{'-':>{width}}"
            for label, width in (("overlapped", 11), ("simple", 8), ("cudnn", 8), ("flash", 8))
        )
        said = f"{ratio:8.2f}" if ratio else f"{'-':>8}"
        verdict = "" if not bar else f"  {bar} {'ok' if name not in missed else 'MISSED'}"
        print(f"{name:28}{cells}{said}{verdict}", flush=True)
        rows.append({"shape": name, "milliseconds": times, "tflops": speed, "ratio": ratio})
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"ceilings": found, "rows": rows}, file, indent=1)
    if missed:
        print(f"bars missed: {'; '.join(missed)}")


main()
