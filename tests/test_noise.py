"""routing/noise and routing/alive: measured on completions scored again, counted as a slow loop counts them."""

from dataclasses import replace

import pytest
import reference
import torch
from test_step import gradients, make_rollouts, make_samples, make_state, tokens_of
from test_train import SAMPLES, make_config, metrics, models  # noqa: F401  (a fixture)

from dopd_vlm.train import train
from dopd_vlm.training.noise import NOISE_QUANTILE, ROWS_AGAIN, noise_metrics, routing_noise
from dopd_vlm.training.step import Clock, distil_step
from dopd_vlm.training.targets import score_targets


@pytest.fixture(scope="module")
def scored():
    """A float64 state and its scored micro-batch of six completions."""
    state = make_state()
    return state, score_targets(state, make_samples(state), make_rollouts())


def moved(micro, changes):
    """The micro-batch with the teacher's scores moved, by [B, T]."""
    teacher = micro.teacher
    scores = replace(teacher.scores, logp=teacher.scores.logp + changes)
    return replace(micro, targets={**micro.targets, "teacher": replace(teacher, scores=scores)})


def test_in_float64_nothing_but_rounding_moves_a_gap(scored):
    state, micro_batches = scored
    noise = routing_noise(state, micro_batches)
    # The norms of the layers compute in float32, whatever the weights are.
    assert noise is not None and noise < 1e-6
    assert gradients(make_state())[0].metrics["routing/alive"] == 1.0


@pytest.mark.parametrize("size", [1, 8])
def test_the_noise_is_the_quantile_of_what_moved(scored, size):
    state, (micro,) = scored
    optim = replace(state.config.optim, micro_batch_size=1, score_batch_size=size)
    state = replace(state, config=replace(state.config, optim=optim))
    gap = micro.teacher.scores.logp - micro.self_target.scores.logp
    size_of = 0.1 * torch.rand(gap.shape, generator=torch.Generator().manual_seed(0)).double()
    # Away from zero, so that the gap changes by just as much; beyond the rows scored again by more.
    changes = size_of * gap.sign()
    changes[ROWS_AGAIN:] += 5.0
    valid = micro.batch.mask[:ROWS_AGAIN]
    times = 2 if size == 1 else 1
    expected = reference.quantile(size_of[:ROWS_AGAIN][valid].tolist() * times, NOISE_QUANTILE)
    assert routing_noise(state, [moved(micro, changes)]) == pytest.approx(expected, abs=1e-6)


def test_alive_counts_the_high_gaps_above_the_noise(scored):
    output, _ = gradients(make_state(micro=2))
    _, regime, gap, _ = tokens_of(output)
    high = sorted(float(g) for g, r in zip(gap, regime, strict=True) if int(r) >= 2)
    assert len(high) > 3
    for noise in (0.0, high[0], high[2], high[-1]):
        found = noise_metrics(scored[0], output.micro_batches, output.losses, noise)
        slow = sum(gap > noise for gap in high) / len(high)
        assert found == {"routing/noise": noise, "routing/alive": pytest.approx(slow)}


def test_models_and_views_that_coincide_route_by_nothing():
    state = make_state(same=True)
    metrics = distil_step(state, make_samples(state, context=""), make_rollouts(), Clock()).metrics
    assert (metrics["routing/noise"], metrics["routing/alive"]) == (0.0, 0.0)


def test_a_method_without_a_gap_scores_nothing_again():
    state = make_state("opd")
    micro_batches = score_targets(state, make_samples(state), make_rollouts())
    assert routing_noise(state, micro_batches) is None
    assert noise_metrics(state, micro_batches, [], None) == {}
    assert routing_noise(make_state(), []) is None


def test_a_floor_makes_smaller_gaps_low_and_leaves_a_higher_threshold():
    plain, _ = gradients(make_state())
    assert plain.thresholds is not None
    for floor in (0.5 * plain.thresholds.gap, 1.5 * plain.thresholds.gap):
        output, _ = gradients(make_state(gap_floor=floor))
        _, regime, gap, _ = tokens_of(output)
        assert torch.equal(regime >= 2, gap >= max(floor, plain.thresholds.gap))
    fixed, _ = gradients(make_state(gap_floor=0.3, gap_threshold=0.2))
    assert fixed.thresholds is not None and fixed.thresholds.gap == 0.3


def test_a_run_that_routes_by_rounding_says_so_once(models, tmp_path, capsys):  # noqa: F811
    config = make_config(models, tmp_path, steps=2)
    config = replace(config, teacher=config.student)
    alike = [replace(sample, privileged=sample.plain) for sample in SAMPLES[:3]]
    with pytest.warns(UserWarning, match="routing decides nothing"):
        run = train(config, alike).run_dir
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("0% of the high-gap tokens have a gap above the noise") == 1
    assert "method.gap_floor" in said
    assert next(line["routing/alive"] for line in metrics(run) if "loss" in line) == 0.0
