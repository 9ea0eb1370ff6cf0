import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data import prepare, r2gen
from data.dataset import Prepared
from tests import real


def entry(name, pictures, report="Lungs clear.", **others):
    return {"id": name, "report": report, "image_path": pictures, **others}


def tree(raw, annotation, pictures=()):
    """A folder in R2Gen's layout; every picture is a gray square of its own level."""
    raw.mkdir(exist_ok=True)
    (raw / "annotation.json").write_text(json.dumps(annotation), "utf-8")
    for level, name in enumerate(pictures):
        path = raw / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 10), 10 * level + 5, np.uint8)).save(path)
    return raw


def small(raw):
    return tree(raw, {"train": [entry("A", ["A/0.png", "A/1.png"], split="train"), entry("B", ["B/0.png", "B/1.png"])],
                      "val": [entry("C", ["C/0.png"], "Grüße.")],
                      "test": [entry("D", ["D/0.png", "D/1.png", "D/2.png"])]},
                [f"{name}/{view}.png" for name in "ABCD" for view in range(3)])


def command(raw, out, *others):
    return prepare.main(["r2gen", "--raw", str(raw), "--out", str(out), "--size", "8", "--workers", "1", *others])


def test_the_layout_as_it_is(tmp_path, capsys):
    assert command(small(tmp_path / "raw"), tmp_path / "set") == 0
    prepared = Prepared(tmp_path / "set")
    assert [(study["id"], study["split"], study["view_names"]) for study in prepared.studies] == [
        ("A", "train", ["A/0.png", "A/1.png"]), ("B", "train", ["B/0.png", "B/1.png"]), ("C", "val", ["C/0.png"]),
        ("D", "test", ["D/0.png", "D/1.png"])]
    assert [int(picture[0, 0]) for picture in prepared.pictures(prepared.studies[3])] == [95, 105]
    assert prepared.studies[2]["report"] == "Grüße."
    assert prepared.manifest["repeats"] == {"val": 0, "test": 1}
    output = capsys.readouterr().out
    assert "2 / 1 / 1 studies" in output
    assert "warning: 1 of 1 test reports are also in the train split, letter by letter" in output


def test_views(tmp_path):
    small(tmp_path / "raw")
    assert [len(study.pictures) for study in r2gen.collect(tmp_path / "raw", views=1)[0]] == [1, 1, 1, 1]
    assert [len(study.pictures) for study in r2gen.collect(tmp_path / "raw", views=9)[0]] == [2, 2, 1, 3]


def test_mimic_in_r2gens_layout(tmp_path):
    one = entry("02aa804e-bde0afdd", ["p10/p10000032/s50414267/02aa804e-bde0afdd.jpg"], study_id=50414267,
                subject_id=10000032, split="train")
    study, = r2gen.collect(tree(tmp_path, {"train": [one], "val": [], "test": []}))[0]
    assert study.extra == {"study_id": 50414267, "subject_id": 10000032,
                           "view_names": ["p10/p10000032/s50414267/02aa804e-bde0afdd.jpg"]}


def test_bad_pictures_are_left_out_and_named(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    (raw / "images/A/1.png").write_bytes((raw / "images/A/1.png").read_bytes()[:50])
    (raw / "images/C/0.png").unlink()
    (raw / "images/D/2.png").write_text("never looked at: the third view is not used")
    assert command(raw, tmp_path / "set") == 0
    prepared = Prepared(tmp_path / "set")
    assert [study["id"] for study in prepared.studies] == ["B", "D"]
    skipped = prepared.manifest["skipped"]
    assert [one["id"] for one in skipped] == ["A", "C"]
    assert "A/1.png" in skipped[0]["why"] and skipped[1]["why"] == "C/0.png: no such file"
    assert len(prepared.images) == 4 and np.load(tmp_path / "set/images.npy").min() > 0
    assert "2 studies left out" in capsys.readouterr().out


def test_what_pandas_makes_of_an_empty_report_is_left_out(tmp_path):
    raw = tree(tmp_path / "raw", {"train": [entry("A", ["A/0.png"]), entry("B", ["A/0.png"], None),
                                            entry("C", ["A/0.png"], float("nan"))]}, ["A/0.png"])
    assert "NaN" in (raw / "annotation.json").read_text("utf-8") and command(raw, tmp_path / "set") == 0
    assert [study["id"] for study in Prepared(tmp_path / "set").studies] == ["A"]
    assert {one["why"] for one in Prepared(tmp_path / "set").manifest["skipped"]} == {"no words in the report"}


def test_an_annotation_from_a_windows_editor(tmp_path):
    raw = small(tmp_path / "raw")
    command(raw, tmp_path / "a")
    text = json.dumps(json.loads((raw / "annotation.json").read_text("utf-8")), indent=1, ensure_ascii=False)
    (raw / "annotation.json").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert command(raw, tmp_path / "b") == 0
    assert (tmp_path / "a/studies.jsonl").read_bytes() == (tmp_path / "b/studies.jsonl").read_bytes()


def refused(tmp_path, capsys, raw, *words):
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert command(raw, tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for word in words:
        assert word in message
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "A/../../secret.png", "A/\0.png", ""])
def test_paths_out_of_the_folder_are_refused(tmp_path, capsys, name):
    Image.new("L", (9, 9), 7).save(tmp_path / "secret.png")
    raw = tree(tmp_path / "raw", {"train": [entry("A", ["A/0.png"]), entry("B", [name])]}, ["A/0.png"])
    refused(tmp_path, capsys, raw, "annotation.json", "'B'", "leads out of the folder")


def test_links_out_of_the_folder_are_refused(tmp_path, capsys):
    Image.new("L", (9, 9), 7).save(tmp_path / "secret.png")
    raw = small(tmp_path / "raw")
    (raw / "images/B/1.png").unlink()
    (raw / "images/B/1.png").symlink_to(tmp_path / "secret.png")
    refused(tmp_path, capsys, raw, "'B'", "leads out of the folder")


def test_images_may_itself_be_a_link(tmp_path):
    raw = small(tmp_path / "raw")
    (raw / "images").rename(tmp_path / "elsewhere")
    (raw / "images").symlink_to(tmp_path / "elsewhere")
    assert command(raw, tmp_path / "set") == 0


@pytest.mark.parametrize(("text", "words"), [
    (b'{"train": [', ["not JSON"]),
    (b'{"train": [{"id": "A", "report": "caf\xe9", "image_path": ["x"]}]}', ["not UTF-8"]),
    (b'[]', ["not R2Gen's annotation"]),
    (b'{"train": {}}', ["not R2Gen's annotation"]),
    (b'{"dev": []}', ["not R2Gen's annotation"]),
    (b'{"train": [{"id": "A", "image_path": ["x"]}]}', ["entry 0 of 'train'", "report"]),
    (b'{"train": [{"id": "A", "report": "x", "image_path": "x"}]}', ["entry 0 of 'train'"]),
    (b'{"train": [{"id": "A", "report": "x", "image_path": []}]}', ["entry 0 of 'train'"]),
    (b'{"train": [{"id": "A", "report": "\\ud800", "image_path": ["x"]}]}', ["'A'", "Unicode"]),
    (b'{"train": [{"id": "A\\ud800", "report": "x", "image_path": ["x"]}]}', ["'A\\ud800'", "Unicode"]),
    (b'{"train": [{"id": "A", "report": "x", "image_path": ["x\\ud800"]}]}', ["'A'", "Unicode"]),
    (b'{"train": [{"id": "A", "report": "x", "image_path": ["x"], "study_id": "\\udfff"}]}', ["'A'", "Unicode"]),
    (b'{"train": [{"id": "A", "report": "x", "image_path": ["x"], "split": "test"}]}', ["'A'", "'test'"]),
    (b'{"train": [{"id": "A", "report": "x", "image_path": ["x"]}], "test": [{"id": "A", "report": "x", '
     b'"image_path": ["x"]}]}', ["two entries", "'A'"]),
    (b'{"train": []}', ["no study is left"]),
    (b"[" * 100_000, ["not JSON"]),
])
def test_hostile_annotations(tmp_path, capsys, text, words):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/annotation.json").write_bytes(text)
    refused(tmp_path, capsys, tmp_path / "raw", *words)


def test_another_annotation_is_not_taken_for_the_finished_one(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    assert command(raw, tmp_path / "set") == command(raw, tmp_path / "set") == 0
    path = raw / "annotation.json"
    path.write_text(path.read_text("utf-8").replace("Lungs clear", "Lungs small"), "utf-8")
    capsys.readouterr()
    refused(tmp_path, capsys, raw, "another annotation")
    refused(tmp_path, capsys, tmp_path / "none", "no such folder")


def test_no_annotation(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    refused(tmp_path, capsys, tmp_path / "raw", "annotation.json", "no such file")


def test_the_real_cases(tmp_path):
    command = ["r2gen", "--raw", str(real("cxr_cases")), "--out", str(tmp_path), "--size", "64", "--workers", "1"]
    assert prepare.main(command) == 0
    prepared = Prepared(tmp_path)
    assert prepared.manifest["counts"] == {"train": 118, "val": 29, "test": 42}
    assert prepared.manifest["skipped"] == [] and prepared.manifest["pictures"] == len(prepared.images) == 217
    assert Counter(len(study["views"]) for study in prepared.studies) == {1: 161, 2: 28}
    assert all(picture.std() > 20 for picture in np.load(tmp_path / "images.npy")), "no picture is blank"


def test_r2gens_own_file(tmp_path):
    (tmp_path / "annotation.json").symlink_to(real("iu_xray_annotation.json"))
    (tmp_path / "images").mkdir()
    assert prepare.main(["r2gen", "--raw", str(tmp_path), "--out", str(tmp_path / "set"), "--text-only"]) == 0
    manifest = json.loads((tmp_path / "set/manifest.json").read_text("utf-8"))
    assert manifest["counts"] == {"train": 2069, "val": 296, "test": 590} and manifest["pictures"] == 5910
    assert manifest["repeats"] == {"val": 65, "test": 274}
