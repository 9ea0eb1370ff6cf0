"""docs/make.py: every picture is whole, small, and says what its sources say; what has no source is named."""

import json
import re
from xml.etree import ElementTree

import pytest

from data.files import whole_file
from docs import make
from tests import tiny
from tests.experiments.grid import SCARCE
from tests.experiments.measures import COUNTS, MIXES, SWAPS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder)
    (folder / "data/manifest.json").write_text('{"options": {"source": "phantom"}}')
    rows = [{"stage": stage, "step": step, "loss": 5 - step / 50}
            for stage in ("stage1", "stage2") for step in range(90)]
    rows += [{"stage": "stage2", "step": step, "validation": {"loss": 3}} for step in (40, 80)]
    rows += [{"stage": "stage2", "step": step, "sample": {"id": "val-1", "report": text, "reference": tiny.REPORTS[2],
                                                          "clues": []}}
             for step, text in ((40, "Moderate <cardiomegaly> & more."), (80, "There is a large left pneumothorax."))]
    with whole_file(folder / "log.jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    names = ["base", "dci", "cmci", "trrg", *(f"dci-{kind}" for kind in (*SWAPS, *MIXES)),
             *(f"{variant}-of-{percent}" for variant in ("base", "steered") for percent in SCARCE)]
    with whole_file(folder / "results.jsonl") as file:
        file.writelines(json.dumps({"name": name, "seed": seed, "studies": dict.fromkeys(COUNTS, "10213")}) + "\n"
                        for name in names for seed in (0, 1))
    return folder


def test_every_picture_is_made(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "CHROME", None)
    command = ["--ckpt", str(run / "ckpt.safetensors"), "--results", str(run / "results.jsonl"), "--out", str(tmp_path)]
    assert make.main(command) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"frontal.png", "lateral.png"}
    texts = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert set(texts) == {"first.svg", "learned.svg", "curves.svg", "ladder.svg", "swaps.svg", "scarce.svg",
                          "mix.svg"}
    assert "gallery.webp: not made" in capsys.readouterr().out
    for name, text in texts.items():
        ElementTree.fromstring(text)
        assert len(text) < 200_000 and "prefers-color-scheme: dark" in text, name
        assert not re.search(r'href="(?!data:)|<script|@import|url\(', text), name           # nothing from elsewhere
    assert texts["first.svg"].count("<image") == 4                                           # two views, a map on each
    assert "step 40" in texts["learned.svg"] and "&lt;cardiomegaly&gt;" in texts["learned.svg"]
    assert texts["ladder.svg"].index("row 0: base") < texts["ladder.svg"].index("dci: clues, raw")
    assert texts["scarce.svg"].count("<circle") == len(make.FIGURES) * (2 * len(SCARCE) + 1)       # base alone has 100 %
    assert texts["mix.svg"].count("<circle") == len(make.FIGURES) * len(MIXES)
    assert "2 seeds" in texts["ladder.svg"] and texts["swaps.svg"].count('class="zero"') == len(make.FIGURES)


def test_what_has_no_source_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "CHROME", None)
    (tmp_path / "log.jsonl").write_text("")
    command = ["--ckpt", str(run / "ckpt.safetensors"), "--results", str(tmp_path / "none.jsonl"), "--log",
               str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out")]
    assert make.main(command) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.svg")] == ["first.svg"]
    assert capsys.readouterr().out.count("not made") == 7


def test_other_data_is_refused(run, tmp_path, capsys):
    tiny.write_data(tmp_path / "data")
    assert make.main(["--ckpt", str(run / "ckpt.safetensors"), "--data", str(tmp_path / "data")]) == 2
    assert "made from the phantom" in capsys.readouterr().err


def test_the_one_wrong_word_is_marked():
    card = {"f": [["Lung Lesion", "differs", "moderate, not large"]],
            "h": [["Nodule, moderate in size.", "differs", ["Lung Lesion"]], ["Clear.", "", []]]}
    assert make.marked(card) == [("Nodule,", "match"), ("moderate", "wrong"), ("in", "match"), ("size.", "match"),
                                 ("Clear.", "")]


def card(note, *sentences, kind="differs"):
    """A card with one finding that differs; `sentences` state it, and a last one nothing."""
    return {"f": [["Pleural Effusion", kind, note]],
            "h": [*([sentence, kind, ["Pleural Effusion"]] for sentence in sentences), ["The lung is clear.", "", []]]}


@pytest.mark.parametrize("note, sentence, wrong", [
    ("severe, not moderate", "A large left effusion.", ["large"]), ("mild, not severe", "Effusion, small.", ["small."]),
    ("mild, not severe", "Mildly blunted left angle.", ["Mildly"]), ("left, not right", "A left effusion.", ["left"]),
    ("both, not left", "Right and left effusions.", ["Right", "and", "left"]),
    ("left, not right; severe, not mild", "Large left effusion.", ["Large", "left"]),
    ("no severity, not mild", "Left effusion.", [])])
def test_the_wrong_word_is_marked_whatever_word_says_it(note, sentence, wrong):
    pieces = make.marked(card(note, sentence))
    assert [word for word, kind in pieces if kind == "wrong"] == wrong
    others = {kind for word, kind in pieces[:len(sentence.split())] if word not in wrong}
    assert others <= ({"match"} if wrong else {"differs"}) and {kind for _, kind in pieces[-4:]} == {""}


def test_the_first_picture_shows_one_wrong_word():
    cards = [card("no severity, not mild", "Left effusion."), card("", "Left effusion.", kind="invented"),
             card("severe, not mild", "Large effusion.", "Effusion, large."),
             card("severe, not mild", "Large effusion.")]
    studies = [({"views": [0, 1]}, one) for one in cards] + [({"views": [0]}, cards[3])]
    assert make.telling(studies)[0] == studies[3]
