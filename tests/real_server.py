"""Real OpenAI-compatible servers on loopback, ended with the block that uses them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LLAMA_CPP = """
import sys, time
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 4096, 2, 1
server = xllamacpp.Server(params)
time.sleep(900)
"""
"""llama.cpp's own server, in a process of its own."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def transformers_serve(model: str) -> Iterator[str]:
    """The address of `transformers serve` with a model folder."""
    port = free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    with _served([*command, "--device", "cpu"], port) as url:
        yield url


@contextmanager
def llama_cpp_serve(gguf: Path) -> Iterator[str]:
    """The address of llama.cpp's server, which can hold a model to a JSON schema."""
    port = free_port()
    with _served([sys.executable, "-c", LLAMA_CPP, str(gguf), str(port)], port) as url:
        yield url


@contextmanager
def _served(command: Sequence[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            assert process.poll() is None, f"the server ended: {command[:2]}; is it installed?"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
