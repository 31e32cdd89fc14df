"""Token maps: the numbers are the training step's own, any method has them, and the page shows them."""

import json
from dataclasses import replace

import pytest
import test_step
import tiny
import torch
from browser import open_page

from dopd_vlm.methods import method
from dopd_vlm.models.encoder import collate
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.report.method_text import method_text
from dopd_vlm.report.token_page import token_map_html, token_map_page
from dopd_vlm.tracking.token_maps import probe_record, token_map_text, token_maps
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.step import Clock, distil_step
from dopd_vlm.types import Rollout, View

METHOD = method_text(method("dopd"))

EVIL = "</script><script>throw new Error('row')</script><img src=x onerror=alert(1)>"


def maps_of(method="dopd", kind="vl", **fields):
    state = test_step.make_state(method, kind=kind)
    if not state.method.needs_teacher:
        state.teacher = None
    samples = test_step.make_samples(state, kind=kind)
    return state, samples, token_maps(state, samples, **fields)


def rollouts_of(state, maps):
    to_ids = state.student.tokenizer.convert_tokens_to_ids
    return [
        Rollout(
            uid=record["uid"], completion_ids=torch.tensor(to_ids(record["tokens"])),
            sampler_logp=torch.zeros(len(record["tokens"])), finish_reason=record["finish_reason"],
        )
        for record in maps
    ]  # fmt: skip


def softmax_of(state, policy, view, sample, rollout):
    """[T, V] by the plain route: one sequence, the whole head."""
    batch = collate([sample.prompts[view]], [rollout.completion_ids], pad_id=policy.pad_id)
    logits = policy.head(completion_hidden(policy, batch))[0, :, : state.vocab_size]
    return logits.detach().softmax(-1)


@pytest.mark.parametrize("method", ["dopd", "opd", "opsd"])
def test_regimes_and_losses_are_those_of_the_training_step(method):
    state, samples, maps = maps_of(method)
    output = distil_step(state, samples, rollouts_of(state, maps), Clock())
    by_uid = {record["uid"]: record for record in maps}
    for micro, loss in zip(output.micro_batches, output.losses, strict=True):
        for row, rollout in enumerate(micro.rollouts):
            record, length = by_uid[rollout.uid], len(rollout.completion_ids)
            expected = loss.per_token[row, :length].tolist()
            assert (
                record["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-9) and max(expected) > 0
            )
            routed = loss.regime[row, :length].tolist() if method == "dopd" else None
            assert record["regime"] == routed
    if method == "dopd":
        assert maps[0]["threshold"]["gap"] == pytest.approx(output.thresholds.gap, rel=1e-12)
        assert maps[0]["threshold"]["of"] == "probes"
    else:
        assert maps[0]["threshold"] is None


def test_the_three_distributions_are_softmaxes_of_their_models_in_their_views():
    state, samples, maps = maps_of()
    sides = {
        "student": (state.student, "plain", "q_plain"),
        "self_target": (state.student, "privileged", "q_self"),
        "teacher": (state.teacher, "privileged", "q_teacher"),
    }
    for sample, record, rollout in zip(samples, maps, rollouts_of(state, maps), strict=True):
        sampled = {}
        for name, (policy, view, column) in sides.items():
            prob = softmax_of(state, policy, view, sample, rollout)
            sampled[name] = prob.gather(-1, rollout.completion_ids[:, None]).squeeze(-1)
            assert record[column] == pytest.approx(sampled[name].tolist(), rel=1e-4, abs=1e-9)
            best = prob.topk(5)
            shown = [[share for _, share in row] for row in record["top"][name]]
            assert [p for row in shown for p in row] == pytest.approx(
                best.values.flatten().tolist(), abs=6e-6
            )
            first = state.student.tokenizer.convert_ids_to_tokens(best.indices[:, 0].tolist())
            assert [row[0][0] for row in record["top"][name]] == first
        gap = (sampled["teacher"].log() - sampled["self_target"].log()).abs()
        assert record["gap"] == pytest.approx(gap.tolist(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("method", "kind"), [("opsd", "text"), ("priv_t_to_priv_s", "vl"), ("opd_sampled", "text")]
)
def test_absent_models_and_gaps_are_none_and_json_holds_everything(method, kind):
    state, _, maps = maps_of(method, kind)
    for record in json.loads(json.dumps(maps, allow_nan=False)):
        assert (record["q_teacher"] is None) == (state.teacher is None)
        assert (record["gap"] is None) == (method != "priv_t_to_priv_s")
        assert len(record["tokens"]) == len(record["loss"]) == len(record["top"]["student"]) > 0


def test_looking_changes_nothing_and_repeats_itself():
    state, samples, first = maps_of(score_answer=lambda text, sample: 0.5)
    before = [p.clone() for p in state.student.model.parameters()]
    generator = torch.get_rng_state()
    again = token_maps(state, samples, score_answer=lambda text, sample: 0.5)
    assert first == again and first[0]["correct"] == 0.5
    assert torch.equal(generator, torch.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(before, state.student.model.parameters(), strict=True)
    )
    assert all(p.grad is None for p in state.student.model.parameters())


def test_outliers_have_no_regime_and_no_weight():
    state = test_step.make_state()
    state.config = replace(
        state.config, method=replace(state.config.method, train_outliers=False, trim=0.3)
    )
    (record,) = token_maps(state, test_step.make_samples(state)[:1])
    out = [place for place, kind in enumerate(record["regime"]) if kind == -1]
    assert out and all(record["weight"][place] == 0.0 for place in out)
    assert "**token**" in token_map_text(record)


def page_parts():
    """Two moments of three samples, one of them with two images and hostile text."""
    state = test_step.make_state()
    hostile = replace(
        tiny.vl_sample("evil"), answer=EVIL, question=f"<image><image>{EVIL}",
        plain=View(images=(tiny.image(48, 32), tiny.image(32, 32))),
        privileged=View(images=(tiny.image(64, 48), tiny.image(32, 32)), context=EVIL),
    )  # fmt: skip
    samples = [*test_step.make_samples(state)[:2], encode_sample(state, hostile)]
    maps = token_maps(state, samples)
    state.step, state.config = 7, replace(state.config, seed=5)
    maps += token_maps(state, samples, score_answer=lambda text, sample: 1.0)
    maps[0]["tokens"][0] = EVIL
    return [probe_record(sample) for sample in samples], maps


@pytest.fixture(scope="module")
def parts():
    return page_parts()


def tip(page):
    return {
        cell.get_attribute("data-name"): cell.inner_text()
        for cell in page.locator(".tm-tip dd").all()
    }


def as_shown(value):
    """Four decimals, or two digits of a small number."""
    return float(f"{value:.2g}" if 0 < value < 0.01 else f"{value:.4f}")


def check_tip(page, record, place):
    shown = tip(page)
    for name, column in (
        ("gap, nats", "gap"),
        ("q_T", "q_teacher"),
        ("q_S", "q_self"),
        ("loss, nats", "loss"),
    ):
        assert float(shown[name]) == as_shown(record[column][place]), name
    assert shown["regime"] == ("LH", "LL", "HT", "HS")[record["regime"][place]]
    numbers = page.locator(".tm-tops td:nth-child(2)").all_inner_texts()
    names = ("student", "self_target", "teacher")
    assert numbers == [f"{share:.3f}" for name in names for _, share in record["top"][name][place]]


def test_hover_keys_and_slider_show_the_records_numbers(parts, tmp_path):
    probes, maps = parts
    path = tmp_path / "maps.html"
    path.write_text(token_map_page(probes, maps, METHOD), encoding="utf-8")
    with open_page(path) as opened:
        page = opened.page
        assert page.locator(".tm-step").inner_text() == "step 7 (2 of 2)"
        page.locator(".tm-token").nth(1).hover()
        check_tip(page, maps[3], 1)
        page.locator(".tm-token").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        check_tip(page, maps[3], 2)
        page.keyboard.press("Escape")
        assert not page.locator(".tm-tip").is_visible()
        before = page.locator(".tm-completion").inner_text()
        page.locator(".tm-slider").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator(".tm-step").inner_text() == "step 0 (1 of 2)"
        assert page.locator(".tm-completion").inner_text() != before
        page.locator(".tm-token").nth(3).hover()
        check_tip(page, maps[0], 3)
        page.select_option(".tm-probe", "2")
        assert page.locator(".tm-plain img").count() == 2
        assert EVIL in page.locator(".tm-facts").inner_text()
        assert page.locator(".tm-privileged mark").inner_text() == EVIL
        assert opened.problems == [] and opened.requests == []


def test_a_tap_on_a_phone_shows_the_numbers_within_the_screen(parts, tmp_path):
    probes, maps = parts
    path = tmp_path / "maps.html"
    path.write_text(token_map_page(probes, maps, METHOD), encoding="utf-8")
    with open_page(path, width=400, height=800, has_touch=True) as opened:
        page = opened.page
        page.locator(".tm-token").nth(2).tap()
        check_tip(page, maps[3], 2)
        box = page.locator(".tm-tip").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400 and box["y"] + box["height"] <= 800
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert opened.problems == []


def test_a_page_over_its_budget_keeps_the_first_and_last_moment():
    probes, maps = page_parts()
    many = [{**record, "step": step} for step in range(40) for record in maps[3:]]
    tokens = sum(len(record["tokens"]) for record in maps[3:])
    data = read_data(token_map_html(probes, many, METHOD, budget=5 * tokens))
    steps = [record["step"] for record in data["probes"][0]["maps"]]
    assert steps[0] == 0 and steps[-1] == 39 and len(steps) <= 5
    cut = read_data(token_map_html(probes, many, METHOD, budget=2 * 3 * 2))
    assert [record["step"] for record in cut["probes"][0]["maps"]] == [0, 39]
    assert all(len(m["tokens"]) <= 2 < m["length"] for m in cut["probes"][0]["maps"])


def test_without_maps_there_is_a_sentence():
    assert (
        token_map_html([], [], METHOD)
        == "<p>There is no token map: no probe was rolled out in this run.</p>"
    )


def read_data(fragment):
    return json.loads(
        fragment.partition('<script type="application/json">')[2].partition("</script>")[0]
    )
