"""--list: reports for studies outside any data set, in batches, resumed, with bad pictures among them."""

import json
import os

import pytest
from PIL import Image

import evaluate
import trrg
from evaluation import listing
from evaluation.output import NO_ADVICE
from tests import runs, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder, trained_on={"source": "phantom", "studies": 2000, "pictures": 2900, "steps": 900})
    with Image.open(folder / "frontal.png") as picture:
        for i in range(3):
            picture.rotate(90 * i).save(folder / f"{i}.png")
    (folder / "damaged.png").write_bytes((folder / "frontal.png").read_bytes()[:60])
    return folder


STUDIES = [{"id": "two views", "images": ["frontal.png", "lateral.jpg"]}, {"id": 7, "images": "0.png"},
           {"id": "damaged", "images": ["damaged.png"]}, {"id": "none", "images": ["nowhere.png"]},
           {"id": "folder", "images": ["data"]}, {"id": "1", "images": ["1.png"]},
           {"id": "ü \u2028", "images": ["2.png"]}]


def write(path, studies=STUDIES):
    path.write_text("".join(json.dumps(study, ensure_ascii=False) + "\n" for study in studies), encoding="utf-8")
    return path


def command(run, path, out, *more):
    return ["--ckpt", str(run / "ckpt.safetensors"), "--list", str(path), "--pictures", str(run), "--out", str(out),
            *more]


def lines(out):
    return {line["id"]: line
            for line in map(json.loads, (out / "reports.jsonl").read_text(encoding="utf-8").split("\n")[:-1])}


def test_every_study_has_its_line_and_bad_pictures_end_nothing(run, tmp_path, capsys):
    path = write(tmp_path / "list.jsonl")
    assert evaluate.main(command(run, path, tmp_path / "out", "--batch-size", "2")) == 0
    printed, found = capsys.readouterr().out, lines(tmp_path / "out")
    assert set(found) == {str(study["id"]) for study in STUDIES}
    model = trrg.load(run / "ckpt.safetensors")
    for study in STUDIES:
        line, images = found[str(study["id"])], study["images"]
        if study["id"] in ("damaged", "none", "folder"):
            assert set(line) == {"id", "error"} and images[0] in line["error"]
            assert f"no report for {study['id']!r}" in printed
        else:
            report = model.report([run / image for image in ([images] if isinstance(images, str) else images)])
            assert line["report"] == report.text
            assert [clue["prompt"] for clue in line["clues"]] == [p for p, _ in report.clues]
            assert line["notice"] == NO_ADVICE and line["trained_on"].startswith("trained on 2,000 drawn phantoms")
    assert "4 reports" in printed


def test_it_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch, capsys):
    path, out, written = write(tmp_path / "list.jsonl"), tmp_path / "out", []
    write_batch = listing.write_batch

    def stopped(model, studies, decoding):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.extend(study["id"] for study in studies)
        return write_batch(model, studies, decoding)

    monkeypatch.setattr(listing, "write_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(command(run, path, out, "--batch-size", "1"))
    done = lines(out)
    assert list(done) == written
    with open(out / "reports.jsonl", "ab") as file:
        file.write('{"id": "1", "report": "torn ü'.encode()[:-1])                # as a kill leaves it
    again = []
    monkeypatch.setattr(listing, "write_batch", lambda model, studies, decoding:
                        again.extend(study["id"] for study in studies) or write_batch(model, studies, decoding))
    assert evaluate.main(command(run, path, out, "--batch-size", "1")) == 0
    assert not set(again) & set(written) and len(lines(out)) == len(STUDIES)
    assert {name: lines(out)[name] for name in done} == done
    again.clear()
    # a longer list, and bad pictures once more
    write(path, [*STUDIES, {"id": "new", "images": ["0.png"]}])
    assert evaluate.main(command(run, path, out)) == 0
    assert set(again) == {"damaged", "none", "folder", "new"}
    (out / "reports.jsonl").write_text(json.dumps({"id": "7"}) + "\n", encoding="utf-8")
    before = (out / "reports.jsonl").read_bytes()
    assert evaluate.main(command(run, path, out, "--beams", "2")) == 2
    assert "another decoding" in capsys.readouterr().err and (out / "reports.jsonl").read_bytes() == before
    os.unlink(out / "settings.json")
    assert evaluate.main(command(run, path, out)) == 2 and (out / "reports.jsonl").read_bytes() == before


def test_two_processes_write_what_one_does(run, tmp_path):
    path = write(tmp_path / "list.jsonl")
    assert evaluate.main(command(run, path, tmp_path / "one")) == 0
    code, _, err = runs.run("evaluate", command(run, path, tmp_path / "two", "--batch-size", "2"), tmp_path / "run",
                            world=2)
    assert code == 0, err
    assert lines(tmp_path / "one") == lines(tmp_path / "two")


def test_rexrank_there_and_back(run, tmp_path):
    """Their list of a split in, predictions alone out."""
    studies = {"CXR1": {"image_path": ["lateral.jpg", "frontal.png"], "frontal_lateral": ["Lateral", "Frontal"],
                        "section_findings": "SECRET", "section_impression": None},
               "CXR2": {"image_path": ["0.png"], "section_findings": "SECRET"}}
    (tmp_path / "list.json").write_text(json.dumps(studies), encoding="utf-8")
    out = tmp_path / "rexrank.json"
    assert evaluate.main(command(run, tmp_path / "list.json", tmp_path / "out", "--rexrank", str(out))) == 0
    model = trrg.load(run / "ckpt.safetensors")
    assert json.loads(out.read_text(encoding="utf-8")) == {
        "CXR1": {"model_prediction": model.report([run / "frontal.png", run / "lateral.jpg"]).text},
        "CXR2": {"model_prediction": model.report([run / "0.png"]).text}}
    assert "SECRET" not in (tmp_path / "out/reports.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("text, words", [
    ("", "lists no studies"), ("\n\n", "lists no studies"), ("[", "line 1"), ("[1]", "line 1"), ('{"id": 1}', "line 1"),
    ('{"id": 1, "images": []}', "images must be a list"), ('{"id": 1, "images": [""]}', "images must be a list"),
    ('{"id": 1, "images": [3]}', "images must be a list"), ('{"id": true, "images": ["a"]}', "the id"),
    ('{"id": " ", "images": ["a"]}', "the id"), ("[" * 100_000, "line 1"), ("null", "line 1"),
    ('{"id": 1, "images": ["a"]}\n{"id": "1", "images": ["b"]}', "line 2: id '1' occurs already on line 1")])
def test_a_mistake_in_the_list_is_one_line(run, tmp_path, capsys, text, words):
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8")
    assert evaluate.main(command(run, tmp_path / "list.jsonl", tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not (tmp_path / "out").exists()
