"""The measurements for a GPU, rehearsed on the CPU at toy size."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.bench import gpu, train


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(device="cpu", shape="toy", out=tmp_path, work=tmp_path, seconds=60, part="a part")


def results(folder):
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_parity(args):
    gpu.parity(args)
    rows = results(args.out)
    assert all(row["ok"] for row in rows) and len({row["what"] for row in rows}) == 7
    assert all(row["output_error"] == 0 for row in rows if row["precision"] == "fp32")
    assert all(row["output_error"] > 0 for row in rows if row["precision"] == "bf16")


def test_decoding(args):
    pytest.importorskip("transformers")
    gpu.decode(args)
    rows = [row for row in results(args.out) if row["what"] == "decode"]
    assert {(row["batch"], row["beams"]) for row in rows} == {(1, 1), (8, 1), (1, 3), (8, 3), (16, 1)}
    assert {row["side"] for row in rows} == {"plain", "captured", "transformers"}
    assert all(row["same_tokens_as_plain"] == 1 for row in rows)


def test_steps(args, monkeypatch):
    pytest.importorskip("peft")
    gpu.stage_1(args)
    gpu.stage_2(args)
    rows = results(args.out)
    assert len(rows) == 8 and not [row for row in rows if "error" in row]
    for of_stage in (rows[:3], rows[3:]):
        losses = [row["first_loss"] for row in of_stage]
        assert max(losses) == pytest.approx(min(losses), rel=1e-3)
    assert all(row["gb_estimated"] > 0 for row in rows if row["side"] == train.OURS)


def test_one_that_fails_spares_the_others(args):
    with gpu.spared(args, what="a case"):
        raise RuntimeError("no kernel for that")
    gpu.emit(args, what="another")
    assert [row.get("error") for row in results(args.out)] == ["RuntimeError: no kernel for that", None]


def test_a_part_that_fails_or_hangs_leaves_a_line(tmp_path):
    """There is no GPU here; and nothing is done within no time."""
    command = [sys.executable, "-m", "tests.bench.gpu", "--shape", "toy", "--only", "device"]
    failed = subprocess.run([*command, "--out", tmp_path / "failed"], cwd=gpu.ROOT, capture_output=True, text=True)
    hung = subprocess.run([*command, "--device", "cpu", "--minutes", "0.02", "--out", tmp_path / "hung"], cwd=gpu.ROOT,
                          capture_output=True, text=True)
    assert failed.returncode == hung.returncode == 0
    (row,) = results(tmp_path / "failed")
    assert row["part"] == "device" and row["exit_code"] == 1 and row["error"]
    assert json.loads(failed.stdout) == row and "Traceback" in (tmp_path / "failed" / "gpu.log").read_text()
    assert results(tmp_path / "hung") == [{"part": "device", "error": "stopped after 1 s"}]
