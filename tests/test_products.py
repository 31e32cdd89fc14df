"""Products of heads: each by its own precision, bfloat16 operands exactly, no float32 product on a GPU's path."""

from dataclasses import replace

import pytest
import torch
from routed_case import Case, relative, small_k
from test_step import make_rollouts, make_samples, make_state
from torch.utils._python_dispatch import TorchDispatchMode

from dopd_vlm.methods import METHODS
from dopd_vlm.routed_loss import Head, Student, Target, routed_loss
from dopd_vlm.routed_loss.products import Bfloat16Products, ExactProducts, products_for
from dopd_vlm.routed_loss.softmax import LEAST_CUDA_ROWS, cuda_chunk_rows
from dopd_vlm.training.step import Clock, distil_step, head_grad

PRODUCTS = (
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.addmm_,
    torch.ops.mkldnn._linear_pointwise,
)


class Operands(TorchDispatchMode):
    """Whether every product's operands are bfloat16 numbers."""

    def __init__(self):
        super().__init__()
        self.rounded = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS:
            operands = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            self.rounded.append(all(torch.equal(x, x.bfloat16().to(x.dtype)) for x in operands))
        return func(*args, **(kwargs or {}))


def make(precision="bfloat16", operand=None):
    gen = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(40, 6, generator=gen), torch.randn(5, 6, generator=gen)
    grad = torch.randn(5, 40, generator=gen)
    return Head(weight=weight, precision=precision, operand=operand), hidden, grad


def test_bfloat16_products_are_float32_products_of_rounded_operands():
    head, hidden, grad = make()
    products, out, into = products_for(head, torch.float32), torch.empty(5, 40), torch.ones(40, 6)
    assert isinstance(products, Bfloat16Products)
    rounded = [x.bfloat16().double() for x in (head.weight, hidden, grad)]
    products.logits_(hidden, out)
    torch.testing.assert_close(out.double(), rounded[1] @ rounded[0].T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        products.hidden_grad(grad).double(), rounded[2] @ rounded[0], rtol=1e-6, atol=1e-6
    )
    products.add_head_grad_(into, grad, hidden)
    torch.testing.assert_close(into.double(), 1 + rounded[2].T @ rounded[1], rtol=1e-6, atol=1e-6)


def test_a_given_copy_is_used_as_it_is():
    head, hidden, _ = make(operand=torch.zeros(40, 6, dtype=torch.bfloat16))
    out = torch.ones(5, 40)
    products_for(head, torch.float32).logits_(hidden, out)
    assert (out == 0).all()


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32"])
def test_other_precisions_keep_float32_operands(precision):
    head, hidden, _ = make(precision)
    products = products_for(head, torch.float32)
    assert isinstance(products, ExactProducts)
    with Operands() as operands:
        products.logits_(hidden, torch.empty(5, 40))
    assert not any(operands.rounded)
    assert isinstance(
        products_for(replace(head, precision="bfloat16"), torch.float64), ExactProducts
    )


@pytest.mark.parametrize("name", ["dopd", "opd_full", "opd"])
def test_every_product_of_the_loss_has_bfloat16_operands(name):
    case = Case(3, dtype=torch.float32)
    hidden, weight = case.leaves()
    student = Student(hidden=hidden, head=Head(weight=weight, precision="bfloat16"))
    targets = {
        "teacher": Target(
            hidden=case.teacher, head=Head(weight=case.teacher_head, precision="bfloat16")
        ),
        "self_target": Target(hidden=case.privileged),
    }
    with Operands() as operands:
        output = routed_loss(student, targets, case.ids, case.mask, small_k(METHODS[name]))
        output.loss.backward()
    assert operands.rounded and all(operands.rounded)
    exact, *grads = Case(3, dtype=torch.float32).grads(small_k(METHODS[name]))
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    for ours, theirs in zip((hidden.grad, weight.grad), grads, strict=True):
        assert relative(ours, theirs) < 0.1


def test_heads_keep_their_own_precision():
    """The teacher's float32 products are the same whatever the student's are."""
    case = Case(4, dtype=torch.float32)
    logp = []
    for precision in ("float32", "bfloat16"):
        student = Student(hidden=case.hidden, head=Head(weight=case.head, precision=precision))
        teacher = Target(
            hidden=case.teacher, head=Head(weight=case.teacher_head, precision="float32")
        )
        with Operands() as operands:
            routed_loss(student, {"teacher": teacher}, case.ids, case.mask, "opd_full")
        logp.append(operands.rounded)
    assert not any(logp[0]) and any(logp[1]) and not all(logp[1])


def test_a_chunk_on_a_gpu_has_a_floor_and_a_ceiling():
    row = 4 * 151_936
    assert cuda_chunk_rows(0, row) == cuda_chunk_rows(3 << 30, row) == LEAST_CUDA_ROWS
    assert (
        2048 <= cuda_chunk_rows(60 << 30, row) <= 4608 and cuda_chunk_rows(200 << 30, row) <= 4608
    )


def float32_state(precision):
    """A training state whose models are float32; test_step's are float64."""
    state = make_state("dopd")
    for policy in (state.student, state.teacher):
        policy.model.float()
    method = replace(state.config.method, head_precision=precision)
    state.config = replace(state.config, method=method)
    return state


def test_a_step_makes_one_copy_of_each_head():
    state = float32_state("bfloat16")
    first, again = state.head(state.student), state.head(state.student)
    assert first.operand is again.operand and first.operand.dtype == torch.bfloat16
    assert state.head(state.teacher).operand is not first.operand
    with torch.no_grad():
        state.student.head.weight.add_(1.0)
    state.step += 1
    fresh = state.head(state.student).operand
    assert torch.equal(fresh, state.student.head.weight.detach().bfloat16())


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_cpu_run_keeps_its_heads_as_they_are(precision):
    head = (state := float32_state(precision)).head(state.student)
    assert head.precision == precision and head.operand is None


def test_the_recipe_s_precision_reaches_every_product_of_the_loss():
    state = float32_state("bfloat16")
    exact = distil_step(float32_state("float32"), *batch(state), Clock())
    rounded = distil_step(state, *batch(state), Clock())
    assert rounded.metrics["loss"] != exact.metrics["loss"]
    assert rounded.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.1)


def batch(state):
    return make_samples(state), make_rollouts()


@pytest.mark.parametrize("name", ["dopd", "opd_full", "opd"])
def test_the_head_s_gradient_is_added_to_a_given_tensor(name):
    """Over micro-batches, in float64 equal to autograd; the weight itself gets none, and no other [V, H] is made."""
    method, made = small_k(METHODS[name]), []
    kept, total = None, 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.new_zeros, torch.ops.aten.zeros):
                made.append(out.shape)
            return out

    for seed in (3, 4):
        case = Case(seed)
        hidden, weight = case.leaves()
        kept = torch.ones_like(weight) if kept is None else kept
        student = Student(hidden=hidden, head=Head(weight=weight), head_grad=kept)
        targets = {
            "teacher": Target(hidden=case.teacher, head=Head(weight=case.teacher_head)),
            "self_target": Target(hidden=case.privileged),
        }
        with Sizes():
            routed_loss(student, targets, case.ids, case.mask, method).loss.backward()
        _, by_autograd, head = case.grads(method)
        total = total + head
        assert weight.grad is None and weight.shape not in made
        torch.testing.assert_close(hidden.grad, by_autograd, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kept, 1 + total, rtol=1e-12, atol=1e-12)


def test_what_was_added_is_not_scaled_and_has_the_head_s_shape():
    case = Case(3)
    hidden, weight = case.leaves()
    teacher = {"teacher": Target(hidden=case.teacher, head=Head(weight=case.teacher_head))}
    student = Student(hidden=hidden, head=Head(weight=weight), head_grad=torch.zeros_like(weight))
    output = routed_loss(student, teacher, case.ids, case.mask, "opd_full")
    with pytest.raises(RuntimeError, match="as it is"):
        (2 * output.loss).backward()
    narrow = replace(student, head_grad=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="head_grad is"):
        routed_loss(narrow, teacher, case.ids, case.mask, "opd_full")


def test_the_trainer_s_head_gradient_lies_in_the_weight():
    weight = torch.nn.Parameter(torch.ones(4, 2))
    hidden = torch.zeros(1, 2)
    given = head_grad(hidden, weight)
    assert given is weight.grad and head_grad(hidden, weight) is given
    with torch.no_grad():
        assert head_grad(hidden, weight) is None
    assert head_grad(hidden, torch.nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))) is None
    assert head_grad(hidden.double(), weight) is None and head_grad(hidden, weight.detach()) is None
