"""How evaluation uses servers: no barrier, images encoded aside and once, several servers, kills."""

import heapq
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from test_endpoint import TASK, number, right, samples, server

from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval.completions import endpoint as asking
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.types import Sample, View


@pytest.fixture(scope="module", autouse=True)
def is_warm() -> None:
    """What the first evaluation of a process loads is not measured."""
    with server(right) as (url, _):
        evaluate(Endpoint(url=url, model="small"), TASK, samples=samples(1))


def makespan(latencies: list[float], places: int) -> float:
    """When the last of the latencies ends on a perfect queue: the next starts where one ends."""
    ends = [0.0] * places
    for latency in latencies:
        heapq.heapreplace(ends, ends[0] + latency)
    return max(ends)


def long_tailed(count: int, total: float) -> list[float]:
    """Lognormal latencies with sigma 1.3 that sum to `total` seconds."""
    draw = random.Random(0)
    raw = [draw.lognormvariate(0.0, 1.3) for _ in range(count)]
    return [total * one / sum(raw) for one in raw]


def seconds(latencies: list[float], places: int, images: list[Image.Image] | None = None) -> float:
    """How long an evaluation takes whose n-th request to arrive waits the n-th latency."""
    arrived, lock = iter(latencies), threading.Lock()

    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        with lock:
            latency = next(arrived)
        time.sleep(latency)
        return right(body, tries)

    with server(script) as (url, _):
        started = time.monotonic()
        where = Endpoint(url=url, model="small", max_concurrent=places)
        assert evaluate(where, TASK, samples=samples(len(latencies))).accuracy == 1.0
        return time.monotonic() - started


def test_no_request_waits_for_another() -> None:
    latencies = [1.5, *[0.05] * 79]
    assert seconds(latencies, places=4) < 2.6  # with batches of sixteen and a barrier about 1.5 + 1


@pytest.mark.slow
def test_a_long_tail_costs_little_more_than_a_perfect_queue() -> None:
    latencies = long_tailed(400, 300.0)
    perfect = makespan(latencies, 16)
    taken = seconds(latencies, 16)
    assert taken <= 1.1 * perfect, (taken, perfect)


def photographs(count: int, size: tuple[int, int]) -> list[Sample]:
    """Questions about images that compress like photographs: noise of a quarter of their size."""
    small = (size[0] // 4, size[1] // 4)
    noise = Image.frombytes("RGB", small, random.Random(0).randbytes(3 * small[0] * small[1]))
    noise = noise.resize(size)
    return [
        Sample(uid=f"q{i}", question=f"what is {i} + 2?", answer=str(i + 2), answer_type="number",
               plain=View(images=(noise.copy(),)), privileged=View())
        for i in range(count)
    ]  # fmt: skip


def answered(body: dict[str, Any]) -> tuple[int, Any]:
    text = next(b["text"] for b in body["messages"][-1]["content"] if b["type"] == "text")
    return right({"messages": [{"content": text}]}, 0)


@pytest.mark.slow
def test_the_first_request_leaves_before_all_images_are_encoded() -> None:
    asked, times = photographs(64, (1536, 1024)), []

    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        times.append(time.monotonic())
        return answered(body)

    with server(script) as (url, _):
        started = time.monotonic()
        where = Endpoint(url=url, model="small", max_concurrent=16)
        assert evaluate(where, TASK, samples=asked).accuracy == 1.0
    # Two seconds; on a busy machine, where one image takes as long, still a small part of all.
    assert min(times) - started < max(2.0, 0.1 * (max(times) - started))


def test_an_image_is_encoded_once_for_all_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    real = asking._encoded
    monkeypatch.setattr(asking, "_encoded", lambda i, f: encoded.append(id(i)) or real(i, f))
    one = photographs(1, (40, 30))[0]
    asked = [*photographs(3, (20, 10)), *[
        Sample(uid=f"same{i}", question=f"what is {i} + 2?", answer=str(i + 2), answer_type="number",
               plain=one.plain, privileged=View())
        for i in range(5)
    ]]  # fmt: skip
    bodies: list[dict[str, Any]] = []

    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        bodies.append(body)
        return answered(body)

    with server(script) as (url, _):
        where = Endpoint(url=url, model="small", max_concurrent=8)
        found = evaluate(where, TASK, samples=asked, image_format="jpeg")
        assert found.accuracy == 1.0
        with pytest.raises(ValueError, match=r"unknown image format 'gif'.*png"):
            evaluate(where, TASK, samples=asked, image_format="gif")
    assert len(encoded) == len(set(encoded)) == 4
    urls = [body["messages"][-1]["content"][0]["image_url"]["url"] for body in bodies]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)


def test_encoded_images_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "HELD_BYTES", 10_000)
    with server(lambda body, tries: answered(body)) as (url, _):
        where = Endpoint(url=url, model="small", max_concurrent=3)
        asked = photographs(12, (40, 30))
        assert evaluate(where, TASK, samples=asked).accuracy == 1.0


def test_several_servers_share_the_work_and_a_dead_one_costs_nothing(tmp_path: Path) -> None:
    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        time.sleep(0.02)
        return right(body, tries)

    with server(script) as (first, at_first), server(script) as (second, at_second):
        dead = "http://127.0.0.1:9/v1"
        where = Endpoint(url=first, more_urls=(second, dead), model="small", max_concurrent=6,
                         first_wait_s=0.01)  # fmt: skip
        found = evaluate(where, TASK, samples=samples(40), out=tmp_path)
        assert (found.accuracy, found.failed_rate) == (1.0, 0.0)
        shares = (len(at_first), len(at_second))
        assert sum(shares) == 40 and min(shares) > 10
        # The answers stay valid when one server does the rest.
        alone = Endpoint(url=first, model="small")
        evaluate(alone, TASK, samples=samples(40), out=tmp_path)
        assert len(at_first) + len(at_second) == 40


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_endpoint import TASK, samples
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval.harness import evaluate
where = Endpoint(url=sys.argv[2], model="small", max_concurrent=8, first_wait_s=0.01)
evaluate(where, TASK, samples=samples(120), out=Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_kill_loses_no_answer_and_none_is_asked_twice(tmp_path: Path) -> None:
    def script(body: dict[str, Any], tries: int) -> tuple[int, Any]:
        time.sleep(0.05)
        if number(body) % 7 == 0 and tries == 1:
            return 500, "busy"
        return right(body, tries)

    with server(script) as (url, bodies):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), url, str(tmp_path)]
        process = subprocess.Popen(command)
        while len(bodies) < 60:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        part = (tmp_path / "samples_sums__plain.part0.jsonl").read_bytes()
        kept = [json.loads(line)["uid"] for line in part.split(b"\n")[:-1]]
        assert len(kept) > 60 - 8 - 20 - 8
        time.sleep(0.3)
        bodies.clear()
        subprocess.run(command, check=True)
        again = [f"q{number(body)}" for body in bodies]
    assert not set(kept) & set(again)
    lines = (tmp_path / "samples_sums__plain.jsonl").read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines] == [f"q{i}" for i in range(120)]
    assert sum(json.loads(line)["accuracy"] for line in lines) == 120


def test_speed_and_time_left_are_shown() -> None:
    from rich.progress import Progress

    with server(right) as (url, _), Progress(disable=True) as progress:
        evaluate(Endpoint(url=url, model="small"), TASK, samples=samples(9), progress=progress)
        (task,) = progress.tasks
    assert (task.completed, task.total) == (9, 9) and task.fields["speed"].endswith(" tokens/s")


def test_images_of_a_view_stay_the_samples_own() -> None:
    image = tiny.image(9, 7)
    before = image.tobytes()
    asking._encoded(image, "jpeg")
    assert image.tobytes() == before and image.mode == "RGB"
