"""evaluate.py on checkpoints of both stages: the files it writes, the report of one image, and the user's mistakes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import evaluate
import train
import trrg
from data.dataset import Prepared
from data.images import augment
from data.prompts import clue_prompts
from data.reports import LABELS
from data.tokenizers import SentencePiece
from evaluation import checkpoint, recognition
from evaluation.output import write_json, write_labels
from evaluation.writing import another_study, most_frequent_report
from metrics.chexbert import CheXbert, Labeler
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a toy data set, a stage-1 and a stage-2 checkpoint, and two pictures."""
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder)
    return folder


def test_a_stage_2_checkpoint_gives_reports_scores_floors_and_the_page(run, tmp_path, capsys):
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--out", str(tmp_path / "out"),
                          "--draws", "20"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(5)]
    assert [row["reference"] for row in rows] == [tiny.REPORTS[i % 4] for i in range(5)]
    assert all(len(row["clues"]) == 3 for row in rows)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["settings"]["n"] == 5 and metrics["settings"]["variant"] == "trrg"
    assert set(metrics["language"]) == {"coco", "r2gen"}
    assert set(metrics["floors"]) == {"permuted_pictures", "most_frequent_report"}
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
    monkeypatch.setattr("evaluation.results.find_data", lambda folder: None)
    monkeypatch.setattr(SentencePiece, "decode", lambda self, ids: "Größe \ud800 ✓ \\ud800")
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--data", str(tmp_path / "data"), "--out",
                          str(tmp_path / "out"), "--draws", "5", "--labeler", "phantom"]) == 0
    text = (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["id"], last["reference"]) == ("strange \ud800", "Clear lungs \udfff.")
    assert last["hypothesis"] == "Größe \ud800 ✓ \\ud800"
    assert "Größe \\ud800 ✓ \\\\ud800" in text
    assert "Größe" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    write_labels(tmp_path / "labels.csv", [last])
    assert "strange \\ud800,hypothesis," in (tmp_path / "labels.csv").read_text(encoding="utf-8")
    write_json(tmp_path / "figures.json", {"reports": "file\udcff"})         # as Python has a name that is no UTF-8
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"reports": "file\udcff"}


def test_the_reports_do_not_depend_on_the_batch_size(run, tmp_path):
    for size in ("1", "4"):
        assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--out", str(tmp_path / size),
                              "--batch-size", size,
                              "--draws", "5", "--protocol", "coco"]) == 0
    texts = [[json.loads(line)["hypothesis"] for line in (tmp_path / size / "reports.jsonl").open(encoding="utf-8")]
             for size in ("1", "4")]
    assert texts[0] == texts[1]


def auroc_by_hand(model, folder):
    """{finding: AUROC} by scikit-learn, of τ log mean exp(cos / τ) over a finding's prompts, one study at a time."""
    prepared = Prepared(folder)
    studies, scores = prepared.split("test"), []
    with torch.no_grad():
        for study in studies:
            images = augment(prepared.pictures(study), tiny.CROP)
            v = torch.nn.functional.normalize(model.image_tokens(images).mean((0, 1)), dim=-1)
            of_study = []
            for prompts in clue_prompts():
                ids, mask = trrg.encode_words(model.wordpiece, prompts, 64)
                t = torch.nn.functional.normalize(model.text_tokens(ids, mask)[:, 0], dim=-1)
                of_study.append((model.tau * (t @ v / model.tau).exp().mean().log()).item())
            scores.append(of_study)
    labels = np.array([study["labels"] for study in studies])
    return {name: roc_auc_score(labels[:, i], np.array(scores)[:, i]) for i, name in enumerate(LABELS)}


def test_a_stage_1_checkpoint_gives_recognition_and_retrieval(run, tmp_path):
    labelled = tmp_path / "data"
    tiny.write_data(labelled, test=6)
    rows = [json.loads(line) for line in (labelled / "studies.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(0)
    positive = np.stack([rng.permutation([0, 0, 0, 1, 1, 1]) for _ in LABELS], axis=1)
    for row, labels in zip([row for row in rows if row["split"] == "test"], positive.tolist()):
        row["labels"] = labels
    (labelled / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--ckpt", str(run / "stage1.safetensors"), "--data", str(labelled), "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    expected = auroc_by_hand(trrg.load(run / "stage1.safetensors"), labelled)
    measured = {name: cell["value"] for name, cell in metrics["zero_shot"]["auroc"]["per_finding"].items()}
    assert measured == pytest.approx(expected)
    assert metrics["zero_shot"]["auroc"]["macro"]["value"] == pytest.approx(np.mean(list(expected.values())))
    for way in ("image_to_text", "text_to_image"):
        assert set(metrics["retrieval"][way]) == {"R@1", "R@5", "R@10"}
    assert "<svg" in (tmp_path / "out/report.html").read_text()


def test_the_prompts_of_the_run_are_those_of_its_evaluation(run, tmp_path, monkeypatch):
    """--prompts-per-disease 1 is judged by one prompt per disease."""
    asked = []
    embed = recognition.embed_sentences
    monkeypatch.setattr(recognition, "embed_sentences", lambda model, texts: asked.append(texts) or embed(model, texts))
    tiny.write_run(tmp_path, prompts_per_disease=1)
    for folder, prompts in ((tmp_path, 14), (run, sum(map(len, clue_prompts())))):
        assert evaluate.main(["--ckpt", str(folder / "stage1.safetensors"), "--out", str(tmp_path / "out"),
                              "--draws", "2"]) == 0
        assert len(asked[0]) == prompts and asked[0][0].startswith("Clue: ")
        asked.clear()


def test_one_image_prints_its_report_and_clues(run, capsys):
    pictures = [str(run / "frontal.png"), str(run / "lateral.jpg")]
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--image", *pictures]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("trained on ") and printed.endswith("\nresearch output, no medical advice\n")
    assert "\nReport\n" in printed and printed.count("Clue: ") == 3 and "%" in printed
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--json", "--image", *pictures]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trained_on"].startswith("trained on ") and told["notice"] == "research output, no medical advice"
    expected = trrg.load(run / "ckpt.safetensors").report(pictures)
    assert told["report"] == expected.text
    assert [clue["prompt"] for clue in told["clues"]] == [prompt for prompt, _ in expected.clues]
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), "--explain", "--image", pictures[0]]) == 0
    assert "E^v" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--ckpt", "{run}/nothing.safetensors"], "nothing.safetensors"),
    (["--ckpt", "{run}/frontal.png"], "frontal.png"),
    (["--ckpt", "{run}/ckpt.safetensors", "--data", "{run}/nowhere"], "nowhere: not a prepared data set"),
    (["--ckpt", "{run}/ckpt.safetensors", "--split", "exam"], "no study in the split 'exam'"),
    (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/nothing.png"], "nothing.png: no such file"),
    (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/ckpt.safetensors"], "ckpt.safetensors"),
    (["--ckpt", "{run}/stage1.safetensors", "--image", "{run}/frontal.png"],
     "is a stage-1 checkpoint, which writes no reports, so --image has no effect"),
    ([], "give either --ckpt FILE or --reports FILE"),
    (["--ckpt", "{run}/ckpt.safetensors", "--limit", "some"], "'some' is not a whole number of 1 or more"),
    (["--ckpt", "{run}/ckpt.safetensors", "--seed", "-1"], "'-1' is not a whole number of 0 or more"),
    (["--ckpt", "{run}/ckpt.safetensors", "--exam"], "--exam; --help lists all options"),
    (["--ckpt", "{run}/ckpt.safetensors", "--explain"], "--explain has no effect without --image"),
    (["--ckpt", "{run}/ckpt.safetensors", "--json"], "--json has no effect with a stage-2 checkpoint"),
    (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/frontal.png", "--out", "x"],
     "--out has no effect with --image"),
    (["--ckpt", "{run}/ckpt.safetensors", "--labels-only"], "needs a labeler"),
    (["--ckpt", "{run}/ckpt.safetensors", "--chexbert", "{run}/nowhere"], "nowhere"),
    (["--ckpt", "{run}/ckpt.safetensors", "--meteor-data", "{run}/nowhere"], "nowhere"),
    (["--ckpt", "{run}/ckpt.safetensors", "--against", "{run}/nothing.jsonl"], "nothing.jsonl"),
    (["--ckpt", "{run}/stage1.safetensors", "--against", "{run}/nothing.jsonl"], "so --against has no effect; give the stage-2 checkpoint"),
    (["--ckpt", "{run}/ckpt.safetensors", "--out", "{run}/frontal.png"], "give another folder with --out"),
])
def test_a_mistake_is_one_line_and_exit_code_2(run, capsys, arguments, message):
    assert evaluate.main([argument.format(run=run) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1                  # no bar either: it is said before any work


def changed(folder, change):
    """The data set's studies, each changed in place or, where `change` gives False, left out."""
    path = folder / "studies.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if change(row) is not False), encoding="utf-8")


def test_a_set_without_training_studies_and_a_torn_log(run, tmp_path, capsys):
    """A kill may cut off the log's last line; without training studies the most frequent report is no floor. The log is
    of the checkpoint's run where it tells of the checkpoint's validation."""
    tiny.write_run(tmp_path, step=8, validation={"loss": 1.5})
    changed(tmp_path / "data", lambda row: row["split"] == "test")
    sample = {"id": "val-0", "report": "Clear.", "reference": "No edema.", "clues": []}
    rows = [{"stage": "stage2", "step": 8, **row} for row in ({"validation": {"loss": 1.5}}, {"sample": sample})]
    log = "".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "sta'
    (tmp_path / "log.jsonl").write_text(log, encoding="utf-8")
    assert evaluate.main(["--ckpt", str(tmp_path / "ckpt.safetensors"), "--data", str(tmp_path / "data"),
                          "--draws", "5"]) == 0
    metrics = json.loads((tmp_path / "eval-test/metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["floors"]) == ["permuted_pictures"]
    assert "no training studies" in capsys.readouterr().out
    page = (tmp_path / "eval-test/report.html").read_text(encoding="utf-8")
    assert '<section id="training">' in page and '<section id="learned">' in page and "this checkpoint" in page

    header = checkpoint.header_of(tmp_path / "ckpt.safetensors")
    assert checkpoint.log_of(tmp_path / "ckpt.safetensors", header) == rows
    (tmp_path / "log.jsonl").write_bytes(b'\xff\xfe {\n7\nnull\n{"step": 1}\n' + log.encode())       # a broken disk
    assert checkpoint.log_of(tmp_path / "ckpt.safetensors", header) == rows
    (tmp_path / "log.jsonl").write_text(log.replace("1.5", "NaN"))
    assert checkpoint.log_of(tmp_path / "ckpt.safetensors", {**header, "validation": {"loss": float("nan")}})
    (tmp_path / "log.jsonl").write_text(log)
    for other in ({"step": 4}, {"validation": {"loss": 1.25}}, {"stage": 1}, {"validation": None}):
        assert checkpoint.log_of(tmp_path / "ckpt.safetensors", {**header, **other}) == []


def test_as_many_threads_as_the_preset_trains_with(monkeypatch):
    """On two cores two threads at small networks, beside another program, took up to 24 times as long as one."""
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(checkpoint, "PRESETS", {"small": {"threads": 1}, "large": {"threads": 0}})
    for header in ({"preset": "small"}, {"preset": "large"}, {"preset": "unknown"}, {}):
        checkpoint.take_threads(header)
    assert chosen == [1]


def test_a_checkpoint_against_other_reports(run, tmp_path, capsys):
    command = ["--ckpt", str(run / "ckpt.safetensors"), "--draws", "20", "--protocol", "coco", "--labeler", "phantom"]
    assert evaluate.main([*command, "--out", str(tmp_path / "one")]) == 0
    path = tmp_path / "one/reports.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    against = [*command, "--out", str(tmp_path / "two"), "--against", str(path)]
    for row in rows:
        row["hypothesis"] = row["reference"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]), encoding="utf-8")      # in any order
    assert evaluate.main(against) == 0
    metrics = json.loads((tmp_path / "two/metrics.json").read_text(encoding="utf-8"))
    own, cell = (part["language"]["coco"]["BLEU-1"] for part in (metrics, metrics["against"]))
    assert cell["other"] == pytest.approx(1) and cell["difference"] == pytest.approx(own["value"] - 1)
    assert metrics["against"]["clinical"]["grid"]["micro"]["14"]["positive"]["f1"]["other"] == 1
    assert len(metrics["settings"]["against_sha256_16"]) == 16 and "p, two-sided" in capsys.readouterr().out
    for change in ({"id": "test-9"}, {"reference": "Another one."}):
        path.write_text("".join(json.dumps(row) + "\n" for row in [rows[0] | change, *rows[1:]]), encoding="utf-8")
        assert evaluate.main(against) == 2
        assert "same" in capsys.readouterr().err
    assert evaluate.main([*against, "--out", str(tmp_path / "one")]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_chexbert_reads_both_sides_once(run, tmp_path, monkeypatch):
    """Labels of the data set, as MIMIC-CXR's CSV has them, are another labeler's: both sides are CheXbert's."""
    folder, words = tmp_path / "chexbert", tiny.words()
    folder.mkdir()
    bert = tiny.bert(len(words))
    bert.save_pretrained(folder)
    words.save_pretrained(folder)
    torch.manual_seed(3)
    network = CheXbert(bert.config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    torch.save({"model_state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}},
               folder / "chexbert.pth")
    shutil.copytree(run / "data", tmp_path / "data")
    changed(tmp_path / "data", lambda row: row.update(labels=[3] * 14))
    loaded, texts, read = [], set(), []
    load, encode, heads = Labeler.from_pretrained, Labeler.encode, CheXbert.heads
    monkeypatch.setattr(Labeler, "from_pretrained", lambda *a: loaded.append(a) or load(*a))
    monkeypatch.setattr(Labeler, "encode", lambda self, text: texts.add(text) or encode(self, text))
    monkeypatch.setattr(CheXbert, "heads", lambda self, cls: read.extend(cls) or heads(self, cls))
    command = ["--ckpt", str(run / "ckpt.safetensors"), "--data", str(tmp_path / "data"), "--chexbert", str(folder)]
    assert evaluate.main([*command, "--out", str(tmp_path / "out"), "--draws", "5", "--protocol", "coco"]) == 0
    assert len(loaded) == 1 and len(read) == len(texts) and {*tiny.REPORTS, "No pneumothorax."} <= texts
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["clinical"]["labels_from"] == "CheXbert" and "clinical" in metrics["floors"]["permuted_pictures"]
    assert metrics["settings"]["chexbert"].keys() == {"folder", "chexbert.pth", "vocab.txt"}
    rows = [json.loads(line) for line in (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["labels"]["reference"] for row in rows] == load(folder)([row["reference"] for row in rows],
                                                                        progress=False)
    assert "needs a labeler" not in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert evaluate.main([*command, "--out", str(tmp_path / "labels"), "--labels-only"]) == 0
    # the reports that took the time are kept, and their labels
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["labels.csv", "reports.jsonl"]
    kept = [json.loads(line) for line in (tmp_path / "labels/reports.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["hypothesis"], row["labels"]) for row in kept] == [(row["hypothesis"], row["labels"]) for row in rows]


@pytest.mark.parametrize("source, preset, data", [
    ("phantom", "mimic_cxr", "phantom"), ("openi", "demo", "iu_xray"), ("mimic_cxr", "iu_xray", "mimic_cxr"),
    ("r2gen", "iu_xray", "iu_xray"), ("r2gen", "demo", "demo"), (None, "mimic_cxr", "")])
def test_published_rows_belong_to_the_data_not_to_the_preset(source, preset, data):
    prepared = SimpleNamespace(manifest={"options": {"source": source} if source else {}})
    assert checkpoint.source_of({"preset": preset}, prepared) == data


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


def test_a_run_that_was_moved_finds_its_data_beside_it(run, tmp_path, monkeypatch, capsys):
    """A relative path of the header is tried from the checkpoint's folder and those above it; else --data is named."""
    tiny.write_run(tmp_path / "nameless", data=None)
    assert evaluate.main(["--ckpt", str(tmp_path / "nameless/ckpt.safetensors")]) == 2
    assert "--data" in capsys.readouterr().err
    tiny.write_run(tmp_path / "there", data="data/of/it")
    monkeypatch.chdir(tmp_path)
    command = ["--ckpt", "there/stage1.safetensors", "--draws", "2"]
    assert evaluate.main(command) == 2
    told = capsys.readouterr().err
    assert "data/of/it" in told and "--data" in told and told.count("\n") == 1
    (tmp_path / "there/data/of").mkdir(parents=True)
    (tmp_path / "there/data/of/it").symlink_to(run / "data")
    assert evaluate.main(command) == 0


def test_an_auroc_that_no_finding_has_is_left_out_of_a_validation(monkeypatch):
    """Of two val studies without a finding there is none to tell, and the run goes on without it."""
    monkeypatch.setattr(recognition, "recognise", lambda *args, **more: None)
    monkeypatch.setattr(recognition, "clue_scores", lambda *args: np.zeros((2, len(LABELS))))
    studies = [{"labels": [0] * len(LABELS)}] * 2
    assert recognition.auroc_so_far(None, None, studies, None) is None

    told = []
    processes = SimpleNamespace(world=1, rank=0)
    run = SimpleNamespace(stage=SimpleNamespace(number=1, prepared=None, view_counts=lambda studies: [],
                                                total=lambda loss: loss), model=torch.nn.Linear(1, 1),
                          val=SimpleNamespace(studies=studies), args=SimpleNamespace(batch_size=1, samples=1),
                          processes=processes, keep=lambda figures, select: told.append(figures))
    monkeypatch.setattr("train.reduce", lambda *args: 1.5)
    train.Run.validate(run)
    assert told == [{"loss": 1.5}]
