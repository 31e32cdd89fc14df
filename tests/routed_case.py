"""Random inputs of the routed loss, and the same loss by dense float64 autograd."""

from dataclasses import replace

import pytest
import reference
import torch

from dopd_vlm.methods import METHODS, Method
from dopd_vlm.routed_loss import Student, Target, routed_loss
from dopd_vlm.routed_loss.head import as_head
from dopd_vlm.types import Regime, Route

B, T, V, H, H_TEACHER, WIDER = 3, 7, 41, 5, 6, 4


class Case:
    """Random hidden states and heads; the teacher's head is padded by `wider` rows."""

    def __init__(
        self, seed=0, dtype=torch.float64, rate=0.8, shape=(B, T), vocab=V, hidden=H, wider=WIDER
    ):
        gen = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(*size, generator=gen, dtype=torch.float64).to(dtype)

        self.vocab = vocab
        self.hidden, self.privileged = normal(*shape, hidden), normal(*shape, hidden)
        self.teacher = normal(*shape, hidden + 1)
        self.head, self.teacher_head = normal(vocab, hidden), normal(vocab + wider, hidden + 1)
        self.ids = torch.randint(0, vocab, shape, generator=gen)
        self.mask = torch.rand(*shape, generator=gen) < rate
        self.mask[:, 0] = True
        self.bias, self.teacher_bias = None, None

    def leaves(self):
        return self.hidden.clone().requires_grad_(), self.head.clone().requires_grad_()

    def run(
        self,
        method,
        hidden=None,
        head=None,
        rows=slice(None),
        scores=None,
        self_head=None,
        **options,
    ):
        """The routed loss; `scores`: results of pass 1 by target; `self_head`: a self-target's own."""
        scores = scores or {}
        student = Student(
            hidden=self.hidden[rows] if hidden is None else hidden,
            head=as_head(self.head if head is None else head, self.bias),
        )
        targets = {
            "self_target": Target(
                hidden=self.privileged[rows],
                head=None if self_head is None else as_head(self_head),
                scores=scores.get("self_target"),
            ),
            "teacher": Target(
                hidden=self.teacher[rows],
                head=as_head(self.teacher_head, self.teacher_bias),
                scores=scores.get("teacher"),
            ),
        }
        return routed_loss(student, targets, self.ids[rows], self.mask[rows], method, **options)

    def grads(self, method, **options):
        hidden, head = self.leaves()
        output = self.run(method, hidden, head, **options)
        output.loss.backward()
        return output, hidden.grad, head.grad

    def dense(self, method, temperature=1.0, limits=None, count=None, dtype=torch.float64):
        hidden, head = (x.to(dtype).clone().requires_grad_() for x in (self.hidden, self.head))
        student = reference.dense_probs(hidden, head, temperature=temperature)

        def probs(at):
            return {
                "teacher": reference.dense_probs(
                    self.teacher.to(dtype),
                    self.teacher_head.to(dtype),
                    width=self.vocab,
                    temperature=at,
                ),
                "self_target": reference.dense_probs(
                    self.privileged.to(dtype), self.head.to(dtype), temperature=at
                ),
            }

        loss, values, regime = reference.dense_routed_loss(
            student, probs(temperature), probs(1.0), self.ids, self.mask, method, limits, count
        )
        loss.backward()
        return loss.detach(), values, regime, hidden.grad, head.grad


def relative(a, b):
    """||a - b|| / ||b||"""
    return float((a.double() - b.double()).norm() / b.double().norm())


def small_k(table, k=5):
    routes = {
        r: replace(x, top_k=min(x.top_k, k) if x.top_k else None) for r, x in table.routes.items()
    }
    return replace(table, routes=routes)


def of_two_targets(method):
    """Whether the loss needs nothing but the two targets of a Case."""
    own = {p for p, _ in method.scored_pairs} <= {"teacher", "self_target"}
    return (
        own
        and not method.targets
        and method.scored_pairs
        and (method.by_gap or method.router == "uniform")
    )


DENSE_METHODS = sorted(name for name, method in METHODS.items() if of_two_targets(method))


def one_route(**fields):
    return Method(name="x", router="uniform", routes=dict.fromkeys(Regime, Route(**fields)))


def assert_equals_dense(case, method, tolerance=1e-9, temperature=1.0, **options):
    output, d_hidden, d_head = case.grads(method, temperature=temperature, **options)
    loss, values, regime, slow_hidden, slow_head = case.dense(method, temperature)
    assert relative(output.per_token, values) < tolerance
    assert output.loss.item() == pytest.approx(loss.item(), rel=10 * tolerance, abs=1e-12)
    assert relative(d_hidden, slow_hidden) < tolerance
    assert relative(d_head, slow_head) < tolerance
    if method.by_gap:
        assert torch.equal(output.regime, regime)
