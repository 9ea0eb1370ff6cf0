"""evaluate.py in terminals that are not UTF-8, under Ctrl-C, and with results that can't be written."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import evaluate
from tests import tiny
from tests.runs import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder)
    return folder


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("encoding, more", [("ascii", ["--image", "{run}/frontal.png"]), ("cp1252", ["--help"])])
def test_no_terminal_ends_it(run, encoding, more):
    """Bars of blocks in a report's clues."""
    words = [word.format(run=run) for word in ["--ckpt", "{run}/ckpt.safetensors", *more]]
    done = subprocess.run([sys.executable, "-B", "evaluate.py", *words], cwd=ROOT, capture_output=True,
                          env=environment(PYTHONIOENCODING=encoding))
    assert done.returncode == 0 and not done.stderr and b"?" * (encoding == "ascii") in done.stdout


def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(tmp_path):
    pairs = [{"id": i, "hypothesis": f"no edema {i} " * 60, "reference": f"the heart {i} is large " * 60}
             for i in range(3000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-B", "evaluate.py", "--reports", str(tmp_path / "a.jsonl")], cwd=ROOT,
                               env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "eval-a").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "stopped\n")
    assert list((tmp_path / "eval-a").iterdir()) == []


@pytest.mark.parametrize("way", ["stage 1", "stage 2", "swap", "list", "reports"])
def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path, capsys, way):
    (tmp_path / "file").write_text("")
    (tmp_path / "list.jsonl").write_text('{"id": 1, "images": ["frontal.png"]}')
    (tmp_path / "pairs.jsonl").write_text('{"id": 1, "hypothesis": "a", "reference": "b"}')
    words = {"stage 1": ["--ckpt", str(run / "stage1.safetensors")],
             "stage 2": ["--ckpt", str(run / "ckpt.safetensors")],
             "swap": ["--ckpt", str(run / "ckpt.safetensors"), "--swap"],
             "list": ["--ckpt", str(run / "ckpt.safetensors"), "--list", str(tmp_path / "list.jsonl")],
             "reports": ["--reports", str(tmp_path / "pairs.jsonl")]}[way]
    for out in (tmp_path / "file", tmp_path / "file/x", "/proc/x"):
        assert evaluate.main([*words, "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert "--out" in told and told.count("\n") == 1
