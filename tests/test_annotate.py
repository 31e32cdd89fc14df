"""The annotating pipeline against a scripted endpoint: every reply and failure is a counted outcome."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.annotate.outcomes import Task
from dopd_vlm.data.annotate.pipeline import annotate
from dopd_vlm.data.annotate.replies import BadReplyError, find_json, read_annotation, reply_schema
from dopd_vlm.data.coords import Frame
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.validate import validate
from dopd_vlm.data.views import make_sample
from dopd_vlm.endpoint import Endpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "annotate.py"
BOXES = '[{"bbox_2d": [100, 200, 500, 800], "label": "cup"}]'
HINTS = '["Find the cups.", "Count them."]'
GOOD = '{"good": true, "reason": "fine"}'


def chat(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


def asked_for(body):
    """(uid, kind or "check") of a request; the question of every row starts with its uid."""
    content = body["messages"][0]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    uid = text.split("Question:\n")[1].split()[0]
    kind = "check" if "Judge it" in text else "boxes" if "bbox_2d" in text else "hints"
    return uid, kind


@contextmanager
def endpoint(script, **options):
    """An Endpoint whose server answers `script(body, number)` with (status, text or dict,
    further headers)."""
    bodies = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                bodies.append((self.path, dict(self.headers), body))
                number = len(bodies)
            status, answer, *headers = script(body, number)
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None  # a client that left is part of the tests
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    made = {
        "max_concurrent": 3,
        "first_wait_s": 0.01,
        "timeout_s": 5.0,
        "max_repeats": 3,
        **options,
    }
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield Endpoint(url=url, model="strong", **made), bodies
    finally:
        server.shutdown()
        server.server_close()


def good(body, number):
    return 200, chat({"boxes": BOXES, "hints": HINTS, "check": GOOD}[asked_for(body)[1]])


@pytest.fixture
def folder(tmp_path):
    rows = []
    for index in range(6):
        name = f"p{index}.{'jpg' if index % 2 else 'png'}"
        Image.new("RGB", (200, 100), (40 * index, 90, 90)).save(tmp_path / name)
        question = f"r{index} how many cups ?"
        rows.append({"uid": f"r{index}", "images": [name], "question": question, "answer": "2",
                     "annotations": {"captions": ["a table"]}, "meta": {"split": "train"}})  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def dropped(out):
    return {row["uid"]: row["reason"] for row in read_rows(out / "dropped.jsonl")}


def run(folder, script, *, kinds=("boxes",), attempts=2, coords="qwen3", **options):
    with endpoint(script, **options) as (where, bodies):
        task = Task(kinds=kinds, attempts=attempts, coords=coords)
        return annotate(read_rows(folder), folder / "out", task, where), bodies


def test_good_replies_make_rows_that_train_and_validate(folder) -> None:
    outcome, bodies = run(folder, good, kinds=("boxes", "hints"), api_key="k1")
    assert (outcome.kept, outcome.dropped, outcome.pending, outcome.stopped) == (6, {}, 0, "")
    assert outcome.progress.num_requests == len(bodies) == 24
    assert (outcome.progress.prompt_tokens, outcome.progress.completion_tokens) == (2400, 240)
    path, headers, body = bodies[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer k1")
    assert (body["model"], body["stream"]) == ("strong", False)
    rows = read_rows(folder / "out")
    assert [row["uid"] for row in rows] == [f"r{index}" for index in range(6)]
    assert rows[0]["annotations"]["boxes"] == [{"bbox": [20, 20, 80, 60], "label": "cup"}]
    assert rows[0]["annotations"]["captions"] == ["a table"]
    assert rows[0]["meta"] == {"split": "train", "annotator": "strong"}
    sample = make_sample(rows[1], ["boxes", "hints"])
    assert '[100, 200, 500, 800], "label": "cup"' in sample.privileged.context
    assert sample.plain.images[0].size == (200, 100)
    assert validate(rows).problems == []


def test_images_are_kept_as_they_were(folder) -> None:
    run(folder, good)
    made = read_rows(folder / "out")[1]["images"][0]
    assert made.endswith(".jpg")
    assert (folder / "out" / made).read_bytes() == (folder / "p1.jpg").read_bytes()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("There is a cup on the left.", "no JSON: 'There is"),
        (BOXES[:-20], "no JSON: "),
        ('{"cup": 1}', "form: need a list of boxes"),
        ('[{"bbox_2d": [1, 2, 3], "label": "x"}]', r"form: [0] needs bbox_2d of four numbers"),
        ('[{"bbox_2d": [1, 2, 3, NaN], "label": "x"}]', "form: [0] needs bbox_2d of four"),
        ('[{"bbox_2d": [1, 2, 30, 40]}]', "form: [0] needs a label"),
        ('[{"bbox_2d": [100, 200, 1500, 800], "label": "x"}]', "place: [0].bbox"),
        ('[{"bbox_2d": [500, 200, 100, 800], "label": "x"}]', "place: [0].bbox"),
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "x", "image": 2}]', "place: [0] names image 2"),
        ("[]", "empty: "),
        ("", "no JSON: ''"),
    ],
)
def test_bad_first_replies_are_asked_again_then_dropped(folder, reply, reason) -> None:
    def script(body, number):
        uid, kind = asked_for(body)
        return (200, chat(reply)) if (uid, kind) == ("r2", "boxes") else good(body, number)

    outcome, bodies = run(folder, script)
    assert (outcome.kept, outcome.pending) == (5, 0)
    assert list(outcome.dropped.values()) == [1]
    assert dropped(folder / "out")["r2"].startswith(reason)
    assert Counter(asked_for(body) for _, _, body in bodies)["r2", "boxes"] == 2
    kept = [json.loads(line) for line in (folder / "out" / "replies.jsonl").open()]
    assert [record["text"] for record in kept[1:] if record["uid"] == "r2"] == [reply] * 2


@pytest.mark.parametrize(
    "reply", [f"```json\n{BOXES}\n```", f"Here it is: {BOXES} Done.", f"<think>[1]</think>{BOXES}"]
)
def test_json_in_a_fence_or_among_words_is_read(folder, reply) -> None:
    outcome, _ = run(
        folder, lambda body, number: (200, chat(reply if asked_for(body)[1] == "boxes" else GOOD))
    )
    assert outcome.kept == 6


def test_a_second_attempt_saves_the_row(folder) -> None:
    seen = Counter()

    def script(body, number):
        seen[asked_for(body)] += 1
        return (200, chat("hm")) if seen[asked_for(body)] == 1 else good(body, number)

    outcome, bodies = run(folder, script)
    assert (outcome.kept, len(bodies)) == (6, 24)
    again = next(body["messages"] for _, _, body in bodies if len(body["messages"]) > 1)
    assert again[1] == {"role": "assistant", "content": "hm"}
    assert again[2]["content"].startswith("That cannot be used. no JSON: 'hm'")


def test_the_second_pass_drops_rows(folder) -> None:
    def script(body, number):
        uid, kind = asked_for(body)
        if kind != "check" or uid not in ("r1", "r4"):
            return good(body, number)
        return 200, chat(
            '{"good": false, "reason": "box too wide"}' if uid == "r1" else "looks fine"
        )

    outcome, bodies = run(folder, script)
    assert (outcome.kept, outcome.dropped) == (4, {"recheck": 1, "no JSON": 1})
    assert dropped(folder / "out")["r1"] == "recheck: box too wide"
    assert "bbox_2d" in next(b["messages"][0]["content"][-1]["text"] for _, _, b in bodies
                             if asked_for(b) == ("r1", "check"))  # fmt: skip


@pytest.mark.parametrize("hint", ["It is 2.", "Two cups are left.", "The result is 2.0"])
def test_hints_that_disclose_the_answer_drop_the_row(folder, hint) -> None:
    def script(body, number):
        uid, kind = asked_for(body)
        return (
            (200, chat(json.dumps(["Look.", hint])))
            if (uid, kind) == ("r0", "hints")
            else good(body, number)
        )

    outcome, _ = run(folder, script, kinds=("hints",))
    assert (outcome.kept, outcome.dropped) == (5, {"disclosure": 1})


def test_a_cut_reply_says_so(folder) -> None:
    def script(body, number):
        return 200, chat(BOXES, finish_reason="length")

    outcome, _ = run(folder, script)
    assert outcome.dropped == {"cut": 6}


def test_what_passes_by_itself_is_repeated(folder) -> None:
    answers = iter(
        [(429, "slow down"), (500, "oops"), (200, "<html>proxy</html>"), (503, ""), (200, "[]")]
    )

    def script(body, number):
        return next(answers, None) or good(body, number)

    outcome, _ = run(folder, script)
    assert (outcome.kept, outcome.progress.num_repeats) == (6, 5)


@pytest.mark.parametrize(
    ("asked_pause", "first_wait_s", "pause_s"),
    [("0.3", 30.0, 0.3), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.4, 0.2), ("-1", 0.4, 0.2)],
)
def test_the_pause_an_endpoint_asks_for_is_kept_and_nonsense_ignored(
    folder, asked_pause, first_wait_s, pause_s
) -> None:
    """Else the pause is first_wait_s times a factor from 0.5 to 1."""

    def script(body, number):
        if number == 1:
            return 429, "slow down", ("Retry-After", asked_pause)
        return good(body, number)

    start = time.monotonic()
    outcome, _ = run(folder, script, first_wait_s=first_wait_s)
    assert (outcome.kept, outcome.progress.num_repeats) == (6, 1)
    assert pause_s <= time.monotonic() - start < 15


WELL = "well"
ENDINGS = {
    # what the endpoint does to a row's first request: how the row ends
    WELL: "kept",
    "prose": "no JSON",
    "half a JSON": "no JSON",
    "refusal": "no JSON",
    "refused by its model": "no JSON",
    "other form": "form",
    "outside": "place",
    "cut": "cut",
    "rejected": "rejected",
    "slow once": "kept",
    "busy once": "kept",
    "no body once": "kept",
}


def misbehaving(way, tries):
    """(status, body) of the `tries`th reply to a row's first pass."""
    if way.endswith("once"):
        if tries > 1:
            return 200, chat(BOXES)
        time.sleep(0.25 if way == "slow once" else 0)
        return {"busy once": (503, "busy"), "no body once": (200, "{")}.get(way, (200, chat(BOXES)))
    refusal = chat(None)
    refusal["choices"][0]["message"]["refusal"] = "I cannot help with that."
    return {
        WELL: (200, chat(BOXES)),
        "prose": (200, chat("There is a cup.")),
        "half a JSON": (200, chat(BOXES[:30])),
        "refusal": (200, chat("I'm sorry, but I can't help with that.")),
        "refused by its model": (200, refusal),
        "other form": (200, chat('{"cup": 1}')),
        "outside": (200, chat('[{"bbox_2d": [1, 2, 3000, 4], "label": "x"}]')),
        "cut": (200, chat(BOXES, "length")),
        "rejected": (422, "no"),
    }[way]


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(sorted(ENDINGS)), min_size=6, max_size=6))
def test_whatever_an_endpoint_does_every_row_has_its_counted_ending(folder, ways) -> None:
    tries = Counter()

    def script(body, number):
        uid, kind = asked_for(body)
        tries[uid, kind] += 1
        return (
            (200, chat(GOOD))
            if kind == "check"
            else misbehaving(ways[int(uid[1:])], tries[uid, kind])
        )

    shutil.rmtree(folder / "out", ignore_errors=True)
    outcome, _ = run(folder, script, timeout_s=0.15)
    wanted = Counter(ENDINGS[way] for way in ways)
    assert (outcome.kept, outcome.pending, outcome.stopped) == (wanted.pop("kept", 0), 0, "")
    assert outcome.dropped == wanted
    made = {row["uid"] for row in read_rows(folder / "out")} if outcome.kept else set()
    assert made | set(dropped(folder / "out")) == {f"r{n}" for n in range(6)}


def test_timeouts_are_repeated(folder) -> None:
    def script(body, number):
        if number <= 2:
            time.sleep(0.6)
        return good(body, number)

    outcome, _ = run(folder, script, timeout_s=0.3)
    assert outcome.kept == 6 and outcome.progress.num_repeats >= 2


def test_a_refused_request_drops_its_row_alone(folder) -> None:
    def script(body, number):
        return (400, "image too large") if asked_for(body)[0] == "r3" else good(body, number)

    outcome, bodies = run(folder, script)
    assert (outcome.kept, outcome.dropped) == (5, {"rejected": 1})
    assert "status 400: image too large" in dropped(folder / "out")["r3"]
    assert Counter(asked_for(body)[0] for _, _, body in bodies)["r3"] == 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_at_once(folder, status) -> None:
    with pytest.raises(ValueError, match=rf"refuses model 'strong': status {status}"):
        run(folder, lambda body, number: (status, "no"))


def test_an_absent_endpoint_loses_nothing_and_the_run_goes_on(folder) -> None:
    task = Task(kinds=("boxes",))
    with endpoint(good, max_concurrent=2, max_repeats=1) as (there, _):
        gone = replace(there, url="http://127.0.0.1:9/v1")
    first = annotate(read_rows(folder), folder / "out", task, gone)
    assert (first.kept, first.dropped, first.pending) == (0, {}, 6)
    assert "no connection" in first.stopped
    second, _ = run(folder, good)
    assert (second.kept, second.pending) == (6, 0)


def test_bad_rows_are_dropped_without_a_request(folder) -> None:
    (folder / "p1.jpg").write_bytes(b"no image")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    text_only = json.dumps({"uid": "t", "question": "t no image ?"})
    video = json.dumps({"uid": "v", "question": "v what ?", "videos": ["x.mp4"]})
    (folder / "metadata.jsonl").write_text("\n".join([*lines, text_only, video]))
    outcome, bodies = run(folder, good)
    assert (outcome.kept, outcome.dropped) == (5, {"row": 3})
    assert "only images are sent" in dropped(folder / "out")["v"]
    assert "boxes need an image" in dropped(folder / "out")["t"]
    assert {"r1", "t"}.isdisjoint(asked_for(body)[0] for _, _, body in bodies)


def test_a_finished_run_asks_nothing_and_other_settings_are_refused(folder) -> None:
    run(folder, good)
    before = (folder / "out" / "metadata.jsonl").read_bytes()
    outcome, bodies = run(folder, good)
    assert (outcome.kept, bodies) == (6, [])
    assert (folder / "out" / "metadata.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="other settings"):
        run(folder, good, kinds=("hints",))


def test_a_changed_row_is_asked_again(folder) -> None:
    run(folder, good)
    text = (folder / "metadata.jsonl").read_text().replace("r2 how many", "r2 just how many")
    (folder / "metadata.jsonl").write_text(text)
    outcome, bodies = run(folder, good)
    assert outcome.kept == 6
    assert {asked_for(body)[0] for _, _, body in bodies} == {"r2"}


def test_requests_are_paced(folder) -> None:
    start = time.monotonic()
    run(folder, good, requests_per_minute=60 / 0.05)
    assert time.monotonic() - start >= 0.05 * 11


@pytest.mark.parametrize("coords", ["pixel", "qwen2_5"])
def test_pixels_are_those_of_the_image_as_sent(folder, coords) -> None:
    sent = {}

    def script(body, number):
        uid, kind = asked_for(body)
        if kind == "check":
            return 200, chat(GOOD)
        text = body["messages"][0]["content"][-1]["text"]
        width, height = (int(n) for n in text.split("as given (")[1].split(")")[0].split(" x "))
        sent[uid] = (width, height)
        box = [0, 0, width // 2, height]
        return 200, chat(json.dumps([{"bbox_2d": box, "label": "left half"}]))

    run(folder, script, coords=coords)
    assert sent["r0"] == (196, 112)  # multiples of 28
    box = read_rows(folder / "out")[0]["annotations"]["boxes"][0]["bbox"]
    assert box == [0, 0, 100, 100]


def test_what_a_question_says_fills_no_field(folder) -> None:
    rows = [{"uid": "x", "images": ["p0.png"], "question": "x {answer} {places} ?", "answer": "2"}]
    (folder / "metadata.jsonl").write_text(json.dumps(rows[0]))
    _, bodies = run(folder, good)
    assert "x {answer} {places} ?" in bodies[0][2]["messages"][0]["content"][-1]["text"]


def test_several_images_are_numbered_in_question_and_boxes(folder) -> None:
    row = {"uid": "m", "images": ["p0.png", "p1.jpg"], "question": "m <image> or <image> ?"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    reply = '[{"bbox_2d": [100, 200, 500, 800], "label": "cup", "image": 2}]'
    _, bodies = run(folder, lambda body, n: (200, chat(reply)) if n == 1 else (200, chat(GOOD)))
    first, second = (body["messages"][0]["content"] for _, _, body in bodies)
    assert [block["type"] for block in first] == ["image_url", "image_url", "text"]
    assert "m [image 1] or [image 2] ?" in first[-1]["text"]
    assert 'image 2: [{"bbox_2d": [100, 200, 500, 800], "label": "cup"}]' in second[-1]["text"]
    (made,) = read_rows(folder / "out")
    assert made["annotations"]["boxes"] == [{"bbox": [20, 20, 80, 60], "label": "cup", "image": 1}]


def command(folder, url, concurrency=2):
    return [sys.executable, str(SCRIPT), str(folder), "--endpoint", url, "--model", "strong",
            "--kind", "boxes,hints", "--out", str(folder / "out"),
            "--concurrency", str(concurrency), "--price", "1000", "2000"]  # fmt: skip


@pytest.fixture
def run_script(monkeypatch, capsys):
    """A command of the script in this process: (exit status, what it printed)."""

    def run(line):
        monkeypatch.setattr(sys, "argv", line[1:])
        monkeypatch.syspath_prepend(str(SCRIPT.parent))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        told = capsys.readouterr()
        return ended.value.code, told.out + told.err

    return run


def many_rows(folder, num):
    """More rows about the folder's images: r0, r1, ..."""
    row = json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])
    lines = [
        json.dumps({**row, "uid": f"r{n}", "question": f"r{n} how many cups ?"}) for n in range(num)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_a_run_killed_under_many_requests_goes_on_with_nothing_lost_or_repeated(
    folder, run_script
) -> None:
    """Four replies a row; 12 requests at once."""
    many_rows(folder, 20)
    concurrency, total = 12, 80
    answered, inside, most, lock = Counter(), [0], [0], threading.Lock()

    def script(body, number):
        with lock:
            answered[json.dumps(body["messages"])] += 1
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.2)
        with lock:
            inside[0] -= 1
        return good(body, number)

    replies = folder / "out" / "replies.jsonl"
    with endpoint(script) as (where, _):
        killed = subprocess.Popen(
            command(folder, where.url, concurrency), stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not replies.exists() or replies.read_bytes().count(b"\n") < total // 3:
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        with replies.open("ab") as file:
            file.write(b'{"uid": "r5", "row": "ab')  # as a kill in the middle of a write leaves it
        kept = replies.read_bytes().count(b"\n") - 1
        assert 0 < kept < total and not (folder / "out" / "metadata.jsonl").exists()
        status, printed = run_script(command(folder, where.url, concurrency))
    assert status == 0
    assert "20 rows kept, 0 dropped, 0 still to ask" in printed
    assert f"this run: {total - kept} replies" in printed
    # 100 prompt and 10 completion tokens a reply, at 1000 and 2000 a million
    assert f"cost {(total - kept) * 0.12:.2f}" in printed
    rows = read_rows(folder / "out")
    assert [row["uid"] for row in rows] == [f"r{index}" for index in range(20)]
    assert all(set(row["annotations"]) == {"captions", "boxes", "hints"} for row in rows)
    records = [json.loads(line) for line in replies.open()][1:]
    keys = [(r["uid"], r["kind"], r["step"], r["attempt"]) for r in records]
    assert len(keys) == len(set(keys)) == total == len(answered)
    assert most[0] > concurrency // 2, "many at once"
    # Only what was under way at the kill may have been answered without having been kept.
    assert sum(answered.values()) - total <= concurrency


def test_the_script_says_what_is_wrong(folder, run_script) -> None:
    status, told = run_script(command(folder, "ftp://x"))
    assert status == 2 and "must start with http" in told


FRAME = Frame(family="qwen3", size=(200, 100))


@given(st.text(alphabet='[]{}":,0123456789.eE-abNn \n', max_size=60) | st.text(max_size=40))
def test_any_reply_is_a_value_or_a_bad_reply(text) -> None:
    for kind in ("boxes", "hints"):
        try:
            value = read_annotation(kind, text, "stop", frames=(FRAME,), answer="2", choices=None)
        except BadReplyError as error:
            assert str(error).partition(":")[0] in (
                "no JSON",
                "form",
                "empty",
                "place",
                "disclosure",
            )
        else:
            assert value


def test_a_reply_with_two_values_is_not_guessed_at() -> None:
    with pytest.raises(BadReplyError, match="more than one value"):
        find_json(f"{BOXES} or rather {BOXES}")
    assert find_json(f"{BOXES} [see above]") == json.loads(BOXES)


def test_the_form_goes_along_as_a_schema_where_that_is_asked_for(folder) -> None:
    def formats(task, out):
        with endpoint(good) as (where, bodies):
            annotate(read_rows(folder)[:1], folder / out, task, where)
        return [body.get("response_format") for _, _, body in bodies]

    kinds = ("boxes", "hints")
    assert formats(Task(kinds=kinds), "free") == [None] * 4
    held = formats(Task(kinds=kinds, json_schema=True), "held")
    assert [found["type"] for found in held] == ["json_schema"] * 4
    schemas = [found["json_schema"]["schema"] for found in held]
    assert schemas == [reply_schema(k, s, 1) for k in kinds for s in ("write", "check")]
    for schema, reply in zip(schemas, (BOXES, GOOD, HINTS, GOOD), strict=True):
        jsonschema.validate(json.loads(reply), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads('{"cup": 1}'), schema)


label = st.text(min_size=1, max_size=9).filter(str.strip)
places = st.lists(st.floats(-50, 1200) | st.integers(-50, 1200), min_size=4, max_size=4)
held_boxes = st.lists(st.fixed_dictionaries({"bbox_2d": places, "label": label}), min_size=1)


@given(held_boxes, st.lists(label, min_size=1, max_size=8))
def test_what_a_schema_lets_through_is_of_the_form(boxes, lines) -> None:
    """Left to be found wrong is what a schema cannot hold: places and disclosed answers."""
    for kind, found in (("boxes", boxes[:40]), ("hints", lines)):
        jsonschema.validate(found, reply_schema(kind, "write", 1))
        try:
            value = read_annotation(
                kind, json.dumps(found), "stop", frames=(FRAME,), answer="2", choices=None
            )
        except BadReplyError as error:
            assert str(error).partition(":")[0] in ("place", "disclosure"), error
        else:
            assert len(value) == len(found)
