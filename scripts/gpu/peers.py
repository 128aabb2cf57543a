#!/usr/bin/env python3
"""Times the flash kernel against PyTorch's cuDNN and flash attention on one GPU, in turn and in one run.

    python3 peers.py --attn ./attn [--only SUBSTRING] [--rounds N] [--json FILE]

For each shape, ours and the peers are timed one after the other, `rounds` times over, at a sequence of 8192 the kernels in 8
bits too; the table gives medians of all timings, in TFLOP/s, and the ratio of what users get (`auto`) to the faster peer. Causal products are counted half. The
first lines give the ceilings of this GPU as PyTorch reaches them, a large matrix product and a large copy, and how near
the copy kernel comes to a plain copy. Exit code 1 if a bar is missed or could not be judged.
"""

import argparse
import json
import statistics
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# (batch, seq, heads, kv_heads, head_dim, causal). Those with a bar first: 16k tokens of 2048 features, as
# FlashAttention-3 reports.
SHAPES = [
    (batch, 16384 // batch, 2048 // head_dim, 2048 // head_dim, head_dim, causal)
    for batch in (2, 1, 16)
    for head_dim in (64, 128, 256)
    for causal in (False, True)
] + [(1, 8192, 32, 8, 128, causal) for causal in (False, True)]
# The bars, at seq 8192: our speed over the faster peer's. And the copy kernel's over a plain copy's.
BARS = {64: 1.0, 128: 1.0, 256: 1.1}
# At the same shapes, the speed of the kernel for Ampere and later over that of PyTorch's flash attention, which is one too.
SM80_BAR = 0.95
COPY_BAR = 0.9
PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
# `auto` each round; the others in the first alone, to see whether the table of shapes chooses well, and what 8 bits save.
FORMS = ("auto", "simple", "overlapped", "sm80", "sage", "sage sm80")
SAGE_HEAD_DIMS = (64, 128)


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


def bench(program, *options):
    """The rows of a run of `attn bench`."""
    command = [program, "bench", "--device", "cuda", "--dtype", "bf16", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def form_options(form):
    """What `attn bench` calls a column of the table."""
    if not form.startswith("sage"):
        return ["--form", form]
    return ["--backend", "sage", "--form", form.removeprefix("sage").strip() or "auto"]


def ours(program, shape, form, gemm_tflops):
    batch, seq, heads, kv_heads, head_dim, causal = shape
    rows = bench(
        program, "--shape", f"{batch},{seq},{heads},{head_dim}", "--kv-heads", str(kv_heads),
        "--mask", "causal" if causal else "none", "--runs", "10", *form_options(form),
        "--gemm-tflops", f"{gemm_tflops:.1f}",
    )  # fmt: skip
    return rows[0]["median_ms"]


def copies(program):
    """How near the reshards of a large tensor come to a plain copy of as many bytes."""
    rows = bench(program, "--shape", "1,32768,24,128", "--strategy", "none", "--runs", "10")
    return {row["name"]: row["of_floor"] for row in rows if row["name"] in ("reshard", "back")}


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


def measure(arguments, shape, gemm_tflops):
    """The times of every form and peer that there is."""
    times = {}
    for turn in range(arguments.rounds):
        for form in FORMS if turn == 0 else FORMS[:1]:
            if form.startswith("sage") and (shape[1] != 8192 or shape[4] not in SAGE_HEAD_DIMS):
                continue
            times.setdefault(form, []).append(ours(arguments.attn, shape, form, gemm_tflops))
        for label, backend in PEERS.items():
            times.setdefault(label, []).append(peer(backend, shape))
    return {label: values for label, values in times.items() if None not in values}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--attn", default="./attn")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()

    found, rows, missed = ceilings(), [], []
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(f"ceilings: matrix product {found['gemm_tflops']:.0f} TFLOP/s, copy {found['copy_gb_per_s']:.0f} GB/s")
    for name, part in copies(arguments.attn).items():
        verdict = "ok" if part is not None and part >= COPY_BAR else "MISSED"
        if verdict != "ok":
            missed.append(name)
        said = "unknown" if part is None else f"{part:.3f}"
        print(f"copy kernel, {name}: {said} of a plain copy, bar {COPY_BAR} {verdict}")
    columns = [*FORMS, *PEERS]
    print(f"{'b,s,h/kv,d; TFLOP/s':26}{''.join(f'{column:>11}' for column in columns)}{'ratio':>8}  bar")
    for shape in SHAPES:
        batch, seq, heads, kv_heads, head_dim, causal = shape
        name = f"{batch},{seq},{heads}/{kv_heads},{head_dim}{' causal' if causal else ''}"
        if arguments.only not in name:
            continue
        times = measure(arguments, shape, found["gemm_tflops"])
        flops = 4 * batch * heads * seq * seq * head_dim / (2 if causal else 1)
        speed = {label: flops / statistics.median(values) / 1e9 for label, values in times.items()}
        best = max((speed[label] for label in PEERS if label in speed), default=None)
        ratio = speed["auto"] / best if best else None
        bar = BARS[head_dim] if (seq, kv_heads) == (8192, heads) else None
        verdict = ""
        if bar:
            verdict = "no peer" if ratio is None else "ok" if ratio >= bar else "MISSED"
            if verdict != "ok":
                missed.append(name)
        if bar:
            if "flash" not in speed or speed["sm80"] < SM80_BAR * speed["flash"]:
                missed.append(f"{name} on sm80")
                verdict += " sm80 MISSED"
        cells = "".join(f"{speed[label]:>11.0f}" if label in speed else f"{'-':>11}" for label in columns)
        print(f"{name:26}{cells}{'-' if ratio is None else f'{ratio:.2f}':>8}  {bar or ''} {verdict}", flush=True)
        rows.append({"shape": name, "milliseconds": times, "tflops": speed, "ratio": ratio, "bar": bar})
        # After each shape: what was measured stays, however this ends.
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump({"ceilings": found, "rows": rows}, file, indent=1)
    if missed:
        sys.exit(f"bars missed: {'; '.join(missed)}")


main()
