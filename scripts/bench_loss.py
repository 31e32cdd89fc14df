"""`bench.py loss`: time and peak memory of the routed loss, its peers and the bare products.

    python scripts/bench.py loss                        # 2 CPU cores, minutes; --help for sizes
    python scripts/bench.py loss --tokens 512 --vocab 8192 --repeats 3   # seconds

Variants are interleaved and repeated; the table gives the median, least and greatest time. Peak
memory is measured in one process per variant and size, over inputs and gradients.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from loss_variants import VARIANTS, Inputs, make_inputs, run_limit, run_ours

LIMIT = "limit"
MIB = 1 << 20


def main(argv: list[str]) -> None:
    """Parses and measures."""
    parser = argparse.ArgumentParser(
        prog="bench.py loss",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="N")
    add("--vocab", type=int, default=65536, help="V")
    add("--hidden", type=int, default=256, help="H")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--repeats", type=int, default=5, help="timings of each variant")
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    add("--dense-limit-mib", type=int, default=8192, help="largest 10 N V floats")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of JSON and plot")
    add("--no-memory", action="store_true", help="times only")
    add("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    bench_loss(args)


def bench_loss(args: argparse.Namespace) -> None:
    """Times and memory of all variants and sizes: printed, and written as JSON and PNG."""
    if args.memory_of:
        print(json.dumps(measure_memory(args)))
        return
    results = []
    for tokens in args.tokens:
        for row in loss_rows(args, tokens):
            print(format_row(row), flush=True)
            results.append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(args), "rows": results}
    (args.out / "loss.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(results, args.out / "loss.png")
    print(f"{json.dumps(report['machine'])}\nwritten: {args.out}/loss.json, {args.out}/loss.png")


def loss_rows(args: argparse.Namespace, tokens: int) -> list[dict]:
    """One row per variant at N tokens."""
    inputs = inputs_of(args, tokens)
    names = [name for name in args.variants if fits(name, args, tokens)]
    share = deep_share(inputs)
    jobs = {name: lambda inputs, name=name: VARIANTS[name](inputs) for name in names}
    jobs[LIMIT] = lambda inputs: run_limit(inputs, share)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(args.repeats + 1):
        for name, job in jobs.items():
            seconds = timed(job, inputs)
            if repeat:
                times[name].append(seconds)
    limit = statistics.median(times[LIMIT])
    return [
        {
            "variant": name,
            "tokens": tokens,
            "seconds": {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            },
            "over_limit": statistics.median(values) / limit,
            "peak_mib": None if args.no_memory or name == LIMIT else memory_of(args, tokens, name),
            "deep_share": share,
        }
        for name, values in times.items()
    ]


def inputs_of(args: argparse.Namespace, tokens: int) -> Inputs:
    """The inputs of one size."""
    dtype = getattr(torch, args.dtype)
    return make_inputs(tokens, args.vocab, args.hidden, dtype, torch.device(args.device))


def fits(name: str, args: argparse.Namespace, tokens: int) -> bool:
    """Whether dense autograd, which keeps about ten N x V floats, stays under the limit."""
    return name != "dense autograd" or 40 * tokens * args.vocab <= args.dense_limit_mib * MIB


def deep_share(inputs: Inputs) -> float:
    """h, the share of tokens whose regime needs the teacher's full vocabulary."""
    metrics = run_ours(inputs, "dopd").metrics
    return float(metrics["count/ht"] / metrics["count/tokens"])


def timed(job, inputs: Inputs) -> float:
    """Seconds of one forward and backward; CUDA events on a GPU."""
    inputs.hidden.grad = inputs.head.grad = None
    if inputs.hidden.device.type != "cuda":
        start = time.perf_counter()
        job(inputs)
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    job(inputs)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def memory_of(args: argparse.Namespace, tokens: int, name: str) -> float:
    """Peak MiB of one variant in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("bench.py")),
        "loss",
        "--memory-of",
        name,
        "--tokens",
        str(tokens),
    ]
    for key in ("vocab", "hidden", "dtype", "device", "threads"):
        command += [f"--{key}", str(getattr(args, key))]
    # Large blocks then go back to the system when freed, so that resident memory is what is in use.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_mib"]


def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak over inputs and gradients, after a small warm-up that loads the libraries."""
    job = VARIANTS[args.memory_of]
    job(make_inputs(8, 64, 8, getattr(torch, args.dtype), torch.device(args.device)))
    inputs = inputs_of(args, args.tokens[0])
    gradients = sum(x.numel() * x.itemsize for x in (inputs.hidden, inputs.head))
    if args.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job(inputs)
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        job(inputs)
        peak = resident("VmHWM")
    return {"peak_mib": (peak - before - gradients) / MIB}


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def machine(args: argparse.Namespace) -> dict:
    """What the figures depend on."""
    is_cuda = args.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "threads": args.threads,
        "load": os.getloadavg()[0],
        "dtype": args.dtype,
        "vocab": args.vocab,
        "hidden": args.hidden,
        "repeats": args.repeats,
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": {name: version(name) for name in ("torch", "trl", "liger-kernel")},
    }


def format_row(row: dict) -> str:
    """One line of the table."""
    seconds, peak = row["seconds"], row["peak_mib"]
    memory = "" if peak is None else f"{peak:8.0f} MiB"
    return (
        f"N={row['tokens']:5d}  {row['variant']:15s} {seconds['median']:7.3f} s "
        f"({seconds['min']:.3f} - {seconds['max']:.3f})  {row['over_limit']:5.2f} x limit {memory}"
    )


def plot(rows: list[dict], path: Path) -> None:
    """Time and memory against N, one line per variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        style = {"linestyle": "--", "color": "black"} if name == LIMIT else {"marker": "o"}
        tokens = [row["tokens"] for row in mine]
        left.plot(tokens, [row["seconds"]["median"] for row in mine], label=name, **style)
        if mine[0]["peak_mib"] is not None:
            right.plot(tokens, [row["peak_mib"] for row in mine], label=name, **style)
    left.set(xlabel="tokens", ylabel="seconds", yscale="log")
    right.set(xlabel="tokens", ylabel="peak MiB over inputs and gradients", yscale="log")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
