"""What `gpu.py` measures: a generator of rows {"what", "result"} for each stage."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dopd_vlm import divergences
from dopd_vlm.routed_loss import Head, Student, Target, routed_loss
from dopd_vlm.routed_loss.products import products_for
from dopd_vlm.routed_loss.rows import Logits, TorchRows
from dopd_vlm.types import Route

Row = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOT_INSTALLED = "not installed"
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


def machine() -> dict[str, str]:
    """What the numbers belong to."""
    names = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor()}
    for package in ("torch", "triton", "transformers", "trl", "liger-kernel"):
        try:
            names[package] = version(package)
        except PackageNotFoundError:
            names[package] = NOT_INSTALLED
    return names


def seconds(job: Callable[[], object], repeats: int) -> float:
    """Median of some runs after one that compiles."""
    times = []
    for repeat in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        job()
        synchronize()
        times += [time.perf_counter() - start] if repeat else []
    return statistics.median(times)


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def verdict(error: float, limit: float) -> str:
    """An error with its limit; WRONG ends the stage with status 1."""
    return f"{'ok' if error <= limit else 'WRONG'} {error:.1e} (limit {limit:.0e})"


# Kernels


def kernels(*, is_small: bool) -> Iterator[Row]:
    """Triton rows and products against float64 on the same device."""
    from dopd_vlm.routed_loss import triton_rows

    count, width, k = (8, 1003, 16) if is_small else (64, 151_936, 128)
    gen = torch.Generator(DEVICE).manual_seed(0)
    raw, other = (4 * torch.randn(count, width, generator=gen, device=DEVICE) for _ in range(2))
    ids = torch.arange(count, device=DEVICE)
    scores = triton_rows.score(Logits(raw=raw), ids, k)
    logp = raw.double().log_softmax(-1)
    yield {"what": "score: log-probs", "result": _error(scores.loss_logp, _at(logp, ids), 2e-6)}
    order = raw.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    same = torch.equal(scores.top_ids, order)
    yield {"what": f"score: top {k} ids", "result": "ok equal" if same else "WRONG ids"}
    for name in DIVERGENCES:
        route = Route(target="teacher", divergence=name)
        slow, grad = _exact(raw, other, name)
        out = torch.empty_like(raw)
        result = triton_rows.full_grad_(Logits(raw=raw), Logits(raw=other), route, out)
        yield {"what": f"{name}: value", "result": _error(result.value, slow, 2e-6)}
        error = float((out.double() - grad).norm() / grad.norm())
        yield {"what": f"{name}: gradient", "result": verdict(error, 1e-4)}
    yield from _support(raw, other, k)
    yield from _products(is_small)


def _support(raw: Tensor, other: Tensor, k: int) -> Iterator[Row]:
    from dopd_vlm.routed_loss import triton_rows
    from dopd_vlm.routed_loss.gradients import support_slopes

    route = Route(target="teacher", divergence="reverse_kl", top_k=k)
    scores = triton_rows.score(
        Logits(raw=other), torch.zeros(len(raw), dtype=torch.int64, device=DEVICE), k
    )
    results = []
    for rows in (TorchRows(len(raw), raw.shape[1], raw.double()), triton_rows.TritonRows()):
        is_torch = isinstance(rows, TorchRows)
        own = raw.double() if is_torch else raw.clone()
        out = own if is_torch else torch.empty_like(own)
        slopes = support_slopes(route)
        result = rows.support_grad_(Logits(raw=own), scores.top_ids, scores.top_logp, slopes, out)
        results.append((result.value, out.double() * result.factor[:, None]))
    (value, grad), (fast, fast_grad) = results
    yield {"what": f"top-{k} reverse KL: value", "result": _error(fast, value, 2e-6)}
    error = float((fast_grad - grad).norm() / grad.norm())
    yield {"what": f"top-{k} reverse KL: gradient", "result": verdict(error, 1e-4)}


def _products(is_small: bool) -> Iterator[Row]:
    rows, hidden, width = (16, 32, 999) if is_small else (512, 2048, 151_936)
    gen = torch.Generator(DEVICE).manual_seed(1)
    weight = torch.randn(width, hidden, generator=gen, device=DEVICE)
    states = torch.randn(rows, hidden, generator=gen, device=DEVICE)
    out = torch.empty(rows, width, device=DEVICE)
    products_for(Head(weight=weight, precision="bfloat16"), torch.float32).logits_(states, out)
    exact = states.bfloat16().double() @ weight.bfloat16().double().T
    error = float((out.double() - exact).norm() / exact.norm())
    yield {"what": "bfloat16 products: logits", "result": verdict(error, 1e-5)}


def _exact(raw: Tensor, other: Tensor, name: str) -> tuple[Tensor, Tensor]:
    leaf = raw.double().requires_grad_()
    pair = divergences.divergence(name).at(0.5)
    value = pair(leaf.log_softmax(-1), other.double().log_softmax(-1))
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), grad


def _at(logp: Tensor, ids: Tensor) -> Tensor:
    return logp.gather(-1, ids[:, None]).squeeze(-1)


def _error(ours: Tensor, exact: Tensor, limit: float) -> str:
    return verdict(float(((ours - exact).abs() / exact.abs().clamp(min=1.0)).max()), limit)


# Loss


def loss(*, is_small: bool) -> Iterator[Row]:
    """Forward and backward at one size a hidden width, against the products that it cannot avoid."""
    from dopd_vlm.scripts.benchmarks.loss_variants import VARIANTS, make_inputs

    tokens, width, sizes = (64, 1003, (32,)) if is_small else (4096, 151_936, (2048, 4096))
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    for size in sizes:
        inputs = make_inputs(tokens, width, size, dtype, torch.device(DEVICE))
        output = _dopd(inputs)
        share = float(output.metrics["count/ht"] / output.metrics["count/tokens"])
        bare = seconds(lambda inputs=inputs: _bare(inputs), 5)
        yield {"what": f"H={size}: one bfloat16 product", "result": f"{1e3 * bare:.2f} ms"}
        for name, variant in VARIANTS.items():
            label = f"H={size}: {name}"
            yield {"what": label, "result": _timed(variant, inputs, bare, share)}


def _dopd(inputs: Any) -> Any:
    student = Student(hidden=inputs.hidden, head=Head(weight=inputs.head))
    targets = {
        "teacher": Target(hidden=inputs.teacher, head=Head(weight=inputs.teacher_head)),
        "self_target": Target(hidden=inputs.privileged),
    }
    return routed_loss(student, targets, inputs.ids, inputs.mask, "dopd")


def _bare(inputs: Any) -> Tensor:
    hidden, head = inputs.hidden.detach()[0].bfloat16(), inputs.head.detach().bfloat16()
    return torch.mm(hidden, head.T)


def _timed(variant: Any, inputs: Any, bare: float, share: float) -> str:
    def job() -> None:
        inputs.hidden.grad = inputs.head.grad = None
        variant.run(inputs)

    try:
        taken = seconds(job, 5)
    except ImportError:
        return NOT_INSTALLED
    except (RuntimeError, torch.OutOfMemoryError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    limit = bare * variant.products(share)
    return f"{1e3 * taken:.1f} ms, {taken / limit:.2f} x its products"


# Whole steps


def step(*, is_small: bool) -> Iterator[Row]:
    """Seconds per phase of whole steps on random weights; TRL's trainer where it is installed."""
    if find_spec("transformers") is None:
        yield {"what": "step", "result": NOT_INSTALLED}
        return
    from dopd_vlm.scripts.checks.gpu_models import make_run
    from dopd_vlm.training.step import Clock, train_step

    state, samples = make_run(is_small=is_small, device=DEVICE)
    for name in ("first", "second", "third"):
        clock = Clock()
        train_step(state, samples, clock)
        state.step += 1
        phases = ", ".join(f"{phase} {taken:.2f} s" for phase, taken in clock.seconds.items())
        yield {"what": f"dopd, {name} step", "result": phases}
    installed = find_spec("trl") is not None
    told = "takes a tokenizer and weights: `dopd bench step`" if installed else NOT_INSTALLED
    yield {"what": "TRL's trainer", "result": told}


def decode(*, is_small: bool) -> Iterator[Row]:
    """Tokens a second of the own loop."""
    if find_spec("transformers") is None:
        yield {"what": "decode", "result": NOT_INSTALLED}
        return
    from dopd_vlm.scripts.checks.gpu_models import make_run
    from dopd_vlm.training.step import roll_out

    state, samples = make_run(is_small=is_small, device=DEVICE, has_teacher=False)
    taken = seconds(lambda: roll_out(state, samples), 2)
    tokens = sum(len(rollout.completion_ids) for rollout in roll_out(state, samples))
    yield {"what": f"own loop, {tokens} tokens", "result": f"{tokens / taken:.0f} tokens/s"}


def memory(*, is_small: bool) -> Iterator[Row]:
    """The measured peak of a step on this device and the predicted one."""
    if find_spec("transformers") is None or DEVICE == "cpu":
        yield {"what": "memory", "result": NOT_INSTALLED if DEVICE == "cuda" else "needs a GPU"}
        return
    from dopd_vlm.memory import predict, this_device
    from dopd_vlm.scripts.checks.gpu_models import make_run
    from dopd_vlm.training.step import Clock, train_step

    state, samples = make_run(is_small=is_small, device=DEVICE, teacher_layers=None)
    torch.cuda.reset_peak_memory_stats()
    train_step(state, samples, Clock())
    measured = torch.cuda.max_memory_allocated() / 2**30
    prompts = {view: [s.prompts[view] for s in samples] for view in ("plain", "privileged")}
    report = predict(state.config, state.method, prompts, device=this_device())
    predicted = report.peak / 2**30
    yield {
        "what": "peak of a step",
        "result": f"predicted {predicted:.1f} GiB, measured {measured:.1f} GiB",
    }


def fsdp(*, is_small: bool) -> Iterator[Row]:
    """The loss where the head's weight belongs to a sharded root module: equal to the plain one."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        init_method="tcp://127.0.0.1:29555",
        rank=0,
        world_size=1,
    )
    try:
        gen = torch.Generator(DEVICE).manual_seed(2)
        hidden = torch.randn(2, 8, 16, generator=gen, device=DEVICE)
        losses = []
        for is_sharded in (False, True):
            torch.manual_seed(3)
            model = torch.nn.Linear(16, 503, bias=False, device=DEVICE)
            if is_sharded:
                fully_shard(model, reshard_after_forward=False)
            model(hidden[:1, :1])  # gathers the weight
            losses.append(_plain_loss(hidden, model.weight))
        yield {
            "what": "loss of a sharded head",
            "result": verdict(abs(losses[0] - losses[1]), 1e-6),
        }
    finally:
        dist.destroy_process_group()


def _plain_loss(hidden: Tensor, weight: Tensor) -> float:
    ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    student = Student(hidden=hidden, head=Head(weight=weight))
    teacher = Target(hidden=hidden.roll(1, 0), head=Head(weight=weight))
    return float(
        routed_loss(student, {"teacher": teacher}, ids, ids == 0, "opd_full").loss.detach()
    )
