import csv
import gzip
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from data import mimic_cxr, prepare
from data.dataset import Prepared
from data.files import file_digest
from data.mimic_cxr import NoText, section_name, sections, target_text
from data.reports import LABELS

TITLE = " " * 33 + "FINAL REPORT\n"
NORMAL = TITLE + (" EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old man.\n \n"
                  " FINDINGS: \n \n The lungs are\n clear.\n \n IMPRESSION: \n \n No acute disease.\n")
PIECES = ["\n", "\n \n", " ", "\n FINDINGS: ", "\n FINDINGS:\n", "\n IMPRESSION: ", "\n FINDINGS AND IMPRESSION:  ",
          "\n CHEST (PA AND LAT): ", "\n Findings: ", "\n WET READ: ___ ", "\n ADDENDUM:\n", "\n COMPARISON: ",
          "\n PA AND LATERAL VIEWS OF THE CHEST: ", "\n REASON FOR EXAM: ", "\n IMPRESSON: ", "\n NDICATION: ",
          "\n  IMPRESSION: ", "\nIMPRESSION: ", "\n L1 FILM: ", "Lungs clear.", " No effusion.\n", "FINAL REPORT",
          "___",
          "\n CLINICAL HISTORY: ", "\n RIBS, TWO VIEWS:\t"]


def test_sections_equal_the_official_parsers_on_strange_texts():
    """The digest is that of MIT-LCP/mimic-cxr's section_text on the same texts, as JSON [[name, text], …] a line."""
    digest = hashlib.sha256()
    for number in range(3000):
        dice = hashlib.sha256(str(number).encode()).digest()
        text = "".join(PIECES[byte % len(PIECES)] for byte in dice[1:2 + dice[0] % 16])
        digest.update(json.dumps(sections(text)).encode() + b"\n")
    assert digest.hexdigest() == "6fc42a9f64c4a1f6182f1f292f5ef03fac795696c3435ef2ca139e9cb6bab092"


def test_sections_by_hand():
    assert [name for name, _ in sections(NORMAL)] == ["preamble", "examination", "indication", "findings", "impression"]
    assert sections("nothing here") == [("full report", "nothing here")]
    assert sections("x\n HISTORY: cough.\n \n Lungs clear.\n \n No edema.") == [
        ("preamble", "x\n "), ("history", "cough."), ("last_paragraph", " Lungs clear.\n \n No edema.")]
    # A header directly below an empty one, without a blank behind the colon, is missed: so does the original.
    assert dict(sections("\n FINDINGS:\n IMPRESSION: Clear.\n"))["findings"] == " IMPRESSION: Clear.\n"


@pytest.mark.parametrize(("header", "name"), [
    ("FINDINGS", "findings"), ("CONCLUSION", "impression"), ("FINDINGS AND IMPRESSION", "impression"),
    ("FINDINGS/IMPRESSION", "impression"), ("NDICATION", "impression"), ("CHEST, TWO VIEWS", "findings"),
    ("PORTABLE AP", "findings"), ("REASON FOR EXAMINATION", "indication"), ("ADDENDUM TO REPORT", "addendum"),
    ("WETREAD", "wet read"), ("PFI", "history"), ("TECHNIQUE", "technique"), ("SERIES OF RIBS", "findings")])
def test_section_names(header, name):
    assert section_name(header) == name


@pytest.mark.parametrize(("report", "target", "text"), [
    (NORMAL, "findings", "The lungs are\n clear."),
    (NORMAL, "impression", "No acute disease."),
    (NORMAL, "both", "The lungs are\n clear.\n\nNo acute disease."),
    (TITLE + " Findings: clear.\n", "findings", None),
    (TITLE + " FINDINGS AND IMPRESSION: Clear.\n", "findings", None),
    (TITLE + " FINDINGS AND IMPRESSION: Clear.\n", "impression", "Clear."),
    (TITLE + " CHEST, PA AND LATERAL:\n \n Clear.\n", "findings", "Clear."),
    (TITLE + " FINDINGS: First.\n FINDINGS: Last.\n", "findings", "Last."),
    # An addendum stands at the top, parted by a line of underscores.
    (" ADDENDUM:  Please note a nodule.\n ______________________________\n" + NORMAL, "findings",
     "The lungs are\n clear."),
    (" ADDENDUM\n IMPRESSION:  New nodule.\n ______________________________\n" + TITLE + " FINDINGS: Old.\n",
     "impression", "New nodule."),
    (" WET READ: ___ ___ 8:19 AM\n  Edema.\n WET READ VERSION #1 ___\n  None.\n ____________________\n" + NORMAL,
     "findings", "The lungs are\n clear."),
    (TITLE + " FINDINGS: Clear.\n WET READ VERSION #1 ___ ___\n Edema.\n", "findings", "Clear."),
    (TITLE + " FINDINGS: Since ___, clear.\n", "findings", "Since ___, clear."),
    (TITLE + " FINDINGS: \n \n IMPRESSION: Clear.\n", "findings", None),
    (TITLE + " FINDINGS:  ______________________________\n x\n", "impression", None),
    ("", "both", None)])
def test_target_text(report, target, text):
    if text is None:
        with pytest.raises(NoText):
            target_text(report, "s50000000", target)
    else:
        assert target_text(report, "s50000000", target) == text


def test_the_54_odd_studies():
    assert len(mimic_cxr.ODD_SECTION_OF) == 23 and len(mimic_cxr.ODD_RANGES) == 23 and len(mimic_cxr.ODD_EMPTY) == 8
    lists = json.dumps([mimic_cxr.ODD_SECTION_OF, mimic_cxr.ODD_RANGES, sorted(mimic_cxr.ODD_EMPTY)], sort_keys=True)
    assert hashlib.sha256(lists.encode()).hexdigest().startswith("3b8d492b11d5a3a9")
    recommended = TITLE + " RECOMMENDATION(S):  Lungs clear.\n COMPARISON: none\n"
    for target in ("findings", "impression", "both"):
        assert target_text(recommended, "s50913680", target) == "Lungs clear."
        assert target_text("x" * 201 + "y" * 148 + "z" * 99, "s50525523", target) == "y" * 148
        with pytest.raises(NoText, match="describes nothing"):
            target_text(NORMAL, "s58235663", target)
    with pytest.raises(NoText):
        target_text(NORMAL, "s50913680")


# study → (patient, split, report or None, [(dicom, ViewPosition), …])
STUDIES = {
    "50000001": ("10000032", "train", NORMAL, [("d-lat", "LATERAL"), ("c-pa", "PA"), ("b-ap", "AP"), ("a-none", "")]),
    "50000002": ("10000032", "train", TITLE + " IMPRESSION: Clear.\n", [("e-ap", "AP")]),
    "50000003": ("11000033", "validate", TITLE + " FINDINGS: Effusion ___.\n", [("g-ll", "LL"), ("f-lpo", "LPO")]),
    "50000004": ("19000034", "test", NORMAL, [("h-ap", "AP")]),
    "50000005": ("19000034", "test", None, [("i-ap", "AP")]),
    "50000006": ("19000034", "test", b"\n FINDINGS: caf\xe9\n", [("j-ap", "AP")]),
}
SPLIT = ["dicom_id", "study_id", "subject_id", "split"]


def rows():
    return [[dicom, study, patient, split]
            for study, (patient, split, _, views) in STUDIES.items() for dicom, _ in views]


def write_csv(path, header, some, packed=True):
    text = "\n".join(",".join(map(str, row)) for row in [header, *some]) + "\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())


def tree(raw, pictures="files", reports="files", tables=".", packed=True):
    """A small download: pictures and report texts in the same tree or in two, csv files packed or not."""
    (raw / tables).mkdir(parents=True, exist_ok=True)
    suffix = ".csv.gz" if packed else ".csv"
    write_csv(raw / tables / f"mimic-cxr-2.0.0-split{suffix}", SPLIT, rows(), packed)
    write_csv(raw / tables / f"mimic-cxr-2.0.0-metadata{suffix}",
              ["dicom_id", "subject_id", "study_id", "ViewPosition"],
              [[dicom, patient, study, view]
               for study, (patient, _, _, views) in STUDIES.items() for dicom, view in views],
              packed)
    values = {"50000001": {"Edema": "1.0", "No Finding": "", "Pneumonia": "-1.0", "Fracture": "0.0"}, "50000003": {}}
    write_csv(raw / tables / f"mimic-cxr-2.0.0-chexpert{suffix}", ["subject_id", "study_id", *sorted(LABELS)],
              [["x", study, *(some.get(label, "") for label in sorted(LABELS))] for study, some in values.items()],
              packed)
    for study, (patient, _, report, views) in STUDIES.items():
        place = f"p{patient[:2]}/p{patient}"
        (raw / reports / place).mkdir(parents=True, exist_ok=True)
        if report is not None:
            data = report if isinstance(report, bytes) else report.encode()
            (raw / reports / place / f"s{study}.txt").write_bytes(data)
        (raw / pictures / place / f"s{study}").mkdir(parents=True, exist_ok=True)
        for dicom, _ in views:
            level = ord(dicom[0])
            Image.fromarray(np.full((12, 10), level, np.uint8)).save(raw / pictures / place / f"s{study}/{dicom}.jpg")
        (raw / pictures / place / "index.html").write_text("what wget leaves")
    return raw


def command(raw, out, *others):
    pictures = () if "--text-only" in others else ("--size", "16", "--workers", "1")
    return prepare.main(["mimic_cxr", "--raw", str(raw), "--out", str(out), *pictures, *others])


def test_counted_by_study(tmp_path, capsys):
    assert command(tree(tmp_path / "raw"), tmp_path / "set") == 0
    prepared = Prepared(tmp_path / "set")
    first, second, third = prepared.studies
    assert [study["id"] for study in prepared.studies] == ["s50000001", "s50000003", "s50000004"]
    assert [study["split"] for study in prepared.studies] == ["train", "val", "test"]
    assert first["report"] == "The lungs are\n clear." and second["report"] == "Effusion ___."
    assert first["view_names"] == ["c-pa", "b-ap"] and first["view_positions"] == ["PA", "AP"]
    assert second["view_positions"] == ["LL", "LPO"] and third["view_names"] == ["h-ap"]
    assert [abs(int(picture.max()) - ord(letter)) <= 1 for picture, letter in zip(prepared.pictures(first), "cb")] == [
        True, True]
    assert (first["study_id"], first["subject_id"]) == (50000001, 10000032)
    assert prepared.manifest["options"]["count"] == "studies"
    assert {one["id"]: one["why"] for one in prepared.manifest["skipped"]} == {
        "s50000002": "no findings in the report", "s50000005": "no report file",
        "s50000006": "the report file is not UTF-8 text"}
    assert "10  images in the split file (published: 377,110; DIFFERS)" in capsys.readouterr().out


def test_labels_are_carried_by_name(tmp_path):
    studies = {study.id: study.extra for study in mimic_cxr.collect(tree(tmp_path))[0]}
    labels = dict(zip(LABELS, studies["s50000001"]["labels"], strict=True))
    assert labels["Edema"] == 1 and labels["Fracture"] == 2 and labels["Pneumonia"] == 3, "1.0, 0.0, -1.0"
    assert sum(labels.values()) == 6, "a blank is 0, not mentioned"
    assert studies["s50000003"]["labels"] == [0] * 14
    assert "labels" not in studies["s50000004"]


def test_counted_by_image_as_r2gen_counts(tmp_path):
    command(tree(tmp_path / "raw"), tmp_path / "set", "--count", "images")
    prepared = Prepared(tmp_path / "set")
    assert [study["id"] for study in prepared.studies] == ["c-pa", "b-ap", "d-lat", "a-none", "g-ll", "f-lpo", "h-ap"]
    assert {study["report"] for study in prepared.studies[:4]} == {"The lungs are\n clear."}
    assert all(len(study["views"]) == 1 for study in prepared.studies)
    assert prepared.manifest["counts"] == {"train": 4, "val": 2, "test": 1}
    assert prepared.manifest["options"] == {
        "source": "mimic_cxr", "target": "findings", "views": 1, "count": "images", "size": 16,
        "split_file": file_digest(tmp_path / "raw/mimic-cxr-2.0.0-split.csv.gz")}


def test_views_of_single_images_make_no_sense(tmp_path, capsys):
    assert command(tree(tmp_path / "raw"), tmp_path / "set", "--count", "images", "--views", "3") == 2
    assert "--views" in capsys.readouterr().err


def test_views_and_targets(tmp_path):
    raw = tree(tmp_path)

    def positions(views):
        return mimic_cxr.collect(raw, views=views)[0][0].extra["view_positions"]

    assert positions(1) == ["PA"] and positions(3) == ["PA", "AP", "LATERAL"]
    assert positions(9) == ["PA", "AP", "LATERAL", ""]
    texts = {study.id: study.report for study in mimic_cxr.collect(raw, target="both")[0]}
    assert texts == {"s50000001": "The lungs are\n clear.\n\nNo acute disease.", "s50000002": "Clear.",
                     "s50000003": "Effusion ___.", "s50000004": "The lungs are\n clear.\n\nNo acute disease."}
    assert len(mimic_cxr.collect(raw, target="impression")[0]) == 3


@pytest.mark.parametrize("where", [
    {"pictures": "mimic-cxr-jpg/files", "reports": "mimic-cxr-reports/files", "tables": "mimic-cxr-jpg"},
    {"pictures": "physionet.org/files/mimic-cxr-jpg/2.1.0/files",
     "reports": "physionet.org/files/mimic-cxr/2.0.0/files",
     "tables": "physionet.org/files/mimic-cxr-jpg/2.1.0"},
    {"pictures": ".", "reports": ".", "packed": False}])
def test_texts_beside_the_pictures_or_merged(tmp_path, where):
    command(tree(tmp_path / "a"), tmp_path / "set_a")
    command(tree(tmp_path / "b", **where), tmp_path / "set_b")
    for name in ("studies.jsonl", "images.npy"):
        assert (tmp_path / "set_a" / name).read_bytes() == (tmp_path / "set_b" / name).read_bytes()
    a, b = (json.loads((tmp_path / name / "manifest.json").read_text("utf-8")) for name in ("set_a", "set_b"))
    assert (a["options"].pop("split_file") == b["options"].pop("split_file")) == where.get("packed", True) and a == b


def test_texts_and_tables_that_a_windows_editor_has_saved(tmp_path):
    tree(tmp_path / "a"), tree(tmp_path / "b", packed=False)
    for path in [*(tmp_path / "b").rglob("*.txt"), *(tmp_path / "b").glob("*.csv")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    command(tmp_path / "a", tmp_path / "set_a"), command(tmp_path / "b", tmp_path / "set_b")
    assert (tmp_path / "set_a/studies.jsonl").read_bytes() == (tmp_path / "set_b/studies.jsonl").read_bytes()


def test_an_unfinished_wget_without_a_password_is_named(tmp_path, capsys):
    """PhysioNet answers with its index pages alone."""
    raw = tree(tmp_path / "raw")
    for path in [*raw.rglob("*.jpg"), *raw.rglob("*.txt")]:
        path.with_suffix(".html").write_text("<html>log in</html>")
        path.unlink()
    refused(raw, tmp_path / "set", capsys, "no reports (p1?/p*/s*.txt)", "mimic-cxr-reports.zip")


def test_a_tree_may_be_a_link_and_a_picture_may_not(tmp_path):
    raw = tree(tmp_path / "raw")
    (raw / "files").rename(tmp_path / "big_disk")
    (raw / "files").symlink_to(tmp_path / "big_disk")
    Image.new("L", (9, 9), 7).save(tmp_path / "secret.jpg")
    picture = tmp_path / "big_disk/p19/p19000034/s50000004/h-ap.jpg"
    picture.unlink()
    picture.symlink_to(tmp_path / "secret.jpg")
    assert command(raw, tmp_path / "set") == 0
    skipped = {one["id"]: one["why"] for one in Prepared(tmp_path / "set").manifest["skipped"]}
    assert "leads out of the folder" in skipped["s50000004"]


def test_missing_and_cut_pictures_are_named(tmp_path):
    raw = tree(tmp_path / "raw")
    (raw / "files/p10/p10000032/s50000001/b-ap.jpg").unlink()
    path = raw / "files/p19/p19000034/s50000004/h-ap.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    assert command(raw, tmp_path / "set") == 0
    prepared = Prepared(tmp_path / "set")
    assert [study["id"] for study in prepared.studies] == ["s50000003"]
    skipped = {one["id"]: one["why"] for one in prepared.manifest["skipped"]}
    assert skipped["s50000001"] == "p10/p10000032/s50000001/b-ap.jpg: no such file"
    assert skipped["s50000004"].startswith("p19/p19000034/s50000004/h-ap.jpg: cannot be read")


def change(path, edit):
    header, *some = csv.reader(gzip.decompress(path.read_bytes()).decode().splitlines())
    header, some = edit(header, some)
    write_csv(path, header, some)


@pytest.mark.parametrize(("table", "edit", "words"), [
    ("split", lambda h, r: (["dicom_id", "study_id", "subject_id", "fold"], r), "no column split"),
    ("metadata", lambda h, r: (h[:3], [row[:3] for row in r]), "no column ViewPosition"),
    ("chexpert", lambda h, r: ([name.replace("Lung Opacity", "Airspace Opacity") for name in h], r),
     "no column Lung Opacity"),
    ("split", lambda h, r: (h, r + [["z", "50000009", "10000032", "test"]]),
     "patient 10000032 is in train and in test"),
    ("split", lambda h, r: (h, r + [r[0]]), "is in two rows"),
    ("split", lambda h, r: (h, r + [["z", "50000001", "10000099", "train"]]), "study 50000001 has the patients"),
    ("split", lambda h, r: (h, r + [["../../../z", "50000001", "10000032", "train"]]), "a row with impossible values"),
    ("split", lambda h, r: (h, r + [["z", "../x", "10000032", "train"]]), "a row with impossible values"),
    ("split", lambda h, r: (h, r + [["z", "1", "2", "dev"]]), "a row with impossible values"),
    ("split", lambda h, r: (h, r + [["z", "1"]]), "only 2 columns"),
    ("chexpert", lambda h, r: (h, [row[:-1] + ["maybe"] for row in r]), "a label other than"),
    ("chexpert", lambda h, r: (h, r + [r[0][:2] + ["1.0"] * 14]), "50000001 is in two rows"),
    ("metadata", lambda h, r: (h, r + [r[0][:3] + ["AP"]]), "d-lat is in two rows"),
])
def test_hostile_tables(tmp_path, capsys, table, edit, words):
    raw = tree(tmp_path / "raw")
    change(raw / f"mimic-cxr-2.0.0-{table}.csv.gz", edit)
    refused(raw, tmp_path / "set", capsys, words, table)


def refused(raw, out, capsys, *words):
    assert command(raw, out) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words), message
    assert not out.exists()


def test_images_without_a_metadata_row_are_counted(tmp_path, capsys):
    raw = tree(tmp_path / "raw")
    change(raw / "mimic-cxr-2.0.0-metadata.csv.gz", lambda h, r: (h, r[:-3]))
    assert command(raw, tmp_path / "set") == 0
    assert "3  images without a metadata row (published: 0; DIFFERS)" in capsys.readouterr().out


def test_without_its_pictures_the_folder_and_the_reason_are_named(tmp_path, capsys):
    raw = tree(tmp_path / "raw")
    for path in list(raw.rglob("*.jpg")):
        path.unlink()
    refused(raw, tmp_path / "set", capsys, f"{raw}: no pictures", "MIMIC-CXR-JPG", "--text-only")
    Image.new("L", (9, 9)).save(raw / "files/p10/p10000032/s50000001/another.jpg")
    assert command(raw, tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert f"{raw}/files: no study is left; 3 of 3" in message and "jpg: no such file; compare" in message
    assert not any((tmp_path / "set").iterdir())


def test_mimic_cxr_beside_mimic_cxr_jpg_as_physionet_lays_both_out(tmp_path, capsys):
    """The DICOM files stand beside the reports, in folders of the same names as the JPGs'."""
    plain = tree(tmp_path / "plain")
    jpg, dicom = "physionet.org/files/mimic-cxr-jpg/2.1.0/files", "physionet.org/files/mimic-cxr/2.0.0/files"
    raw = tree(tmp_path / "raw", pictures=jpg, reports=dicom, tables="physionet.org/files/mimic-cxr-jpg/2.1.0")
    for path in list((raw / jpg).rglob("*.jpg")):
        beside = raw / dicom / path.relative_to(raw / jpg).with_suffix(".dcm")
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(bytes(128) + b"DICM")
    assert command(plain, tmp_path / "a") == command(raw, tmp_path / "b") == 0
    for name in ("studies.jsonl", "images.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for path in list(raw.rglob("*.jpg")):
        path.unlink()
    refused(raw, tmp_path / "set", capsys, "no pictures", "DICOM files of MIMIC-CXR are not read")


def test_another_download_is_not_taken_for_the_finished_one(tmp_path, capsys):
    raw = tree(tmp_path / "raw")
    assert command(raw, tmp_path / "set") == command(raw, tmp_path / "set") == 0
    assert command(tmp_path / "none", tmp_path / "set") == 2 and "no such folder" in capsys.readouterr().err
    change(raw / "mimic-cxr-2.0.0-split.csv.gz", lambda h, r: (h, r[:-1]))
    assert command(raw, tmp_path / "set") == 2 and "another split_file" in capsys.readouterr().err


def test_damaged_tables(tmp_path, capsys):
    raw = tree(tmp_path / "raw")
    path = raw / "mimic-cxr-2.0.0-split.csv.gz"
    whole = path.read_bytes()
    for data in (whole[:-20], whole[:30] + b"\0\0\0\0" + whole[34:], b"<html>404</html>", b"",
                 gzip.compress(gzip.decompress(whole).replace(b"train", b"tr\xe9in"))):
        path.write_bytes(data)
        refused(raw, tmp_path / "set", capsys, "split.csv.gz")
    path.unlink()
    refused(raw, tmp_path / "set", capsys, "mimic-cxr-2.0.0-split.csv.gz", "download")


def test_a_tree_without_reports_or_with_two(tmp_path, capsys):
    raw = tree(tmp_path / "a")
    for path in raw.rglob("s*.txt"):
        path.unlink()
    refused(raw, tmp_path / "set", capsys, "mimic-cxr-reports.zip")
    raw = tree(tmp_path / "b")
    (raw / "copy/p10/p10000032").mkdir(parents=True)
    (raw / "copy/p10/p10000032/s50000001.txt").write_text(NORMAL)
    refused(raw, tmp_path / "set", capsys, "reports (p1?/p*/s*.txt) in both")


def test_without_labels_and_text_only(tmp_path):
    raw = tree(tmp_path / "raw")
    (raw / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    for path in list(raw.rglob("*.jpg")):
        path.unlink()
    assert command(raw, tmp_path / "set", "--text-only") == 0
    lines = [json.loads(line) for line in (tmp_path / "set/studies.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 3 and not any("labels" in line for line in lines)
