"""An endpoint as a model: a scripted server on loopback, and a real one in the slow test."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from real_server import transformers_serve

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded.sets import embedded_model, embedded_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval.benchmarks.benchmark import Benchmark, load_benchmark
from dopd_vlm.eval.completions.endpoint import ImageUris, decoding_fields
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.models.policy import load_policy
from dopd_vlm.types import Sample, Sampling, View

TASK = Benchmark(name="sums", description="d", rows="r", answer_type="number")
SLOW_SERVER_S = 0.4


def samples(count: int = 6) -> list[Sample]:
    return [
        Sample(uid=f"q{i}", question=f"what is {i} + 2?", answer=str(i + 2), answer_type="number",
               plain=View(), privileged=View())
        for i in range(count)
    ]  # fmt: skip


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split("what is ")[1].split(" ")[0])


def chat(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": finish_reason}],
        "usage": {"completion_tokens": 7},
    }


def right(body: dict[str, Any], tries: int) -> tuple[int, Any]:
    return 200, chat(f"answer {number(body) + 2}")


@contextmanager
def server(script: Callable[[dict[str, Any], int], tuple[int, Any]]) -> Iterator[tuple[str, list]]:
    """(address, bodies it was sent); `script(body, how often this question came)` answers."""
    bodies: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                bodies.append(body)
                tries = sum(b["messages"] == body["messages"] for b in bodies)
            self.reply(*script(body, tries))

        def reply(self, status: int, answer: Any) -> None:
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.handle_error = lambda *arguments: None  # type: ignore[method-assign]  # clients that left
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}/v1", bodies
    finally:
        made.shutdown()
        made.server_close()


def ask(url: str, out: Path | None = None, *, count: int = 6, task: Benchmark = TASK, **options):
    settings = {"first_wait_s": 0.01, "timeout_s": SLOW_SERVER_S / 2, "max_repeats": 2, **options}
    endpoint = Endpoint(url=url, model="small", **settings)
    return evaluate(endpoint, task, samples=samples(count), out=out)


def test_errors_that_pass_are_repeated_and_others_counted(tmp_path: Path) -> None:
    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        match number(body):
            case 0 if tries < 3:
                return 500, "busy"
            case 1 if tries < 2:
                return 429, "slow down"
            case 2:
                return 200, "<html>a proxy's page</html>"
            case 3:
                return 200, json.dumps(chat("answer 5"))[:-9]
            case 4:
                time.sleep(SLOW_SERVER_S)
            case 5:
                return 400, "context too long"
        return right(body, tries)

    is_well = False
    with server(lambda body, tries: (right if is_well else script)(body, tries)) as (url, bodies):
        found = ask(url, tmp_path)
        tries = [sum(number(b) == i for b in bodies) for i in range(6)]
        assert tries == [3, 2, 3, 3, 3, 1]
        lines = map(json.loads, (tmp_path / "samples_sums__plain.jsonl").read_text().splitlines())
        is_well = True
        bodies.clear()
        again = ask(url, tmp_path)
        assert sorted(map(number, bodies)) == [2, 3, 4, 5]
    assert found.accuracy == pytest.approx(2 / 6)
    assert (found.failed_rate, found.unparsed_rate) == pytest.approx((4 / 6, 0.0))
    rules = {line["uid"]: line["filter"] for line in lines}
    assert "no chat completion" in rules["q2"] and "no chat completion" in rules["q3"]
    assert "no answer within" in rules["q4"] and "context too long" in rules["q5"]
    assert again.accuracy == 1.0 and again.failed_rate == 0.0


def test_the_words_of_a_refusal_are_kept(tmp_path: Path) -> None:
    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        answer = chat(None)
        answer["choices"][0]["message"]["refusal"] = "I cannot help with sums."
        return 200, answer

    with server(script) as (url, _):
        found = ask(url, tmp_path, count=1)
    line = json.loads((tmp_path / "samples_sums__plain.jsonl").read_text())
    assert line["resps"] == [["I cannot help with sums."]]
    assert (found.unparsed_rate, found.empty_rate, found.failed_rate) == (1.0, 0.0, 0.0)


def test_requests_run_at_the_same_time() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1
        return right(body, tries)

    with server(script) as (url, _):
        assert ask(url, count=12, timeout_s=5.0, max_concurrent=4).accuracy == 1.0
    assert most == 4


def test_empty_and_cut_answers_keep_their_kind() -> None:
    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        return 200, chat(None) if number(body) % 2 else chat("and so on", "length")

    with server(script) as (url, _):
        found = ask(url)
    rates = (found.empty_rate, found.truncated_rate, found.unparsed_rate, found.failed_rate)
    assert rates == pytest.approx((0.5, 0.5, 1.0, 0.0)) and found.mean_tokens == 7.0


def test_what_no_request_can_pass_stops_with_a_message() -> None:
    with (
        server(lambda body, tries: (404, "no such model")) as (url, _),
        pytest.raises(ValueError, match=r"refuses model 'small'.*no such model"),
    ):
        ask(url)
    with pytest.raises(ValueError, match="is the server running"):
        ask(url, max_repeats=0)


async def wire(messages: list, image_format: str) -> list:
    uris = ImageUris(image_format)
    try:
        return await uris.wire_messages(messages)
    finally:
        uris.close()


def test_images_travel_as_they_are_and_seeds_differ() -> None:
    image = tiny.image(9, 7)
    turns = [{"role": "user", "content": [{"type": "image", "image": image},
                                          {"type": "text", "text": "what?"}]}]  # fmt: skip
    (turn,) = asyncio.run(wire(turns, "png"))
    head, _, data = turn["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()
    assert turn["content"][1] == {"type": "text", "text": "what?"}
    sampled = Sampling(temperature=0.7, top_p=0.9, top_k=20, num_generations=2)
    assert decoding_fields(sampled) == {
        "max_tokens": 1024, "temperature": 0.7, "top_p": 0.9, "top_k": 20,
    }  # fmt: skip
    assert decoding_fields(Sampling()) == {"max_tokens": 1024, "temperature": 0.0}
    with server(right) as (url, bodies):
        evaluate(
            Endpoint(url=url, model="small"),
            TASK,
            samples=samples(1),
            generation={"temperature": 0.7, "num_generations": 3},
            template_kwargs={"enable_thinking": False},
        )
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert len({body["seed"] for body in bodies}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [("student_text", "lists"), ("student_vl", "shapes")])
def test_a_real_server_gives_the_local_models_answers(name: str, task: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="transformers serve needs 'transformers[serving]'")
    path = str(embedded_model(f"embedded:{name}"))
    asked, _ = make_samples(embedded_rows(f"embedded:{task}/test")[:16], [])
    local = evaluate(
        load_policy(ModelConfig(path=path), device="cpu", trainable=False),
        load_benchmark(task),
        samples=asked,
    )
    with transformers_serve(path) as url:
        served = evaluate(
            Endpoint(url=url, model=path, max_concurrent=4),
            load_benchmark(task),
            samples=asked,
            out=tmp_path,
        )
    assert served.failed_rate == 0.0
    assert served.per_question == local.per_question and 0.0 < served.accuracy < 1.0
