"""The README's commands as a person types them, at toy size: on a phantom, and on real pictures where they are there."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from data import prepare
from model.bert import Bert
from model.mistral import Mistral
from model.swin import Swin
from tests import real
from tests.runs import ROOT, same_weights


def run(folder, line, code=0):
    """Runs a command line of the README's in a folder of its own; returns what it prints."""
    program, *words = line.split()
    assert program == "python"
    words = words if words[0] == "-m" else [str(ROOT / words[0]), *words[1:]]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's first line ran on a phantom of a few studies, with few steps a stage."""
    folder = tmp_path_factory.mktemp("demo")
    prepare.phantom(folder / "datasets" / "demo", counts=(96, 8, 12), size=128)
    run(folder, "python train.py --max-steps 3")
    run(folder, "python evaluate.py --ckpt runs/demo/ckpt.safetensors")
    return folder


def test_the_base_weights_are_a_folder_as_published_ones_are(folder):
    weights = folder / "weights" / "demo"
    for network, part in ((Swin, "swin"), (Bert, "bert"), (Mistral, "mistral")):
        network.from_pretrained(weights / part)
    assert {path.name for path in weights.rglob("*") if path.suffix in (".txt", ".model")} == {"vocab.txt", "tokenizer.model"}


def test_the_report_writer_holds_the_language_model_as_it_was(folder):
    base = load_file(folder / "weights" / "demo" / "mistral" / "model.safetensors")
    tuned = load_file(folder / "runs" / "demo" / "ckpt.safetensors")
    held = {name.removeprefix("language_model."): tensor for name, tensor in tuned.items()
            if name.startswith("language_model.") and ".lora_" not in name}
    assert held.keys() == base.keys() and all(held[name].equal(tensor) for name, tensor in base.items())
    assert any(tensor.any() for name, tensor in tuned.items() if name.endswith(".lora_B"))


def test_every_study_has_a_report_a_score_and_a_place_on_the_page(folder):
    out = folder / "runs" / "demo" / "eval-test"
    rows = [json.loads(line) for line in (out / "reports.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(len(row["clues"]) == 3 for row in rows)
    assert {"language", "clinical", "truth", "floors"} <= json.loads((out / "metrics.json").read_text()).keys()
    assert all(row["id"] in (out / "report.html").read_text() for row in rows)


def test_the_first_line_again_goes_on_where_it_stopped(folder):
    before = (folder / "runs" / "demo" / "ckpt.safetensors").read_bytes()
    run(folder, "python train.py --max-steps 3")
    assert (folder / "runs" / "demo" / "ckpt.safetensors").read_bytes() == before


def test_the_stand_ins_are_the_same_from_the_same_seed(folder, tmp_path):
    (tmp_path / "datasets").symlink_to(folder / "datasets")
    run(tmp_path, "python train.py --max-steps 1 --stage 1")
    for part in ("swin", "bert", "mistral"):
        assert same_weights(*(at / "weights" / "demo" / part / "model.safetensors" for at in (folder, tmp_path)))


def test_real_pictures_and_texts_go_the_whole_way(folder, tmp_path):
    run(tmp_path, f"python -m data.prepare r2gen --raw {real('cxr_cases')} --out cases --size 128")
    pictures = np.load(tmp_path / "cases" / "images.npy", mmap_mode="r")
    counts = json.loads((tmp_path / "cases" / "manifest.json").read_text())["counts"]
    studies = [json.loads(line) for line in (tmp_path / "cases" / "studies.jsonl").read_text().splitlines()]
    assert len(studies) == counts["train"] + counts["val"] + counts["test"] > 100
    assert len(pictures) >= len(studies) and all(picture.std() > 5 for picture in pictures)       # none is blank
    (tmp_path / "own").mkdir()                       # an empty folder that is named is filled, a missing one refused
    printed = run(tmp_path, "python train.py --data cases --weights own --run run --max-steps 3 --report-tokens 40")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert max(line.get("cut", 0) for line in log) > 0, printed                                    # a page is over 40 tokens
    run(tmp_path, "python evaluate.py --ckpt run/ckpt.safetensors --data cases --beams 1")
    assert len((tmp_path / "run" / "eval-test" / "reports.jsonl").read_text().splitlines()) == counts["test"]


def test_a_real_picture_gets_a_report_with_its_clues(folder):
    pictures = sorted(path for path in real("images").iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
    assert pictures
    for picture in pictures:
        told = json.loads(run(folder, f"python evaluate.py --ckpt runs/demo/ckpt.safetensors --image {picture} --json"))
        assert told["report"].strip() and len(told["clues"]) == 3
