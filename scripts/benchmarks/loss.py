"""`bench.py loss`: time and peak memory of the routed loss, its peers and the bare matrix products.

    dopd bench loss                                          # 2 CPU cores, minutes
    dopd bench loss --tokens 512 --vocab 8192 --repeats 3    # seconds
    dopd bench loss --tokens 4096 --vocab 151936 --hidden 2048 --dtype bfloat16   # on a GPU

Time: after an untimed round, variants are interleaved and repeated; the table gives the median, least and
greatest. `x limit` divides by the matrix products alone that the variant cannot avoid: (5 + h) u for ours
with two targets, 4 u for one target, u = one N x H x V product and h = share of tokens in regime HT.

Memory: peak over inputs and gradients, of one run in a process of its own. On CPU it is resident memory
(VmHWM after a reset, less VmRSS before), with malloc told to return freed blocks; on a GPU it is the
allocator's peak.

JSON and plot go to --out. Variants and sizes measured there before, with the same other options on the same
kind of machine, stay, so that a long table may be measured in pieces.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from dopd_vlm.scripts.benchmarks.loss_variants import (
    PEER_CHUNK,
    VARIANTS,
    Inputs,
    make_inputs,
    run_limit,
    run_ours,
)

LIMIT = "limit"
MIB = 1 << 20
PACKAGES = {"torch": "torch", "trl": "trl", "liger-kernel": "liger_kernel"}
"""Distribution and module."""
DENSE_FLOATS = 10
"""N x V floats that autograd on dense logits of two models keeps."""


def main(argv: list[str]) -> None:
    """Parses, measures, prints and writes."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    # Compiling in this process leaves no workers behind that would disturb the next timing.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return
    report = earlier(args.out / "loss.json", machine(args))
    for tokens in args.tokens:
        for row in measure(args, tokens):
            known = report["rows"].setdefault(f"{tokens} {row['variant']}", {})
            known.update(row)
            print(format_row(known), flush=True)
    write(report, args.out)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options."""
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
    add("--only", choices=["time", "memory"], help="measure one of the two")
    add("--dense-limit-mib", type=int, default=8192, help="skip dense autograd above this need")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of loss.json and loss.png")
    add("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, tokens: int) -> list[dict]:
    """One row per variant at N tokens: what was measured, or why not."""
    rows = {name: {"variant": name, "tokens": tokens} for name in (*args.variants, LIMIT)}
    for name in args.variants:
        reason = why_not(name, args, tokens)
        if reason:
            rows[name]["skipped"] = reason
    names = [name for name in args.variants if "skipped" not in rows[name]]
    if args.only != "memory":
        for name, timing in times(args, tokens, names).items():
            rows[name].update(timing)
    if args.only != "time":
        for name in names:
            rows[name]["peak_mib"] = memory_of(args, tokens, name)
    return [row for row in rows.values() if len(row) > 2]


def why_not(name: str, args: argparse.Namespace, tokens: int) -> str | None:
    """The reason for which a variant is left out, found on a few tokens; None where it runs."""
    need = DENSE_FLOATS * tokens * args.vocab * 4 // MIB
    if name == "dense autograd" and need > args.dense_limit_mib:
        return f"needs about {need} MiB, more than --dense-limit-mib {args.dense_limit_mib}"
    try:
        VARIANTS[name].run(inputs_of(args, 2 * PEER_CHUNK))
    except (ImportError, RuntimeError) as error:  # a peer is missing or cannot be compiled here
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def times(args: argparse.Namespace, tokens: int, names: list[str]) -> dict[str, dict]:
    """Seconds of each variant and of the limit, and their ratio to the products they need."""
    inputs = inputs_of(args, tokens)
    metrics = run_ours(inputs, "dopd").metrics
    deep_share = float(metrics["count/ht"] / metrics["count/tokens"])
    products = {name: VARIANTS[name].products(deep_share) for name in names}
    products[LIMIT] = VARIANTS["ours dopd"].products(deep_share)
    jobs = {name: VARIANTS[name].run for name in names}
    jobs[LIMIT] = lambda inputs: run_limit(inputs, deep_share)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(args.repeats + 1):
        for name, job in jobs.items():
            elapsed = timed(job, inputs)
            if repeat:  # the first round compiles and fills caches
                seconds[name].append(elapsed)
    per_product = statistics.median(seconds[LIMIT]) / products[LIMIT]
    return {
        name: {
            "seconds": {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            },
            "over_limit": statistics.median(values) / (per_product * products[name]),
            "products": products[name],
        }
        for name, values in seconds.items()
    }


def inputs_of(args: argparse.Namespace, tokens: int) -> Inputs:
    """The inputs of one size."""
    dtype = getattr(torch, args.dtype)
    return make_inputs(tokens, args.vocab, args.hidden, dtype, torch.device(args.device))


def timed(job: Callable[[Inputs], object], inputs: Inputs) -> float:
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
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def memory_of(args: argparse.Namespace, tokens: int, name: str) -> float:
    """Peak MiB of one variant in a process of its own."""
    bench = str(Path(__file__).parents[1] / "bench.py")
    command = [sys.executable, bench, "loss", "--memory-of", name, "--tokens", str(tokens)]
    for key in ("vocab", "hidden", "dtype", "device", "threads"):
        command += [f"--{key}", str(getattr(args, key))]
    # Large blocks then go back to the system when freed, so that resident memory is what is in use.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_mib"]


def peak_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak over inputs and gradients, of a second run: the first loads libraries and compiles."""
    job = VARIANTS[args.memory_of].run
    inputs = inputs_of(args, args.tokens[0])
    job(inputs)
    inputs.hidden.grad = inputs.head.grad = None
    gradients = sum(x.numel() * x.itemsize for x in (inputs.hidden, inputs.head))
    if inputs.hidden.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job(inputs)
        torch.cuda.synchronize()
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
    is_cuda = args.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if is_cuda else f"{platform.machine()} CPU",
        "threads": args.threads,
        "dtype": args.dtype,
        "vocab": args.vocab,
        "hidden": args.hidden,
        "versions": {p: version(p) for p, module in PACKAGES.items() if find_spec(module)},
    }


def earlier(path: Path, here: dict) -> dict:
    """The report at path if it was measured on the same terms, else an empty one."""
    if path.exists():
        report = json.loads(path.read_text())
        if report["machine"] == here:
            return report
    return {"machine": here, "rows": {}}


def format_row(row: dict) -> str:
    """One line of the table."""
    line = f"N={row['tokens']:5d}  {row['variant']:15s}"
    if "skipped" in row:
        return f"{line} skipped: {row['skipped']}"
    if "seconds" in row:
        seconds = row["seconds"]
        line += f" {seconds['median']:7.3f} s ({seconds['min']:.3f} - {seconds['max']:.3f})"
        line += f" {row['over_limit']:6.2f} x its limit of {row['products']:.2f} u"
    return line + (f" {row['peak_mib']:7.0f} MiB" if "peak_mib" in row else "")


def write(report: dict, folder: Path) -> None:
    """loss.json and loss.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loss.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(list(report["rows"].values()), folder / "loss.png")
    print(f"{json.dumps(report['machine'])}\nwritten: {folder}/loss.json, {folder}/loss.png")


def plot(rows: list[dict], path: Path) -> None:
    """Time and memory against N, one line per variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for number, name in enumerate([*VARIANTS, LIMIT]):
        color = "black" if name == LIMIT else f"C{number}"
        style = {"linestyle": "--" if name == LIMIT else "-", "color": color, "marker": "o"}
        mine = sorted((r for r in rows if r["variant"] == name), key=lambda row: row["tokens"])
        timed_rows = [r for r in mine if "seconds" in r]
        medians = [r["seconds"]["median"] for r in timed_rows]
        if medians:
            axes[0].plot([r["tokens"] for r in timed_rows], medians, label=name, **style)
        measured = [r for r in mine if "peak_mib" in r]
        if measured:
            peaks = [r["peak_mib"] for r in measured]
            axes[1].plot([r["tokens"] for r in measured], peaks, label=name, **style)
    labels = ("seconds", "peak MiB over inputs and gradients")
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel="tokens", ylabel=label, xscale="log", yscale="log")
        axis.set_xticks(sorted({row["tokens"] for row in rows}), minor=False)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(visible=True, which="both", alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
