"""evaluate.py on checkpoints of both stages: the files it writes, the report of one image, and the user's mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import trrg
from data.dataset import Prepared
from data.reports import LABELS
from data.tokenizers import SentencePiece
from inference import another_study, most_frequent_report
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a toy data set, a stage-1 and a stage-2 checkpoint, and two pictures."""
    folder = tmp_path_factory.mktemp("run")
    tiny.write_data(folder / "data", test=5)
    model = tiny.model()
    header = {"pictures": model.pictures, "data": str(folder / "data"), "preset": "demo", "decoding": model.decoding}
    trrg.save(folder / "ckpt.safetensors", model, {**header, "base": {"folder": "nowhere"}}, embed_base=True)
    aligned = tiny.alignment()
    trrg.save_alignment(folder / "stage1.safetensors", aligned, aligned.words, header)
    rng = np.random.default_rng(0)
    for name, shape in (("frontal.png", (40, 50)), ("lateral.jpg", (50, 40, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def test_a_stage_2_checkpoint_gives_reports_scores_floors_and_the_page(run, tmp_path, capsys):
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--out", str(tmp_path / "out"), "--draws", "20"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(5)]
    assert [row["reference"] for row in rows] == [tiny.REPORTS[i % 4] for i in range(5)]
    assert all(len(row["clues"]) == 3 for row in rows)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["settings"]["n"] == 5 and metrics["settings"]["variant"] == "trrg"
    assert set(metrics["language"]) == {"coco", "r2gen"} and set(metrics["floors"]) == {"permuted_pictures", "most_frequent_report"}
    assert set(metrics["language"]["coco"]["BLEU-4"]) == {"value", "low", "high"}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>") and "test-0" in page
    printed = capsys.readouterr().out
    assert "Floors" in printed and "NEAR ITS FLOOR" in printed       # random weights cannot look at a picture


def test_half_a_surrogate_pair_in_a_text_breaks_no_file(run, tmp_path, monkeypatch):
    """UTF-8 has no form for it; JSON's escapes have, so nothing is lost. All other text stands there as it is."""
    shutil.copytree(run / "data", tmp_path / "data")
    rows = [json.loads(line) for line in (tmp_path / "data/studies.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[-1].update(id="strange \ud800", report="Clear lungs \udfff.")
    (tmp_path / "data/studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr("metrics.results.find_data", lambda folder: None)
    monkeypatch.setattr(SentencePiece, "decode", lambda self, ids: "Größe \ud800 ✓ \\ud800")
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--data", str(tmp_path / "data"), "--out",
                          str(tmp_path / "out"), "--draws", "5", "--labeler", "phantom"]) == 0
    text = (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["id"], last["reference"]) == ("strange \ud800", "Clear lungs \udfff.")
    assert last["hypothesis"] == "Größe \ud800 ✓ \\ud800"
    assert "Größe \\ud800 ✓ \\\\ud800" in text
    assert "Größe" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    evaluate.write_labels(tmp_path / "labels.csv", [last])
    assert "strange \\ud800,hypothesis," in (tmp_path / "labels.csv").read_text(encoding="utf-8")
    evaluate.write_json(tmp_path / "figures.json", {"reports": "file\udcff"})         # as Python has a name that is no UTF-8
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"reports": "file\udcff"}


def test_the_reports_do_not_depend_on_the_batch_size(run, tmp_path):
    for size in ("1", "4"):
        assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--out", str(tmp_path / size), "--batch-size", size,
                              "--draws", "5", "--protocol", "coco"]) == 0
    texts = [[json.loads(line)["hypothesis"] for line in (tmp_path / size / "reports.jsonl").open(encoding="utf-8")]
             for size in ("1", "4")]
    assert texts[0] == texts[1]


def test_a_stage_1_checkpoint_gives_recognition_and_retrieval(run, tmp_path):
    labelled = tmp_path / "data"
    tiny.write_data(labelled, test=6)
    rows = [json.loads(line) for line in (labelled / "studies.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["labels"] = [(number + i) % 2 for i in range(14)]
    (labelled / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--ckpt", str(run / "stage1.safetensors"), "--data", str(labelled), "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(metrics["zero_shot"]["auroc"]["per_finding"]) == set(LABELS)
    assert 0 <= metrics["zero_shot"]["auroc"]["macro"]["value"] <= 1
    for way in ("image_to_text", "text_to_image"):
        assert set(metrics["retrieval"][way]) == {"R@1", "R@5", "R@10"}
    assert "<svg" in (tmp_path / "out/report.html").read_text()


def test_one_image_prints_its_report_and_clues(run, capsys):
    pictures = [str(run / "frontal.png"), str(run / "lateral.jpg")]
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--image", *pictures]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Report\n") and printed.count("Clue: ") == 3 and "%" in printed
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--json", "--image", *pictures]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = trrg.load(run / "ckpt.safetensors").report(pictures)
    assert told["report"] == expected.text and [clue["prompt"] for clue in told["clues"]] == [prompt for prompt, _ in expected.clues]
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--explain", "--image", pictures[0]]) == 0
    assert "E^v" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--ckpt", "{run}/nothing.safetensors"], "nothing.safetensors"),
    (["--ckpt", "{run}/frontal.png"], "frontal.png"),
    (["--ckpt", "{run}/ckpt.safetensors", "--data", "{run}/nowhere"], "nowhere: no prepared data set"),
    (["--ckpt", "{run}/ckpt.safetensors", "--split", "exam"], "no study in the split 'exam'"),
    (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/nothing.png"], "nothing.png: no such file"),
    (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/ckpt.safetensors"], "ckpt.safetensors"),
    (["--ckpt", "{run}/stage1.safetensors", "--image", "{run}/frontal.png"], "stage-1 checkpoint writes no reports"),
    ([], "name --ckpt FILE or --reports FILE"),
])
def test_a_mistake_is_one_line_and_exit_code_2(run, capsys, arguments, message):
    assert evaluate.main([argument.format(run=run) for argument in arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and "Traceback" not in told


def test_the_permuted_floor_shows_every_study_another_ones_pictures(run):
    studies = Prepared(run / "data").split("test")
    others = another_study(studies)
    assert sorted(others) == list(range(5)) and all(i != other for i, other in enumerate(others))
    mixed = [{"views": [0]}, {"views": [1, 2]}, {"views": [3]}]
    assert another_study(mixed) == [2, 1, 0]                      # nobody shares the second's number of views


def test_the_most_frequent_report_is_counted(run):
    assert most_frequent_report([{"report": text} for text in ("a.", "b.", "b.", "a.", "b.")]) == "b."


def test_chance_does_not_reach_evaluation(run):
    model = trrg.load(run / "ckpt.safetensors")
    torch.manual_seed(1)
    first = model.report([run / "frontal.png"])
    torch.manual_seed(2)
    assert model.report([run / "frontal.png"]) == first
