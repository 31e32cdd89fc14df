"""Real gloo processes for tests, forked from a server that has imported torch and the core once.

Starting an interpreter and importing torch takes seconds, and every test with two ranks would pay it three times.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Not fork: torch refuses a backward pass in a child of a process that has made one.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["test_step", "test_train", "dopd_vlm.eval.harness"])


def run_ranks(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each of `count` ranks, in order; it must be importable by name.

    Raises AssertionError with the ranks' tracebacks if one fails, and when one has not ended after four minutes.
    """
    port, ends, processes = _free_port(), [], []
    for rank in range(count):
        end, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=_rank, args=(function, arguments, rank, count, port, theirs), daemon=True
        )
        process.start()
        theirs.close()
        ends.append(end)
        processes.append(process)
    try:
        outcomes = [_receive(end) for end in ends]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    failures = [outcome for is_good, outcome in outcomes if not is_good]
    assert not failures, "\n".join(failures)
    return [outcome for _, outcome in outcomes]


def _rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    count: int,
    port: int,
    end: Connection,
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    if count == 1:  # as a plain start does it: without a process group
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    try:
        outcome = (True, function(*arguments))
    except BaseException:
        outcome = (False, f"rank {rank}: {traceback.format_exc()}")
    end.send_bytes(pickle.dumps(outcome))


def _receive(end: Connection) -> tuple[bool, Any]:
    if not end.poll(240):
        return False, "a rank has not ended after 240 seconds"
    try:
        return pickle.loads(end.recv_bytes())
    except EOFError:
        return False, "a rank ended without a word"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
