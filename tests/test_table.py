"""Anyone's own data: one csv and its pictures, as people's editors write them."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data import prepare, table
from data.dataset import Prepared
from data.reports import LABELS

THREE = ("id,split,report,pictures\n"
         'A1,train,"The heart is enlarged. No pneumothorax.",a/front.png;a/side.png\n'
         "B7,val,Lungs clear.,b7.png\n"
         "C2,test,Small left effusion.,c2.png\n")
PICTURES = ("a/front.png", "a/side.png", "b7.png", "c2.png")


def tree(raw, text=THREE, pictures=PICTURES):
    raw.mkdir(exist_ok=True)
    (raw / "mine.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for level, name in enumerate(pictures, start=1):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 10), 20 * level, np.uint8)).save(raw / name)
    return raw


def command(raw, out, *others):
    return prepare.main(["csv", "--raw", str(raw), "--out", str(out), *others])


def lines(out):
    return [json.loads(line) for line in (out / "studies.jsonl").read_text("utf-8").splitlines()]


def test_a_table_of_three_lines(tmp_path, capsys):
    assert command(tree(tmp_path / "raw"), tmp_path / "set", "--size", "8") == 0
    prepared = Prepared(tmp_path / "set")
    assert [(study["id"], study["split"], study["report"], study["view_names"]) for study in prepared.studies] == [
        ("A1", "train", "The heart is enlarged. No pneumothorax.", ["a/front.png", "a/side.png"]),
        ("B7", "val", "Lungs clear.", ["b7.png"]), ("C2", "test", "Small left effusion.", ["c2.png"])]
    levels = [int(picture[0, 0]) for study in prepared.studies for picture in prepared.pictures(study)]
    assert levels == [20, 40, 60, 80]
    assert "3  rows of mine.csv" in capsys.readouterr().out
    assert command(tmp_path / "raw", tmp_path / "set", "--size", "8") == 0 and "already" in capsys.readouterr().out
    (tmp_path / "raw/mine.csv").write_text(THREE.replace("enlarged", "normal"))
    assert command(tmp_path / "raw", tmp_path / "set", "--size", "8") == 2
    assert "another table" in capsys.readouterr().err


@pytest.mark.parametrize("text", [
    b"\xef\xbb\xbf" + THREE.replace("\n", "\r\n").encode(),                        # Excel's "CSV UTF-8"
    THREE.replace("a/front.png;a/side.png", "a\\front.png ; a\\side.png;"),         # made on Windows
    "note, id ,split,report,pictures\n" + "".join(f"x,{line}\n" for line in THREE.splitlines()[1:]),
    "\n".join(",".join(line.split(",")[::-1]) for line in THREE.replace(". No", ". No").splitlines()) + "\n\n\n",
])
def test_the_same_table_as_editors_write_it(tmp_path, text):
    tree(tmp_path / "raw")
    (tmp_path / "other").mkdir()
    command(tmp_path / "raw", tmp_path / "a", "--size", "8")
    assert command(tree(tmp_path / "other", text), tmp_path / "b", "--size", "8") == 0
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def drawn(tmp_path, patient=None):
    rows = "".join(f"s{n},Lungs clear.,b7.png{'' if patient is None else f',{patient(n)}'}\n" for n in range(100))
    raw = tree(tmp_path, f"id,report,pictures{'' if patient is None else ',patient'}\n{rows}")
    return {study.id: study.split for study in table.collect(raw).studies}, raw


def test_without_a_split_it_is_drawn_by_the_ids(tmp_path):
    split, raw = drawn(tmp_path / "a")
    assert Counter(split.values()) == {"train": 70, "val": 10, "test": 20}
    again = {study.id: study.split for study in table.collect(raw, seed=1).studies}
    assert again != split and Counter(again.values()) == Counter(split.values())


def test_a_patient_stays_in_one_split(tmp_path):
    split, _ = drawn(tmp_path / "b", lambda n: n % 10)
    for patient in range(10):
        assert len({split[f"s{n}"] for n in range(100) if n % 10 == patient}) == 1
    assert Counter(split.values()) == {"train": 70, "val": 10, "test": 20}
    unknown, _ = drawn(tmp_path / "c", lambda n: "")
    assert Counter(unknown.values()) == {"train": 70, "val": 10, "test": 20}, "a blank patient is nobody's brother"


def test_labels(tmp_path):
    header = "id,split,report,pictures," + ",".join(sorted(LABELS))
    values = {"Edema": "1.0", "Fracture": "0", "Pneumonia": "-1.0"}
    row = "A,train,Clear.,b7.png," + ",".join(values.get(label, "") for label in sorted(LABELS))
    study, = table.collect(tree(tmp_path, f"{header}\n{row}\n")).studies
    codes = dict(zip(LABELS, study.extra["labels"], strict=True))
    assert (codes.pop("Edema"), codes.pop("Fracture"), codes.pop("Pneumonia")) == (1, 2, 3)
    assert set(codes.values()) == {0}


def test_what_cannot_be_used_is_left_out_by_name(tmp_path, capsys):
    text = THREE + ("D,train,,b7.png\nE,train,___,b7.png\nF,train,Clear.,\nG,train,Clear.,absent.png\n"
                    "H,train,Clear., ; \n")
    assert command(tree(tmp_path / "raw", text), tmp_path / "set", "--size", "8") == 0
    assert {one["id"]: one["why"] for one in Prepared(tmp_path / "set").manifest["skipped"]} == {
        "D": "no words in the report", "E": "no words in the report", "F": "names no picture", "H": "names no picture",
        "G": "absent.png: no such file"}
    assert command(tmp_path / "raw", tmp_path / "text", "--text-only") == 0
    assert [study["id"] for study in lines(tmp_path / "text")] == ["A1", "B7", "C2", "F", "G", "H"]


def test_views(tmp_path):
    assert [len(study.pictures) for study in table.collect(tree(tmp_path), views=1).studies] == [1, 1, 1]


@pytest.mark.parametrize("text, words", [
    ("id,text,pictures\nA,x,b7.png\n", ["no column report; it has id, text, pictures", "needs the columns"]),
    (THREE.replace(",", ";"), ["no column id, report, pictures", "separated by commas"]),
    (THREE.replace(",", "\t"), ["no column id, report, pictures", "separated by commas"]),
    ("id,report,report,pictures\nA,x,y,b7.png\n", ["more than one column report"]),
    (THREE + "A1,train,x,b7.png\n", ["line 5", "'A1' is already used on line 2"]),
    (THREE + " ,train,x,b7.png\n", ["line 5", "the id is empty"]),
    (THREE + "D,dev,x,b7.png\n", ["line 5", "split 'dev' is none of train, val, test"]),
    (THREE + "D,,x,b7.png\n", ["line 5", "split ''"]),
    (THREE + "D,train,x,../secret.png\n", ["line 5", "'../secret.png': leads out of the folder"]),
    (THREE + "D,train,x,b7.png;/etc/hostname\n", ["line 5", "leads out of the folder"]),
    (THREE + "D,train,x,..\\secret.png\n", ["line 5", "leads out of the folder"]),
    (THREE + "D,train,x,link.png\n", ["line 5", "leads out of the folder"]),
    (THREE + "D,train\n", ["line 5", "only 2 columns"]),
    ("id,report,pictures,Edema\nA,x,b7.png,1\n", ["has labels, but no column Enlarged Cardiomediastinum"]),
    ("id,report,pictures," + ",".join(LABELS) + "\nA,x,b7.png" + ",yes" * 14 + "\n", ["line 2", "1.0 (positive)"]),
    ("id,report,pictures,patient,split\nA,x,b7.png,P,train\nB,x,b7.png,P,test\n",
     ["line 3", "patient P is in test here and in train on line 2"]),
    ("id,report,pictures\nA,x," + "b7.png;" * 30000 + "\n", ["cannot be read"]),
    (THREE.replace("heart", "c\u0153ur").encode("cp1252", "replace"), ["not UTF-8", "save it as UTF-8"]),
    (THREE.encode("utf-16"), ["not UTF-8", "save it as UTF-8"]),
    ("id,report,pictures\n", ["has no row"]), ("", ["no column"]),
    ("id,report,pictures\nA,___,b7.png\n", ["no study is left", "no words in the report"]),
])
def test_hostile_tables(tmp_path, capsys, text, words):
    csv.field_size_limit(2**17)                      # csv's own default, which another reader in this process may raise
    Image.new("L", (8, 8), 7).save(tmp_path / "secret.png")
    raw = tree(tmp_path / "raw", text)
    (raw / "link.png").symlink_to(tmp_path / "secret.png")
    assert command(raw, tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    assert all(word in message for word in words), message
    assert not (tmp_path / "set").exists()


def test_one_table_and_no_other(tmp_path, capsys):
    raw = tree(tmp_path / "raw")
    (raw / "second.CSV").write_text(THREE)
    assert command(raw, tmp_path / "set") == 2
    assert "more than one .csv file (mine.csv, second.CSV)" in capsys.readouterr().err
    (raw / "second.CSV").unlink()
    (raw / "mine.csv").rename(raw / "mine.xlsx")
    assert command(raw, tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert "has no .csv file" in message and "needs the columns id, report and pictures" in message
