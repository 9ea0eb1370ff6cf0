"""SembScore, BERTScore, RadGraph-F1 and RadCliQ together: in Python, and through evaluate.py, on random weights."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

import evaluate
import metrics
from data.files import UserError, file_digest
from metrics.bertscore import BertScorer
from metrics.chexbert import CheXbert, Labeler
from metrics.model_based import ModelScores
from metrics.radcliq import radcliq_scores
from metrics.radgraph import LEVELS, RadGraph
from tests import runs, tiny
from tests.bench.record_radgraph import write_archive

REFERENCES = [tiny.REPORTS[0], [tiny.REPORTS[1], tiny.REPORTS[2]], tiny.REPORTS[3], "No effusion."]
HYPOTHESES = [tiny.REPORTS[1], tiny.REPORTS[2], "", "Half a pair \ud800, an effusion\n"]
SEMBSCORE, LOWER = "SembScore (CheXbert vectors)", "RadCliQ-v1 (lower is better"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{option: folder} of three small networks with wide random weights."""
    place, words = tmp_path_factory.mktemp("networks"), tiny.words()
    torch.manual_seed(3)
    network = CheXbert(tiny.bert(len(words)).config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    for name in ("chexbert", "bertscore"):
        network.bert.save_pretrained(place / name)
        words.save_pretrained(place / name)
    torch.save({"model_state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}},
               place / "chexbert" / "chexbert.pth")
    write_archive(place / "radgraph", "radgraph")
    return {name: place / name for name in ("chexbert", "bertscore", "radgraph")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder)
    return folder


def options(folders):
    return [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]


def by_hand(folders, hypotheses, references):
    """{name: [a score of each pair]}, each metric called by itself."""
    bertscore = BertScorer.from_pretrained(folders["bertscore"])
    radgraph = RadGraph.from_pretrained(folders["radgraph"])
    semb = Labeler.from_pretrained(folders["chexbert"]).similarity(hypotheses, references)
    f1, levels = bertscore(hypotheses, references)[:, 2], radgraph.scores(hypotheses, references)
    return {SEMBSCORE: semb, bertscore.name(): f1,
            **{f"RadGraph-F1, {level} (radgraph)": levels[level] for level in LEVELS},
            **radcliq_scores(levels["combined"], f1, semb, hypotheses, references, ("radgraph", bertscore.name()))}


def test_the_best_reference_counts_and_all_three_give_radcliq(folders):
    found = ModelScores.from_pretrained(**folders)(HYPOTHESES, REFERENCES, progress=False)
    one, other = (by_hand(folders, HYPOTHESES, [reference if isinstance(reference, str) else reference[which]
                                                for reference in REFERENCES]) for which in (0, 1))
    assert list(found) == list(one) and sum(name.startswith("RadCliQ") for name in found) == 2
    for name, values in found.items():
        best = np.minimum if name.startswith("RadCliQ") else np.maximum
        assert values == pytest.approx(best(one[name], other[name]), abs=1e-5), name
    assert found["RadGraph-F1, simple (radgraph)"].max() > 0 and not np.allclose(one[SEMBSCORE], other[SEMBSCORE])
    two = ModelScores.from_pretrained(chexbert=folders["chexbert"], radgraph=folders["radgraph"])
    assert len(two(HYPOTHESES, REFERENCES)) == 1 + len(LEVELS)


def test_score_takes_them(folders):
    models = ModelScores.from_pretrained(**folders)
    found = metrics.score(HYPOTHESES, REFERENCES, meteor_data=False, models=models)
    plain = metrics.score(HYPOTHESES, REFERENCES, meteor_data=False)
    means = {name: values.mean() for name, values in models(HYPOTHESES, REFERENCES).items()}
    inverse = {name: value for name, value in found.items() if name.startswith("1 / RadCliQ")}
    assert found == pytest.approx(plain | means | inverse, abs=1e-9, nan_ok=True) and len(inverse) == 2


def test_a_checkpoint_its_floors_and_other_reports_are_scored(folders, run, tmp_path, monkeypatch, capsys):
    read = {"CheXbert": [], "BERTScore": [], "RadGraph": []}

    def noting(owner, method, name, texts_of):
        work = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda self, *args: read[name].extend(texts_of(*args)) or work(self, *args))

    noting(Labeler, "encode", "CheXbert", lambda text: [text])
    noting(BertScorer, "add_vectors", "BERTScore", lambda vectors, encoded: encoded)
    noting(RadGraph, "word_vectors", "RadGraph", lambda words: words)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"id": f"test-{i}", "hypothesis": tiny.REPORTS[i % 4],
                                         "reference": tiny.REPORTS[i % 4]}) + "\n" for i in range(5)))
    assert evaluate.main(["--ckpt", str(run / "ckpt.safetensors"), *options(folders), "--out", str(tmp_path / "out"),
                          "--draws", "20", "--protocol", "coco", "--against", str(other)]) == 0

    # Each text once, whichever system wrote it; CheXbert also labels the single sentences of the page.
    rows = [json.loads(line) for line in (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {row[side] for row in rows for side in ("hypothesis", "reference")}
    assert all(texts <= set(of_network) and len(of_network) == len(set(of_network)) for of_network in read.values())

    # The figures are the metrics' own, of the model, of its floors, and of the other reports.
    result = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    references = [row["reference"] for row in rows]
    wanted = by_hand(folders, [row["hypothesis"] for row in rows], references)
    for name, values in wanted.items():
        cell = result["model_based"][name]
        of_rows = [row["scores"][name] for row in rows]
        assert of_rows == pytest.approx(values, abs=1e-5) and np.mean(of_rows) == pytest.approx(cell["value"])
        assert cell["low"] <= cell["value"] <= cell["high"]
    frequent = by_hand(folders, [tiny.REPORTS[0]] * 5, references)
    of_floor = result["floors"]["most_frequent_report"]["model_based"]
    assert {name: of_floor[name]["value"] for name in frequent} == pytest.approx(
        {name: np.mean(values) for name, values in frequent.items()}, abs=1e-5)
    assert result["floors"]["permuted_pictures"]["model_based"].keys() == of_floor.keys()
    against = result["against"]["model_based"][SEMBSCORE]
    assert against["other"] == pytest.approx(1)
    assert against["difference"] == pytest.approx(np.mean(wanted[SEMBSCORE]) - 1, abs=1e-5)

    # Their names, and what the files were, stand wherever they are shown.
    page, printed = (tmp_path / "out/report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert sum(name.startswith(f"1 / {LOWER.replace('lower', 'higher')}") for name in of_floor) == 1
    assert f"BERTScore ({folders['bertscore'].name}, layer 1, no idf, not rescaled)" in of_floor
    for shown in (*page.split('<section id="floors">'), *printed.split("Floors: ")):
        assert all(name in shown for name in of_floor)
    assert result["settings"]["bertscore"] == {
        "folder": str(folders["bertscore"]),
        "model.safetensors": file_digest(folders["bertscore"] / "model.safetensors")}
    assert result["settings"]["radgraph"].keys() == {"folder", "radgraph.tar.gz"}


def test_given_texts_are_scored_without_labels(folders, tmp_path):
    """By BERTScore alone, texts that carry no labels and are read by no labeler."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "hypothesis": hypothesis, "reference": reference}) + "\n"
                            for i, (hypothesis, reference) in enumerate(zip(HYPOTHESES, REFERENCES))))
    assert evaluate.main(["--reports", str(path), "--bertscore", str(folders["bertscore"]), "--draws", "5"]) == 0
    result = json.loads((tmp_path / "eval-a/metrics.json").read_text(encoding="utf-8"))
    wanted = BertScorer.from_pretrained(folders["bertscore"])(HYPOTHESES, REFERENCES)[:, 2].mean()
    (cell,) = result["model_based"].values()
    assert cell["value"] == pytest.approx(wanted, abs=1e-5) and "clinical" not in result


def say_who_loads():
    """In a process of a run: prints its rank whenever it reads CheXbert's folder."""
    load = Labeler.from_pretrained
    Labeler.from_pretrained = lambda *args: print("loads:", os.environ.get("RANK")) or load(*args)


def test_two_processes_find_what_one_does_and_the_first_alone_loads(folders, run, tmp_path):
    command = ["--ckpt", run / "ckpt.safetensors", *options(folders), "--draws", "5", "--protocol", "coco",
               "--batch-size", "2", "--out"]
    for world in (1, 2):
        code, out, err = runs.run("evaluate", [*command, tmp_path / str(world)], tmp_path / f"run-{world}", world,
                                  hook=say_who_loads)
        assert code == 0, err
    assert [line for line in out.splitlines() if "loads:" in line] == ["loads: 0"]
    for name in ("metrics.json", "reports.jsonl"):
        one, two = ((tmp_path / world / name).read_text(encoding="utf-8") for world in "12")
        assert one == two


def test_two_processes_refuse_a_folder_in_one_line(folders, run, tmp_path):
    command = ["--ckpt", run / "ckpt.safetensors", "--radgraph", tmp_path, "--out", tmp_path / "out"]
    code, _, err = runs.run("evaluate", command, tmp_path / "run", world=2)
    assert abs(code) == 9 or code == 2                                   # the other one is ended
    assert err.count("\n") == 1 and "neither of radgraph.tar.gz" in err
    assert not (tmp_path / "out/reports.jsonl").exists()


@pytest.mark.parametrize("option, damaged", [
    ("chexbert", "chexbert.pth"), ("chexbert", "vocab.txt"), ("bertscore", "model.safetensors"),
    ("bertscore", "config.json"), ("radgraph", "radgraph.tar.gz"), ("radgraph", "vocab.txt")])
@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_bad_folder_is_one_line_before_any_report(folders, run, tmp_path, capsys, monkeypatch, option, damaged, how):
    shutil.copytree(folders[option], tmp_path / option)
    if how == "missing":
        (tmp_path / option / damaged).unlink()
    else:
        (tmp_path / option / damaged).write_bytes((tmp_path / option / damaged).read_bytes()[:40])
    monkeypatch.setattr("evaluation.checkpoint.write_reports", lambda *args, **more: pytest.fail("it began to write"))
    for name in ("--ckpt", "--reports"):
        (tmp_path / "a.jsonl").write_text('{"id": 1, "hypothesis": "no edema", "reference": "no effusion"}\n')
        path = run / "ckpt.safetensors" if name == "--ckpt" else tmp_path / "a.jsonl"
        command = [name, str(path), f"--{option}", str(tmp_path / option), "--out", str(tmp_path / "o")]
        assert evaluate.main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and str(tmp_path / option) in told, told
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize("hypotheses, references", [(["a"], []), ([], []), (["a"], [[]]), ([1], ["a"])])
def test_sides_that_do_not_match_are_refused(hypotheses, references):
    with pytest.raises(UserError):
        ModelScores()(hypotheses, references)


def test_other_references_are_refused_before_any_network_or_report(folders, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelScores, "from_pretrained", lambda **kinds: pytest.fail("it read a network"))
    for name, reference in (("a", "No edema."), ("b", "No effusion.")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(
            {"id": f"test-{i}", "hypothesis": "x", "reference": reference}) + "\n" for i in range(5)))
    for path in (["--ckpt", str(run / "ckpt.safetensors")], ["--reports", str(tmp_path / "a.jsonl")]):
        assert evaluate.main([*path, "--against", str(tmp_path / "b.jsonl"), *options(folders), "--out",
                              str(tmp_path / "o")]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "different references for id 'test-0'" in told
