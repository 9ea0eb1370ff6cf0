import csv
import json
import tarfile
from collections import Counter

import pytest
from PIL import Image

from data import openi, prepare
from data.dataset import Prepared
from tests import real


def report(number, pictures, findings="Lungs clear.", impression="Normal.", before=""):
    """A report as Open-i writes it; an empty section is a self-closed element."""
    sections = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' if text
                       else f'<AbstractText Label="{label}"/>'
                       for label, text in (("COMPARISON", "None."), ("FINDINGS", findings), ("IMPRESSION", impression)))
    images = "".join(f'<parentImage id="{name}"><panel><url>/x/{name}.jpg</url></panel></parentImage>'
                     for name in pictures)
    return (f'<?xml version="1.0" encoding="utf-8"?>\n{before}<eCitation><uId id="CXR{number}"/><MedlineCitation>'
            f"<Article><Abstract>{sections}</Abstract></Article></MedlineCitation>{images}</eCitation>\n")


def names(number, count):
    return [f"CXR{number}_IM-{number:04d}-{view + 1}001" for view in range(count)]


def tree(raw, reports, folder="ecgen-radiology", pictures="NLMCXR_png"):
    """{file: xml} and a small PNG for every picture that the reports name."""
    (raw / folder).mkdir(parents=True)
    (raw / pictures).mkdir(parents=True, exist_ok=True)
    for file, text in reports.items():
        (raw / folder / file).write_text(text, "utf-8")
        for name in [part.split('"')[0] for part in text.split('parentImage id="')[1:]]:
            Image.new("L", (8, 10), 40 + len(name)).save(raw / pictures / f"{name}.png")
    return raw


def small(raw, **where):
    return tree(raw, {
        "1.xml": report(1, ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]),
        "2.xml": report(2, names(2, 3), findings="Heart &lt; normal &amp; stable. XXXX.  1. No edema"),
        "3.xml": report(3, names(3, 2), findings=""),
        "4.xml": report(4, names(4, 1)),
        "5.xml": report(5, []),
        "6.xml": report(6, names(6, 2), findings="", impression=""),
        "7.xml": report(7, ["CXR7_IM-0007-1001-0001", "CXR7_IM-0007-1001-0002"], impression=""),
        "10.xml": report(10, names(10, 2)),
    }, **where)


def command(raw, out, *others):
    pictures = () if "--text-only" in others else ("--size", "8", "--workers", "1")
    return prepare.main(["openi", "--raw", str(raw), "--out", str(out), *pictures, *others])


def test_the_default_rule(tmp_path):
    assert command(small(tmp_path / "raw"), tmp_path / "set") == 0
    prepared = Prepared(tmp_path / "set")
    assert [study["id"] for study in prepared.studies] == ["CXR1_1_IM-0001", "CXR2_IM-0002", "CXR7_IM-0007-1001",
                                                           "CXR10_IM-0010"]
    assert prepared.studies[1]["report"] == "Heart < normal & stable. XXXX.  1. No edema", "raw, entities resolved"
    assert prepared.studies[1]["view_names"] == names(2, 2) and len(prepared.studies[1]["views"]) == 2
    assert {one["id"]: one["why"] for one in prepared.manifest["skipped"]} == {
        "CXR3_IM-0003": "no findings in the report", "CXR4_IM-0004": "fewer than 2 pictures",
        "CXR5": "fewer than 2 pictures", "CXR6_IM-0006": "no findings in the report"}
    assert [number for number, _ in prepared.manifest["found"].values()] == [8, 14, 6, 4]


@pytest.mark.parametrize("where", [{"folder": "NLMCXR_reports/ecgen-radiology"}, {"folder": ".", "pictures": "."},
                                   {"pictures": "NLMCXR_png/NLMCXR_png"}])
def test_any_nesting_gives_the_same_bytes(tmp_path, where):
    command(small(tmp_path / "a"), tmp_path / "set_a")
    command(small(tmp_path / "b", **where), tmp_path / "set_b")
    for name in ("studies.jsonl", "images.npy", "manifest.json"):
        assert (tmp_path / "set_a" / name).read_bytes() == (tmp_path / "set_b" / name).read_bytes()


def ids(raw, **options):
    return [study.id for study in openi.collect(raw, text_only=True, **options)[0]]


def test_targets_and_views(tmp_path):
    raw = small(tmp_path / "raw")
    assert ids(raw, target="impression") == ["CXR1_1_IM-0001", "CXR2_IM-0002", "CXR3_IM-0003", "CXR10_IM-0010"]
    assert ids(raw, target="both") == ["CXR1_1_IM-0001", "CXR2_IM-0002", "CXR3_IM-0003", "CXR7_IM-0007-1001",
                                       "CXR10_IM-0010"]
    texts = {study.id: study.report for study in openi.collect(raw, target="both")[0]}
    assert texts["CXR10_IM-0010"] == "Lungs clear.\n\nNormal." and texts["CXR3_IM-0003"] == "Normal."
    assert "CXR4_IM-0004" in ids(raw, views=1)
    three = {study.id: study.pictures for study in openi.collect(raw, views=3)[0]}
    assert len(three["CXR2_IM-0002"]) == 3 and len(three["CXR10_IM-0010"]) == 2


def test_a_seeded_split_depends_on_the_ids_alone(tmp_path):
    reports = {f"{n}.xml": report(n, names(n, 2)) for n in range(1, 101)}
    split = {study.id: study.split for study in openi.collect(tree(tmp_path / "a", reports), text_only=True)[0]}
    renamed = {f"x{100 - n}.xml": report(n, names(n, 2)) for n in range(1, 101)}
    again = {study.id: study.split for study in openi.collect(tree(tmp_path / "b", renamed), text_only=True)[0]}
    other = {study.id: study.split for study in openi.collect(tmp_path / "a", text_only=True, seed=1)[0]}
    assert Counter(split.values()) == {"train": 70, "val": 10, "test": 20}
    assert split == again and split != other and Counter(other.values()) == Counter(split.values())


def test_the_split_of_r2gens_file(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    entries = {"train": ["CXR10_IM-0010"], "val": ["CXR1_1_IM-0001"], "test": ["CXR2_IM-0002", "CXR999_IM-1"]}
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({split: [{"id": name, "report": "x", "image_path": [f"{name}/0.png"]} for name in some]
                                for split, some in entries.items()}))
    assert command(raw, tmp_path / "set", "--split-from", str(path)) == 0
    prepared = Prepared(tmp_path / "set")
    assert {study["id"]: study["split"] for study in prepared.studies} == {
        "CXR10_IM-0010": "train", "CXR1_1_IM-0001": "val", "CXR2_IM-0002": "test"}
    path.write_text(path.read_text().replace("val", "other").replace("test", "val").replace("other", "test"))
    assert command(raw, tmp_path / "set", "--split-from", str(path)) == 2, "the same name, another split"
    assert "another split_from" in capsys.readouterr().err
    why = {one["id"]: one["why"] for one in prepared.manifest["skipped"]}
    assert why["CXR7_IM-0007-1001"] == "not in annotation.json"
    assert why["CXR999_IM-1"] == "in annotation.json, but no such report in the download"


def test_kaggles_table_puts_frontal_first(tmp_path):
    raw = small(tmp_path / "raw")
    (raw / "indiana_projections.csv").write_text(
        "uid,filename,projection\n2,2_IM-0002-1001.dcm.png,Lateral\n2,2_IM-0002-2001.dcm.png,Frontal\n"
        "10,10_IM-0010-2001.dcm.png,Frontal\n7,7_IM-0007-1001-0001.dcm.png,Lateral\n")
    found = {study.id: study for study in openi.collect(raw)[0]}
    assert found["CXR2_IM-0002"].extra == {"view_names": names(2, 2)[::-1], "view_positions": ["frontal", "lateral"]}
    assert found["CXR2_IM-0002"].pictures == [f"NLMCXR_png/{name}.png" for name in names(2, 2)[::-1]]
    assert found["CXR10_IM-0010"].extra["view_positions"] == ["frontal", ""]
    assert found["CXR7_IM-0007-1001"].extra["view_positions"] == ["", "lateral"]


@pytest.mark.parametrize(("views", "taken"), [(1, [2]), (2, [2, 0]), (3, [2, 0, 1])])
def test_a_known_frontal_is_never_lost(tmp_path, views, taken):
    """The third of three pictures is the only frontal one."""
    raw = small(tmp_path / "raw")
    (raw / "indiana_projections.csv").write_text("uid,filename,projection\n" + "".join(
        f"2,2_IM-0002-{n + 1}001.dcm.png,{view}\n" for n, view in enumerate(("Lateral", "Lateral", "Frontal"))))
    found = {study.id: study for study in openi.collect(raw, views=views)[0]}["CXR2_IM-0002"]
    assert found.extra["view_names"] == [names(2, 3)[n] for n in taken]
    assert found.extra["view_positions"][0] == "frontal"


def test_marked_up_text_is_read_whole(tmp_path):
    raw = tree(tmp_path / "raw", {"1.xml": report(1, names(1, 2), findings="Heart <b>big</b>. Lungs clear.")})
    assert openi.collect(raw)[0][0].report == "Heart big. Lungs clear."


def test_pictures_under_other_names_are_the_reason(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    for path in sorted(raw.rglob("*.png")):
        path.rename(path.with_name("x" + path.name))
    assert command(raw, tmp_path / "set") == 2
    assert f"{raw}: no study is left; 4 of 4 were left out" in (message := capsys.readouterr().err)
    assert "CXR1_1_IM-0001-3001.png: no such file; compare" in message and not any((tmp_path / "set").iterdir())


def as_kaggle_ships_it(raw):
    """Kaggle's copy of `small`: its names, its tables, only the reports that have a picture. Returns what was XML."""
    reports = {path: openi._parse(path) for path in sorted(raw.rglob("*.xml"))}
    (raw / "NLMCXR_png").rename(raw / "images_normalized")
    file_of = {name: name.removeprefix("CXR").replace("1_1_IM", "1_IM") + ".dcm.png"
               for report in reports.values() for name in report.names}
    for name, file in file_of.items():
        (raw / "images_normalized" / f"{name}.png").rename(raw / "images_normalized" / file)
    with open(raw / "indiana_reports.csv", "w", newline="") as reports_csv, \
            open(raw / "indiana_projections.csv", "w", newline="") as projections_csv:
        texts, views = csv.writer(reports_csv), csv.writer(projections_csv)
        texts.writerow(["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"])
        views.writerow(["uid", "filename", "projection"])
        for report in reports.values():
            uid = report.uid.removeprefix("CXR")
            if report.names:
                texts.writerow([uid, "normal", "normal", "Chest", "", "", report.findings, report.impression])
            views.writerows([uid, file_of[name], "Frontal"] for name in report.names[::-1])
    return list(reports)


def test_kaggles_copy_with_the_xml_or_with_its_tables_alone(tmp_path, capsys):
    small(tmp_path / "openi")
    xmls = as_kaggle_ships_it(small(tmp_path / "kaggle"))
    assert command(tmp_path / "openi", tmp_path / "a") == command(tmp_path / "kaggle", tmp_path / "b") == 0
    for path in xmls:
        path.unlink()
    capsys.readouterr()
    assert command(tmp_path / "kaggle", tmp_path / "c") == 0
    output = capsys.readouterr().out
    assert "7  reports (published: 3,955; DIFFERS)" in output
    assert "7  reports in Kaggle's copy (published: 3,851; DIFFERS)" in output
    studies = [Prepared(tmp_path / name).studies for name in "abc"]
    for study in studies[1] + studies[2]:
        assert study.pop("view_positions") == ["frontal"] * 2
    assert studies[0] == studies[1] == studies[2], "the same ids (that of report 1 too), splits, texts and pictures"
    assert len({(tmp_path / name / "images.npy").read_bytes() for name in "abc"}) == 1


def test_half_of_kaggles_tables_is_not_enough(tmp_path, capsys):
    for path in as_kaggle_ships_it(small(tmp_path / "raw")):
        path.unlink()
    (tmp_path / "raw/indiana_reports.csv").unlink()
    assert command(tmp_path / "raw", tmp_path / "set") == 2
    assert "indiana_reports.csv and indiana_projections.csv" in capsys.readouterr().err


def test_kaggles_real_tables_give_r2gens_studies(tmp_path, capsys):
    (tmp_path / "raw").symlink_to(real("kaggle"))
    annotation = real("iu_xray_annotation.json")
    assert command(tmp_path / "raw", tmp_path / "set", "--text-only", "--split-from", str(annotation)) == 0
    output = capsys.readouterr().out
    for line in ("3,851  reports in Kaggle's copy (published: 3,851)",
                 "7,466  pictures in Kaggle's copy (published: 7,466)", "2,069 / 296 / 590 studies",
                 "2,955  reports with findings and two pictures or more (published: 2,955)"):
        assert line in output
    made = [json.loads(line) for line in (tmp_path / "set/studies.jsonl").read_text("utf-8").splitlines()]
    theirs = {entry["id"]: (split, entry["report"]) for split, entries in json.loads(
        annotation.read_text("utf-8")).items() for entry in entries}
    assert {study["id"]: (study["split"], study["report"]) for study in made} == theirs


def test_missing_and_broken_pictures_are_named(tmp_path):
    raw = small(tmp_path / "raw")
    (raw / "NLMCXR_png/CXR2_IM-0002-2001.png").unlink()
    (raw / "NLMCXR_png/CXR10_IM-0010-1001.png").write_bytes(b"")
    assert command(raw, tmp_path / "set") == 0
    why = {one["id"]: one["why"] for one in Prepared(tmp_path / "set").manifest["skipped"]}
    assert why["CXR2_IM-0002"] == "CXR2_IM-0002-2001.png: no such file"
    assert why["CXR10_IM-0010"].startswith("NLMCXR_png/CXR10_IM-0010-1001.png: cannot be read")


BOMB = ('<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
        '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>')
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(("file", "content", "words"), [
    ("9.xml", report(9, names(9, 2), findings="&c;", before=BOMB).encode(), "document type"),
    ("9.xml", report(9, names(9, 2), findings="&a;", before=OUTSIDE).encode(), "document type"),
    ("9.xml", report(9, names(9, 2), findings="&a;", before=OUTSIDE).replace("utf-8", "utf-16").encode("utf-16"),
     "not UTF-8"),
    ("9.xml", report(9, names(9, 2), findings="&a;", before=OUTSIDE).encode("utf-16-le"), "broken XML"),
    ("9.xml", report(9, names(9, 2), findings="caf\xe9").encode("latin-1"), "not UTF-8"),
    ("9.xml", report(9, names(9, 2)).encode()[:200], "broken XML"),
    ("9.xml", report(9, names(9, 2), findings="&nbsp;").encode(), "broken XML"),
    ("9.xml", b"<html></html>", "no uId"),
    ("9.xml", b"", "broken XML"),
    ("sub/1.xml", report(1, names(1, 2)).encode(), "has the same name"),
    ("11.xml", report(10, names(10, 2)).encode(), "two studies have the id 'CXR10_IM-0010', this one and the one of"),
    ("9.xml", report(9, ["../../secret", "CXR9_2"]).encode(), None),
])
def test_hostile_reports(tmp_path, capsys, file, content, words):
    raw = small(tmp_path / "raw")
    Image.new("L", (8, 8), 7).save(tmp_path / "secret.png")
    (raw / file).parent.mkdir(exist_ok=True)
    (raw / file).write_bytes(content)
    code = command(raw, tmp_path / "set")
    if words is None:
        assert code == 0
        assert "../../secret.png" in Prepared(tmp_path / "set").manifest["skipped"][-1]["why"]
        return
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1 and words in message and "etc/hostname" not in message
    assert not (tmp_path / "set").exists()


def test_reports_that_a_windows_editor_has_saved(tmp_path):
    plain, saved = small(tmp_path / "a"), small(tmp_path / "b")
    for path in saved.rglob("*.xml"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert openi.collect(plain).studies == openi.collect(saved).studies


def test_links_out_of_the_download_are_refused(tmp_path, capsys):
    raw = small(tmp_path / "raw")
    (tmp_path / "outside.xml").write_text(report(20, names(20, 2)))
    (raw / "20.xml").symlink_to(tmp_path / "outside.xml")
    assert command(raw, tmp_path / "set") == 2 and "leads out" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_what_is_missing_is_said(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert command(tmp_path / "raw", tmp_path / "set") == 2
    assert "NLMCXR_reports.tgz" in capsys.readouterr().err
    (tmp_path / "raw/1.xml").write_text(report(1, names(1, 2)))
    assert command(tmp_path / "raw", tmp_path / "set") == 2
    assert "NLMCXR_png.tgz" in capsys.readouterr().err


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published reports, unpacked, and R2Gen's annotation."""
    archive, annotation = real("NLMCXR_reports.tgz"), real("iu_xray_annotation.json")
    raw = tmp_path_factory.mktemp("openi")
    with tarfile.open(archive) as tar:
        tar.extractall(raw, filter="data")
    return raw, annotation


def test_the_published_reports_give_r2gens_studies(published, tmp_path, capsys):
    raw, annotation = published
    assert command(raw, tmp_path, "--text-only", "--split-from", str(annotation)) == 0
    output = capsys.readouterr().out
    for line in ("3,955  reports (published: 3,955)", "7,470  pictures named in them (published: 7,470)",
                 "3,425  reports with findings (published: 3,425)", "2,069 / 296 / 590 studies",
                 "warning: 274 of 590 test reports", "warning: 65 of 296 val reports"):
        assert line in output
    assert "DIFFERS" not in output
    made = [json.loads(line) for line in (tmp_path / "studies.jsonl").read_text("utf-8").splitlines()]
    theirs = {entry["id"]: (split, entry["report"]) for split, entries in json.loads(
        annotation.read_text("utf-8")).items() for entry in entries}
    assert {study["id"]: (study["split"], study["report"]) for study in made} == theirs
    assert all(len(study["view_names"]) == 2 for study in made)


@pytest.mark.parametrize(("options", "number"), [
    ({}, 2955), ({"views": 1}, 3337), ({"target": "both"}, 3391), ({"target": "both", "views": 1}, 3826)])
def test_other_rules_on_the_published_reports(published, options, number):
    studies = openi.collect(published[0], text_only=True, **options)[0]
    assert len(studies) == number
    shares = Counter(study.split for study in studies)
    assert [shares[split] for split in ("train", "val", "test")] == [
        round(0.7 * number), round(0.8 * number) - round(0.7 * number), number - round(0.8 * number)]


def test_published_reports_with_stand_in_pictures(published, tmp_path, capsys):
    """A stand-in for every one of the 7,470 names, the whole way."""
    raw, annotation = published
    (raw / "NLMCXR_png").mkdir()
    drawn = {}
    for path in raw.glob("ecgen-radiology/*.xml"):
        for name in openi._parse(path).names:
            level = sum(name.encode()) % 200 + 50
            if level not in drawn:
                Image.new("L", (5, 6), level).save(tmp_path / "one.png")
                drawn[level] = (tmp_path / "one.png").read_bytes()
            (raw / f"NLMCXR_png/{name}.png").write_bytes(drawn[level])
    assert len(list((raw / "NLMCXR_png").iterdir())) == 7470
    assert command(raw, tmp_path / "set", "--split-from", str(annotation)) == 0
    assert "2,069 / 296 / 590 studies" in capsys.readouterr().out
    prepared = Prepared(tmp_path / "set")
    assert len(prepared.studies) == 2955 and len(prepared.images) == 5910
    for study in prepared.studies:
        levels = [int(picture.max()) for picture in prepared.pictures(study)]
        assert levels == [sum(name.encode()) % 200 + 50 for name in study["view_names"]]
