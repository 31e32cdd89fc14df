"""scripts/checks/gpu.py in small on this machine: every stage, its files, its table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dopd_vlm.scripts.checks import gpu

pytest.importorskip("triton", reason="Triton is not installed")
SCRIPT = Path(gpu.__file__)


def check(out: Path, *stages: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--small", "--out", str(out), "--stages", *stages]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_a_stage_writes_rows_and_a_table(tmp_path):
    done = check(tmp_path, "kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert len(report["rows"]) > 8 and all(row["result"].startswith("ok") for row in report["rows"])
    assert report["machine"]["torch"] and "| kernels | jsd: gradient | ok" in done.stdout


@pytest.mark.slow
def test_all_stages(tmp_path):
    done = check(tmp_path, *gpu.STAGES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("*.json")} == set(gpu.STAGES)
    assert "ours dopd" in done.stdout and "dopd, third step" in done.stdout
    assert "tokens/s" in done.stdout and "| fsdp | loss of a sharded head | ok" in done.stdout


def test_a_stage_that_hangs_is_ended_and_the_others_stay(tmp_path, monkeypatch, capsys):
    (tmp_path / "loss.json").write_text(
        json.dumps({"machine": {}, "rows": [{"what": "a", "result": "b"}]})
    )
    status = gpu.main(["--small", "--out", str(tmp_path), "--stages", "decode", "--limit", "0.2"])
    printed = capsys.readouterr().out
    assert status == 1 and "| decode | | took more than 0 s |" in printed
    assert "| loss | a | b |" in printed


def test_a_wrong_number_fails_the_stage(tmp_path, monkeypatch, capsys):
    from dopd_vlm.scripts.checks import gpu_stages

    assert gpu_stages.verdict(1e-3, 1e-6).startswith("WRONG")
    monkeypatch.setattr(
        gpu_stages, "loss", lambda *, is_small: iter([{"what": "x", "result": "WRONG 1"}])
    )
    options = gpu.parse(["--stage", "loss", "--out", str(tmp_path)])
    assert gpu.run_stage(options) == 1


def test_the_table_goes_into_a_file_and_replaces_the_last_one(tmp_path):
    (tmp_path / "loss.json").write_text(
        json.dumps({"machine": {}, "rows": [{"what": "a", "result": "1"}]})
    )
    page = tmp_path / "page.md"
    page.write_text("# Title\n\ntext\n")
    for result in ("1", "2"):
        rows = [{"what": "a", "result": result}]
        (tmp_path / "loss.json").write_text(json.dumps({"machine": {}, "rows": rows}))
        assert gpu.main(["--out", str(tmp_path), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.count(gpu.BEGIN) == 1 and "| loss | a | 2 |" in text and "| a | 1 |" not in text
    assert text.startswith("# Title\n\ntext\n")


def test_the_loss_needs_torch_alone():
    """A machine with torch and Triton, and nothing else of ours, can check the kernels."""
    program = (
        "import sys, dopd_vlm.routed_loss;"
        "print([n for n in ('transformers', 'accelerate', 'jsonargparse', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
