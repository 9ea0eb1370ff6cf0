"""evaluate.py --reports as a user runs it: files, tables, exit codes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
import metrics
from data.files import UserError
from data.reports import LABELS
from evaluation.labels import phantom_labeler, with_labels
from evaluation.results import Scoring, evaluate_texts
from metrics.clinical import clinical_scores
from metrics.meteor_data import find_data
from tests import real

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["The heart is normal in size. No pleural effusion.",
         "Severe cardiomegaly. There is a small right pleural effusion.",
         "There is a large left pneumothorax.", "Lungs are clear.", "Mild pulmonary edema. No pneumothorax.",
         "There is a moderate left pleural effusion. Support devices are in place."]


def rows(shift=1):
    return [{"id": f"s{i}", "hypothesis": TEXTS[(i + shift) % len(TEXTS)] if i % 2 else text, "reference": text}
            for i, text in enumerate(TEXTS)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def no_data(monkeypatch):
    """As on a machine without METEOR's files."""
    for module in (metrics, sys.modules["evaluation.results"]):
        monkeypatch.setattr(module, "find_data", lambda folder=None: None)


def test_files_and_tables(tmp_path, capsys, no_data):
    path = write(tmp_path / "mine.jsonl", rows())
    assert evaluate.main(["--reports", str(path), "--labeler", "phantom"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "eval-mine" / "metrics.json").read_text(encoding="utf-8"))
    for protocol in ("coco", "r2gen"):
        wanted = metrics.score([row["hypothesis"] for row in rows()], TEXTS, protocol, meteor_data=False)
        found = result["language"][protocol]
        assert list(found) == list(wanted) and "METEOR (exact+stem)" in found
        for name, cell in found.items():
            assert cell["value"] == pytest.approx(wanted[name], abs=1e-12)
            assert cell["low"] <= cell["value"] <= cell["high"]
        assert protocol in printed
    assert "METEOR (exact+stem)" in printed
    assert "METEOR " not in printed.replace("METEOR (exact+stem)", "").replace("METEOR of papers", "")
    grid = clinical_scores(*(np.array([labels for labels, _ in phantom_labeler()([row[side] for row in rows()])])
                             for side in ("hypothesis", "reference")))
    clinical = result["clinical"]
    assert clinical["labels_from"] == "phantom rules"
    found = clinical["grid"]["macro"]["14"]["positive"]["f1"]["value"]
    assert found == pytest.approx(grid["macro"]["14"]["positive"]["f1"])
    assert clinical["per_class"]["positive"]["Cardiomegaly"]["support"] == 1
    settings = result["settings"]
    assert settings["n"] == 6 and len(settings["sha256_16"]) == 16 and "60 words" in settings["protocols"]["r2gen"]
    lines = (tmp_path / "eval-mine" / "reports.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    assert [row["id"] for row in written] == [row["id"] for row in rows()]
    assert len(written[0]["labels"]["hypothesis"]) == 14
    # What was written can be scored again, its labels now given.
    assert evaluate.main(["--reports", str(tmp_path / "eval-mine" / "reports.jsonl"), "--out",
                          str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text(encoding="utf-8"))
    assert again["language"] == result["language"] and again["clinical"]["grid"] == clinical["grid"]
    assert again["clinical"]["labels_from"] == "given"


def test_against(tmp_path, capsys, no_data):
    good, bad = write(tmp_path / "good.jsonl", rows(0)), write(tmp_path / "bad.jsonl", rows(2)[::-1])
    assert evaluate.main(["--reports", str(good), "--against", str(bad), "--protocol", "coco", "--draws", "200"]) == 0
    result = json.loads((tmp_path / "eval-good" / "metrics.json").read_text(encoding="utf-8"))
    cell = result["against"]["language"]["coco"]["BLEU-4"]
    other = metrics.score([row["hypothesis"] for row in rows(2)], TEXTS, meteor_data=False)
    assert cell["other"] == pytest.approx(other["BLEU-4"])
    assert cell["difference"] > 0 and cell["low"] >= 0 and 0 < cell["p"] < 1
    assert cell["difference"] == pytest.approx(result["language"]["coco"]["BLEU-4"]["value"] - other["BLEU-4"])
    assert "p, two-sided" in capsys.readouterr().out and "r2gen" not in result["language"]


def test_truth_needs_known_findings(no_data):
    label = phantom_labeler()
    known, labels_from = with_labels(rows(), label)
    assert labels_from == "phantom rules" and "truth" not in evaluate_texts(known, Scoring(draws=10), "rules")
    for row in known:
        row["findings"]["reference"] = label([row["reference"]])[0][1]
    truth = evaluate_texts(known, Scoring(draws=10), "rules")["truth"]
    assert truth["invented_per_report"]["n"] == 6 and truth["missed_per_report"]["value"] > 0


def test_labels_only(tmp_path):
    given = {"hypothesis": [0, 1, 2, 3] + [0] * 10, "reference": [1] + [0] * 13}
    path = write(tmp_path / "a.jsonl", [row | {"labels": given} for row in rows()])
    assert evaluate.main(["--reports", str(path), "--labels-only", "--out", str(tmp_path / "o")]) == 0
    with open(tmp_path / "o" / "labels.csv", encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["id", "text", *LABELS] and table[1] == ["s0", "hypothesis", "", "1", "0", "-1", *[""] * 10]
    assert len(table) == 13


@pytest.mark.parametrize("change, options, words", [
    (lambda rows: rows[:0], [], "holds no reports"),
    (lambda rows: rows + rows[:1], [], "line 7"),
    (lambda rows: rows, ["--labels-only"], "--chexbert"),
    (lambda rows: [rows[0] | {"labels": [0] * 14}, *rows[1:]], [], "has no labels of its hypothesis"),
    (lambda rows: rows, ["--chexbert", "/nowhere"], "/nowhere"),
    (lambda rows: rows, ["--meteor-data", "/nowhere"], "/nowhere"),
    (lambda rows: rows, ["--against", "/nowhere.jsonl"], "/nowhere.jsonl"),
    (lambda rows: rows, ["--ckpt", "x.safetensors"], "give either --ckpt FILE or --reports FILE"),
    (lambda rows: rows, ["--labeler", "phantom", "--chexbert", "x"], "give one of them"),
    (lambda rows: rows, ["--limit", "3"], "--limit has no effect with --reports: it belongs to a stage-"),
    (lambda rows: rows, ["--split", "val"], "--split has no effect with --reports: it belongs to a stage-"),
    (lambda rows: rows, ["--beams", "3"], "--beams has no effect with --reports: it belongs to a stage-2"),
    (lambda rows: rows, ["--image", "a.png"], "--image has no effect with --reports"),
    (lambda rows: rows, ["--labeler", "phantom", "--labels-only", "--against", "x"],
     "--against has no effect with --labels-only"),
    (lambda rows: rows, ["--seed", "-1"], "--seed: '-1' is not a whole number of 0 or more"),
    (lambda rows: rows, ["--protocol", "bleu"], "--help lists all options"),
    (lambda rows: rows, ["--out", "/dev/null"], "give another folder with --out"),
])
def test_mistakes_exit_with_2_and_one_line(tmp_path, capsys, change, options, words):
    path = write(tmp_path / "a.jsonl", change(rows()))
    assert evaluate.main(["--reports", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "eval-a" / "metrics.json").exists()


def test_no_result_replaces_what_was_read(tmp_path, capsys):
    path = write(tmp_path / "reports.jsonl", rows())
    before, other = path.read_bytes(), write(tmp_path / "other.jsonl", rows(0))
    for command in (["--reports", str(path)], ["--reports", str(other), "--against", str(path)]):
        assert evaluate.main([*command, "--out", str(tmp_path)]) == 2
        assert "would be overwritten" in capsys.readouterr().err and path.read_bytes() == before


def test_a_failing_disk_is_one_line_and_exit_code_1(tmp_path, capfd):
    path = write(tmp_path / "a.jsonl", rows())
    (tmp_path / "eval-a" / "report.html").mkdir(parents=True)
    assert evaluate.main(["--reports", str(path), "--draws", "5"]) == 1
    error = capfd.readouterr().err
    assert "report.html" in error and error.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_output_is_one_line_and_exit_code_1(tmp_path):
    path = write(tmp_path / "a.jsonl", rows())
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-B", "evaluate.py", "--reports", str(path), "--draws", "5",
                               "--protocol", "coco"],
                              cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left" in done.stderr and done.stderr.count("\n") == 1


def test_against_other_studies(tmp_path, capsys):
    mine = write(tmp_path / "a.jsonl", rows())
    for other in (rows()[:-1], [rows()[0] | {"id": "new"}, *rows()[1:]], [rows()[0] | {"reference": "x"}, *rows()[1:]]):
        assert evaluate.main(["--reports", str(mine), "--against", str(write(tmp_path / "b.jsonl", other))]) == 2
        assert "id '" in capsys.readouterr().err


@pytest.mark.parametrize("one, other, same", [
    ("abc", ["abc"], True), (["p", "q"], ["p", "q"], True), (["p", "q"], ["p", "r"], False),
    ("ab", ["ab", "zzz"], False)])
def test_against_compares_every_reference(no_data, one, other, same):
    mine, theirs = ([{"id": "1", "hypothesis": "x", "reference": reference}] for reference in (one, other))
    if same:
        evaluate_texts(mine, Scoring(draws=2), against=theirs)
    else:
        with pytest.raises(UserError, match="different references for id '1'"):
            evaluate_texts(mine, Scoring(draws=2), against=theirs)


def test_strange_texts_are_scored(tmp_path, no_data):
    strange = ["", " ", "a\u2028b", "\x00\x85", "." * 300, "no " * 200, "x" * 5000, "||| a ||| b", "<unk> &amp; \ud83d",
               "9" * 400, "'" * 50,
               "(" * 99, "-" * 99, "\u200b", "心臓", "a.b." * 200]
    pairs = [{"id": i, "hypothesis": a, "reference": [b, a]}
             for i, (a, b) in enumerate(zip(strange, strange[1:] + strange[:1]))]
    assert evaluate.main(["--reports", str(write(tmp_path / "a.jsonl", pairs)), "--draws", "20"]) == 0
    result = json.loads((tmp_path / "eval-a" / "metrics.json").read_text(encoding="utf-8"))
    assert all(0 <= cell["value"] <= 10 for cell in result["language"]["coco"].values())


def test_scoring_given_texts_needs_no_torch(tmp_path):
    path = write(tmp_path / "a.jsonl", rows())
    program = ("import sys, evaluate; code = evaluate.main(sys.argv[1:]); "
               "sys.exit(code or 3 * any(name in sys.modules for name in ('torch', 'pycocoevalcap', 'PIL')))")
    done = subprocess.run([sys.executable, "-B", "-c", program, "--reports", str(path), "--draws", "10"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_real_pairs(tmp_path, no_data):
    assert evaluate.main(["--reports", str(real("peer_predictions_iu.jsonl")), "--out", str(tmp_path),
                          "--draws", "100"]) == 0
    language = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["language"]
    # From pycocoevalcap with Java.
    wanted = {"BLEU-1": 0.31081646061038576, "BLEU-2": 0.1862505095613741, "BLEU-3": 0.12158832987614844,
              "BLEU-4": 0.08380493508749942, "METEOR (exact+stem)": 0.14419372287339016, "ROUGE-L": 0.2594755508608756,
              "CIDEr": 0.18921918951699124}
    assert {name: cell["value"] for name, cell in language["coco"].items()} == pytest.approx(wanted, abs=1e-12)
    assert language["r2gen"]["BLEU-1"]["value"] > language["coco"]["BLEU-1"]["value"]


@pytest.mark.skipif(find_data() is None, reason="needs METEOR's data")
def test_full_meteor_of_the_real_pairs():
    pairs = [json.loads(line) for line in real("peer_predictions_iu.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = metrics.score(*([row[side] for row in pairs] for side in ("hypothesis", "reference")))
    assert scores["METEOR"] == pytest.approx(0.14893836762232462, abs=1e-12)         # the jar's


@pytest.mark.skipif(find_data() is None, reason="METEOR's data is not installed (pycocoevalcap)")
def test_full_meteor_is_named_so(tmp_path, capsys):
    assert evaluate.main(["--reports", str(write(tmp_path / "a.jsonl", rows())), "--draws", "10"]) == 0
    result = json.loads((tmp_path / "eval-a" / "metrics.json").read_text(encoding="utf-8"))
    assert "METEOR" in result["language"]["coco"] and len(result["settings"]["meteor"]["meteor-1.5.jar"]) == 16
    assert "exact+stem" not in capsys.readouterr().out


def test_rexrank_is_written_without_any_reference(tmp_path, no_data, capsys):
    path, out = write(tmp_path / "a.jsonl", rows()), tmp_path / "sent" / "rexrank.json"
    assert evaluate.main(["--reports", str(path), "--draws", "2", "--protocol", "coco", "--rexrank", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == {row["id"]: {"model_prediction": row["hypothesis"]}
                                                           for row in rows()}
    for wrong in (tmp_path, path):
        assert evaluate.main(["--reports", str(path), "--rexrank", str(wrong)]) == 2
        assert "--rexrank" in capsys.readouterr().err
    # and what stands in their form is scored
    theirs = {row["id"]: {"model_prediction": row["hypothesis"], "section_findings": row["reference"]}
              for row in rows()}
    (tmp_path / "theirs.json").write_text(json.dumps(theirs), encoding="utf-8")
    for name in ("a.jsonl", "theirs.json"):
        more = ["--section", "findings"] if name.endswith(".json") else []
        assert evaluate.main(["--reports", str(tmp_path / name), *more, "--draws", "2",
                              "--out", str(tmp_path / name[0])]) == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))["language"] for name in "at")
    assert one == two
