"""--swap: what is put in the place of pictures and clues, what it is measured by, and the verdict."""

import json

import numpy as np
import pytest
import torch

import evaluate
import trrg
from data.dataset import Prepared
from data.files import UserError
from data.prepare import phantom
from data.prompts import clue_prompts
from data.reports import LABELS
from evaluation.changed import (
    chosen_of,
    fitting,
    no_pictures,
    of_other_findings,
    outcomes,
    own_clues,
    surprises,
    swapped,
)
from evaluation.verdicts import CLUES, PICTURES, what_it_reads
from evaluation.writing import another_study
from tests import runs, tiny
from training.processes import Processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small phantom, and a checkpoint of each variant that never learned anything from it."""
    path = tmp_path_factory.mktemp("swap")
    phantom(path / "data", (8, 4, 9), 0, tiny.SIZE, 1)
    for variant in trrg.VARIANTS:
        model = tiny.model(variant=variant)
        header = {"pictures": model.pictures, "data": str(path / "data"), "preset": "demo", "decoding": model.decoding}
        trrg.save(path / f"{variant}.safetensors", model, {**header, "base": {"folder": "nowhere"}}, embed_base=True)
    return path


def test_what_each_kind_of_swap_injects(place):
    studies, model = Prepared(place / "data").split("test"), tiny.model()
    labels = np.array([study["labels"] for study in studies])
    own = own_clues(outcomes(model, Prepared(place / "data"), studies, Processes(), 4, write=False))
    present = [{i for i, value in enumerate(of_study) if value == 1} for of_study in labels]
    injected = {kind: [set(of_study) for of_study in swapped(model, own, studies, kind, labels).diseases()]
                for kind in CLUES}
    assert injected["none"] == [set()] * len(studies)
    assert all(len(diseases) == 3 and not diseases & {*true, LABELS.index("No Finding")}
               for diseases, true in zip(injected["absent"], present))
    assert all(diseases <= true and len(diseases) == min(3, len(true))
               for diseases, true in zip(injected["true"], present))
    others = of_other_findings(labels)
    assert all(present[other] != true for other, true in zip(others, present))
    assert injected["another"] == [set(own.disease[other].tolist()) for other in others]
    with pytest.raises(UserError, match="same labels"):
        of_other_findings(labels[:1])
    unlabelled = swapped(model, own, studies, "another").disease
    assert unlabelled.equal(own.disease[another_study(studies, any_views=True)])


def test_what_is_uncertain_is_neither_absent_nor_true():
    model = tiny.model()
    own = chosen_of(model.prompt(tiny.batch(2)).clues, 0.0)
    labels = np.full((2, 14), 3)
    labels[:, :2] = 0
    assert [set(diseases) for diseases in swapped(model, own, [{}] * 2, "absent", labels).diseases()] == [{0, 1}] * 2
    assert swapped(model, own, [{}] * 2, "true", labels).diseases() == [[], []]


@pytest.mark.parametrize("name, severity, location, report, prompt", [
    ("Support Devices", "", "left", "A left chest pacemaker is in place.", "Clue: pacemaker in place"),
    ("Support Devices", "", "", "A drain is in place.", "Clue: support device in place"),
    ("Fracture", "severe", "right lower zone", "A severely displaced fracture of a lower right rib.",
     "Clue: severely displaced rib fracture at the right lower ribs"),
    ("Fracture", "moderate", "left mid zone", "There is a fracture of the left mid ribs.",
     "Clue: moderately displaced rib fracture at the left mid ribs"),
    ("Pleural Effusion", "severe", "right", "A large right pleural effusion.",
     "Clue: large pleural effusion at the right lung base"),
])
def test_the_true_clue_is_the_prompt_that_says_most_of_what_is_true(name, severity, location, report, prompt):
    prompts = clue_prompts()[LABELS.index(name)]
    finding = {"finding": name, "severity": severity, "location": location}
    assert prompts[fitting(prompts, finding, report)] == prompt


@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_its_own_clues_put_back_change_nothing(place, variant):
    prepared, model = Prepared(place / "data"), tiny.model(variant=variant, clue_threshold=0.07)
    studies = prepared.split("test")
    first = outcomes(model, prepared, studies, Processes(), 4)
    own = own_clues(first)
    assert (own is None) == (variant == "base")
    again = outcomes(model, prepared, studies, Processes(), 4, clues=own)
    assert [outcome.report for outcome in again] == [outcome.report for outcome in first]
    assert [outcome.surprise for outcome in again] == [outcome.surprise for outcome in first]


def test_surprise_is_the_loss_of_training():
    model = tiny.model()
    images, texts = tiny.batch(3), tiny.REPORTS[:3]
    ids, labels, _ = model.supervise(texts, 10**6)
    with torch.no_grad():
        loss = model(images, ids, labels)
        sums = surprises(model, model.prompt(images), texts)
    assert sum(ce for ce, _ in sums) == pytest.approx(loss.ce.item(), rel=1e-5)
    assert [tokens for _, tokens in sums] == (labels != -100).sum(1).tolist()


def test_pictures_in_which_nothing_is_to_be_seen():
    sizes = {"size": tiny.SIZE, "crop": tiny.CROP}
    blank, noise = (no_pictures(kind, [4, 7], 2, sizes) for kind in ("blank", "noise"))
    assert blank.shape == noise.shape == (2, 2, 3, tiny.CROP, tiny.CROP)
    assert all(len(channel.unique()) == 1 for channel in blank.transpose(0, 2).flatten(1))
    assert not noise[0].equal(noise[1]) and not noise[0, 0].equal(noise[0, 1])
    assert no_pictures("noise", [7], 2, sizes)[0].equal(noise[1])                # whatever its batch and process


@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_the_command(place, tmp_path, capsys, variant):
    command = ["--ckpt", str(place / f"{variant}.safetensors"), "--swap", "--draws", "20", "--out", str(tmp_path)]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    swap, clues = metrics["swap"], variant != "base"
    assert set(swap) == {"unchanged", "pictures", *(("clues", "both") if clues else ())}
    assert set(swap["pictures"]) == set(PICTURES) and (not clues or set(swap["clues"]) == set(CLUES))
    for name in ("cross-entropy", "micro F1", "invented", "missed", "BLEU-4", "CIDEr"):
        cell = swap["pictures"]["another"][name]
        assert set(cell) == {"value", "low", "high", "change"}
        assert set(cell["change"]) == {"difference", "low", "high", "p"}
        assert cell["value"] - swap["unchanged"][name]["value"] == pytest.approx(cell["change"]["difference"], abs=1e-9)
    rows = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 9 and len(rows[0]["swapped"]) == (8 if clues else 3)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="swaps"') == 1 and "model uses" in printed
    assert all(verdict in printed for verdict in metrics["verdicts"])
    assert all(name in printed for name in ("pictures: noise", "pictures: a blank one"))


def test_without_labels(place, tmp_path, capsys):
    """Cross-entropy and language need none; what needs them is left out."""
    tiny.write_data(tmp_path / "data")
    assert evaluate.main(["--ckpt", str(place / "trrg.safetensors"), "--data", str(tmp_path / "data"), "--swap",
                          "--draws", "5",
                          "--out", str(tmp_path / "out"), "--limit", "3"]) == 0
    swap = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))["swap"]
    assert set(swap["clues"]) == {"another", "none"} and set(swap["unchanged"]) == {"cross-entropy", "BLEU-4", "CIDEr"}
    capsys.readouterr()
    assert evaluate.main(["--ckpt", str(place / "trrg.safetensors"), "--swap", "--limit", "1", "--out",
                          str(tmp_path)]) == 2
    assert "--swap needs at least two studies" in capsys.readouterr().err


def test_two_processes_find_what_one_does(place, tmp_path):
    command = ["--ckpt", str(place / "dci.safetensors"), "--swap", "--draws", "5", "--batch-size", "2", "--limit", "5",
               "--out"]
    assert evaluate.main([*command, str(tmp_path / "one")]) == 0
    code, _, err = runs.run("evaluate", [*command, tmp_path / "two"], tmp_path / "run", world=2)
    assert code == 0, err
    for name in ("metrics.json", "reports.jsonl"):
        one, two = ((tmp_path / which / name).read_text(encoding="utf-8") for which in ("one", "two"))
        assert one == two


def change(difference, p):
    return {"change": {"difference": difference, "low": difference - 0.1, "high": difference + 0.1, "p": p}}


@pytest.mark.parametrize("ce, f1, verdict", [
    ((0.3, 0.002), (-0.5, 0.002), "The model uses the pictures: "),
    ((0.3, 0.002), (0.0, 1.0), "The model uses the pictures, but no finding"),
    ((0.0, 0.9), (0.0, 1.0), "NO SIGN that the model uses the pictures"),
    # less surprised by what it does not see
    ((-0.3, 0.002), (-0.5, 0.002), "NO SIGN that the model uses the pictures")])
def test_verdicts(ce, f1, verdict):
    lines = what_it_reads({"pictures": {"another": {"cross-entropy": change(*ce), "micro F1": change(*f1)}}})
    assert len(lines) == 1 and lines[0].startswith(verdict)


def test_what_stands_in_both_is_told():
    unread, read = {"cross-entropy": change(0.0, 0.9)}, {"cross-entropy": change(0.4, 0.002)}
    lines = what_it_reads({"pictures": {"another": unread}, "clues": {"another": unread}, "both": {"another": read}})
    assert len(lines) == 3 and lines[2].startswith("The model uses pictures and clues together")
    assert len(what_it_reads({"pictures": {"another": read}, "clues": {"another": unread},
                              "both": {"another": read}})) == 2
