"""Open-i's Indiana University chest X-rays (IU X-Ray) from the two archives of the National Library of Medicine.

    RAW/…/*.xml   NLMCXR_reports.tgz: 3,955 reports, in ecgen-radiology/ under any parent
    RAW/…/*.png   NLMCXR_png.tgz: the pictures, in NLMCXR_png/ or flat
    RAW/indiana_projections.csv   optional (Kaggle's copy of the collection): which pictures are frontal

R2Gen's 2,955 studies are those with findings and at least two pictures, and its pictures are the first two that the
report names. An id here is R2Gen's: the first picture's name without its last part.

Choice: of a study with more pictures than `views` the first ones are taken, as R2Gen does; only where Kaggle's table
knows a frontal picture of the study and none of those is one does the first frontal take the last one's place. They
are put in the order frontal, unknown, lateral.
"""

import hashlib
import os
from pathlib import Path
from xml.etree import ElementTree

from data.dataset import Study
from data.files import UserError, read_csv, read_text
from data.images import locate
from data.r2gen import read_annotation

PUBLISHED = {"reports": 3955, "pictures named in them": 7470, "reports with findings": 3425,
             "reports with findings and two pictures or more": 2955}
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def collect(raw, target="findings", views=2, seed=0, split_from=None, text_only=False):
    """(studies, skipped, found, folder of the pictures) of an unpacked download.

    A study needs its target text and two pictures (one if `views` is 1). The split is `split_from`'s (R2Gen's
    annotation.json), else a seeded 70/10/20 one that depends on the ids alone. Raises UserError.
    """
    reports, pngs = {}, {}
    for folder, folders, files in os.walk(raw):
        folders.sort()
        for file in sorted(files):
            kept = {".xml": reports, ".png": pngs}.get(Path(file).suffix.lower())
            if kept is None or file.startswith("."):
                continue
            stem, path = Path(file).stem, Path(folder, file)
            if stem in kept:
                raise UserError(f"{path}: {kept[stem]} has the same name; remove one of the two")
            kept[stem] = path
    if not reports:
        raise UserError(f"{raw}: no report (*.xml) in it; unpack NLMCXR_reports.tgz there (folder ecgen-radiology)")
    if not pngs and not text_only:
        raise UserError(f"{raw}: no picture (*.png) in it; unpack NLMCXR_png.tgz there (linked folders are not "
                        "followed) or ask for --text-only")

    parsed = [_parse(locate(raw, str(path.relative_to(raw)))) for path in reports.values()]
    parsed.sort(key=lambda report: (len(report["uid"]), report["uid"]))
    views_of = _views(Path(raw) / "indiana_projections.csv")
    split_of = _published_split(split_from) if split_from else None
    enough = min(2, views)
    studies, skipped, path_of = [], [], {}
    for report in parsed:
        text = _text(report, target)
        names = report["pictures"]
        study_id = (names[0].rpartition("-")[0] or names[0]) if names else report["uid"]
        if not text:
            skipped.append({"id": study_id, "why": f"no {'text' if target == 'both' else target} in the report"})
        elif len(names) < enough:
            skipped.append({"id": study_id, "why": f"fewer than {enough} pictures"})
        elif split_of is not None and study_id not in split_of:
            skipped.append({"id": study_id, "why": f"not in {Path(split_from).name}"})
        else:
            if study_id in path_of:
                raise UserError(f"{report['path']}: two studies have the id {study_id!r}, this one and that of "
                                f"{path_of[study_id]}; remove one of the two")
            path_of[study_id] = report["path"]
            frontal = [name for name in names if views_of.get(name) == "frontal"]
            names = names[:views]
            if frontal and not set(frontal) & set(names):
                names = names[:-1] + frontal[:1]
            names = sorted(names, key=lambda name: ("frontal", "", "lateral").index(views_of.get(name, "")))
            pictures = [str(pngs[name].relative_to(raw)) if name in pngs else f"{name}.png" for name in names]
            extra = {"view_names": names}
            if views_of:
                extra["view_positions"] = [views_of.get(name, "") for name in names]
            studies.append(Study(study_id, "train", text, pictures, extra))
    if split_of is not None:
        known = {study.id for study in studies} | {entry["id"] for entry in skipped}
        skipped += [{"id": missing, "why": f"in {Path(split_from).name}, but no such report in the download"}
                    for missing in sorted(split_of.keys() - known)]
    split_of = split_of or _seeded_split([study.id for study in studies], seed)
    studies = [study._replace(split=split_of[study.id]) for study in studies]
    with_findings = [report for report in parsed if report["FINDINGS"]]
    numbers = (len(parsed), sum(len(report["pictures"]) for report in parsed), len(with_findings),
               sum(len(report["pictures"]) >= 2 for report in with_findings))
    found = {what: (number, PUBLISHED[what]) for what, number in zip(PUBLISHED, numbers, strict=True)}
    return studies, skipped, found, Path(raw)


def _parse(path):
    """{"path", "uid", "FINDINGS", "IMPRESSION", "pictures"} of one report."""
    text = read_text(path)
    # The published reports declare no document type; without one no entity can expand or point anywhere.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: declares a document type, which no published report does; refused")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: broken XML ({error}); unpack the archive anew") from None
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise UserError(f"{path}: no uId, so this is no Open-i report; move it out of the folder")
    report = {"path": path, "uid": uid.get("id"), "FINDINGS": "", "IMPRESSION": "",
              "pictures": [image.get("id", "") for image in root.iter("parentImage")]}
    for section in root.iter("AbstractText"):
        if section.get("Label") in report:
            report[section.get("Label")] = "".join(section.itertext()).strip()
    return report


def _text(report, target):
    if target == "both":
        return "\n\n".join(report[section] for section in ("FINDINGS", "IMPRESSION") if report[section])
    return report[target.upper()]


def _views(path):
    """{picture: "frontal" or "lateral"}, as far as Kaggle's table knows; there a name is "1_IM-0001-4001.dcm.png"."""
    if not path.exists():
        return {}
    return {"CXR" + filename.removesuffix(".png").removesuffix(".dcm"): projection.lower()
            for filename, projection in read_csv(path, "filename", "projection")
            if projection in ("Frontal", "Lateral")}


def _published_split(path):
    return {str(entry["id"]): split for split, entry in read_annotation(path)}


def _seeded_split(ids, seed):
    """Ids in the order of their hash, cut at 70 and 80 %: no order of files and no random generator has a say."""
    ranked = sorted(ids, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    ends = round(SHARES["train"] * len(ids)), round((SHARES["train"] + SHARES["val"]) * len(ids))
    return {name: "train" if n < ends[0] else "val" if n < ends[1] else "test" for n, name in enumerate(ranked)}
