"""Indiana University chest X-rays (IU X-Ray), from Open-i (National Library of Medicine) or from Kaggle.

    RAW/…/*.xml   NLMCXR_reports.tgz: 3,955 reports, in any folder below RAW
    RAW/…/*.png   NLMCXR_png.tgz: the pictures, in any folder below RAW; or Kaggle's pictures, which have other names
    RAW/…/indiana_projections.csv   Kaggle's table of views: which pictures are frontal
    RAW/…/indiana_reports.csv       Kaggle's table of 3,851 reports with pictures; read only if there is no XML

R2Gen uses the 2,955 studies with findings and at least two pictures, and of each study the first two pictures that the
report names. The ids here are R2Gen's: the name of a study's first picture without the last part.

Choice: of a study with more than `views` pictures the first ones are taken, as R2Gen does. If none of these is frontal,
but Kaggle's table names a frontal picture of the study, the last one is replaced by the first frontal picture. The
pictures are put in the order frontal, unknown, lateral.
"""

import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from data.files import UserError, read_csv, read_text
from data.images import locate
from data.r2gen import read_annotation
from data.source import Source, Study, drawn_split

PUBLISHED = {"reports": 3955, "pictures named in them": 7470, "reports with findings": 3425,
             "reports with findings and two pictures or more": 2955}
KAGGLE = {"reports": "indiana_reports.csv", "projections": "indiana_projections.csv"}
# {Kaggle's name: the XML's name} of the two pictures of one report, which Kaggle names after their DICOM files
RENAMED = {"CXR1_IM-0001-3001": "CXR1_1_IM-0001-3001", "CXR1_IM-0001-4001": "CXR1_1_IM-0001-4001"}


class Report(NamedTuple):
    """One report; `names` are the names of its pictures in Open-i's order, which is alphabetical."""

    path: Path
    uid: str
    findings: str
    impression: str
    names: list

    def text(self, target):
        """The target text: "findings", "impression", or "both" with a blank line between; "" if there is none."""
        return {"findings": self.findings, "impression": self.impression,
                "both": "\n\n".join(text for text in (self.findings, self.impression) if text)}[target]

    @property
    def study_id(self):
        """The id that R2Gen gives the study; the report's `uid` if it has no pictures."""
        return self.names[0].rpartition("-")[0] or self.names[0] if self.names else self.uid


def collect(raw, target="findings", views=2, seed=0, split_from=None, text_only=False):
    """The `Source` of an unpacked download.

    A study needs a target text and two pictures (one if `views` is 1). `split_from` is the path of R2Gen's
    annotation.json, which gives the split. Without it the split is a random 70/10/20 % split, which depends on the ids
    and `seed` alone. Raises UserError if files are missing, damaged or contradict each other.
    """
    xmls, pngs, tables = _files(raw)
    if not pngs and not text_only:
        raise UserError(f"{raw}: no picture (*.png) in it; unpack NLMCXR_png.tgz there (links to folders are not "
                        "followed), or give --text-only")
    view_of = _views(tables["projections"]) if "projections" in tables else {}
    reports = _reports(raw, xmls, tables)

    split_of = {str(entry["id"]): split for split, entry in read_annotation(split_from)} if split_from else None
    studies, left_out = _choose(reports, target, min(2, views), split_of, split_from)
    split_of = split_of or drawn_split([report.study_id for report in studies], seed)
    studies = [_study(report, target, views, split_of[report.study_id], raw, pngs, view_of) for report in studies]

    with_findings = [report for report in reports if report.findings]
    numbers = (len(reports), sum(len(report.names) for report in reports), len(with_findings),
               sum(len(report.names) >= 2 for report in with_findings))
    counts = {what: (number, PUBLISHED[what]) for what, number in zip(PUBLISHED, numbers, strict=True)}
    if not xmls:
        counts["reports in Kaggle's copy"] = (len(reports), 3851)
        counts["pictures in Kaggle's copy"] = (counts["pictures named in them"][0], 7466)
    return Source(studies, left_out, counts, Path(raw))


def _files(raw):
    """({stem: path} of the reports, {Open-i's name: path} of the pictures, {key of KAGGLE: path}), all below `raw`."""
    xmls, pngs, tables = {}, {}, {}
    for folder, folders, files in os.walk(raw):
        folders.sort()
        for file in sorted(files):
            path = Path(folder, file)
            suffix = path.suffix.lower()
            if file.startswith("."):
                continue
            if suffix == ".xml":
                files_of_kind, key = xmls, path.stem
            elif suffix == ".png":
                files_of_kind, key = pngs, _open_i_name(path.stem)
            elif file in KAGGLE.values():
                files_of_kind, key = tables, next(key for key, name in KAGGLE.items() if name == file)
            else:
                continue
            if key in files_of_kind:
                raise UserError(f"{path}: {files_of_kind[key]} has the same name; remove one of the two")
            files_of_kind[key] = path
    if not xmls and len(tables) < len(KAGGLE):
        raise UserError(f"{raw}: no report (*.xml) in it; unpack NLMCXR_reports.tgz there (folder ecgen-radiology), "
                        f"or put Kaggle's {' and '.join(KAGGLE.values())} there")
    return xmls, pngs, tables


def _open_i_name(stem):
    """A picture's name in the reports: Kaggle's "2_IM-0652-1001.dcm" → "CXR2_IM-0652-1001"; other names unchanged."""
    if not stem.endswith(".dcm"):
        return stem
    name = "CXR" + stem.removesuffix(".dcm")
    return RENAMED.get(name, name)


def _reports(raw, xmls, tables):
    """All `Report`s in the order of their numbers, from the XML files if there are any, else from Kaggle's tables."""
    if xmls:
        reports = [_parse(locate(raw, str(path.relative_to(raw)))) for path in xmls.values()]
    else:
        names_of = {}
        for _, uid, file in read_csv(tables["projections"], "uid", "filename"):
            names_of.setdefault(uid, set()).add(_open_i_name(file.removesuffix(".png")))
        reports = []
        for _, uid, findings, impression in read_csv(tables["reports"], "uid", "findings", "impression"):
            names = sorted(names_of.get(uid, ()))
            reports.append(Report(tables["reports"], f"CXR{uid}", findings.strip(), impression.strip(), names))
    return sorted(reports, key=lambda report: (len(report.uid), report.uid))


def _parse(path):
    """The `Report` of one XML file. Raises UserError."""
    text = read_text(path)
    # No published report declares a document type. Without one no XML entity can expand or refer to other files.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: declares a document type, which no published report does; unpack the archive again")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: broken XML ({error}); unpack the archive again") from None
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise UserError(f"{path}: not an Open-i report, since it has no uId; move it out of the folder")

    text_of = {section.get("Label"): "".join(section.itertext()).strip() for section in root.iter("AbstractText")}
    return Report(path, uid.get("id"), text_of.get("FINDINGS", ""), text_of.get("IMPRESSION", ""),
                  [image.get("id", "") for image in root.iter("parentImage")])


def _choose(reports, target, enough, split_of, split_from):
    """(reports that become studies, [{"id", "why"}] of those left out). Raises UserError if two studies have one id.

    enough: the number of pictures that a study needs. split_of: {id: split} of `split_from`, or None.
    """
    chosen, left_out = {}, []
    for report in reports:
        if not report.text(target):
            why = f"no {'text' if target == 'both' else target} in the report"
        elif len(report.names) < enough:
            why = f"fewer than {enough} pictures"
        elif split_of is not None and report.study_id not in split_of:
            why = f"not in {Path(split_from).name}"
        elif report.study_id in chosen:
            raise UserError(f"{report.path}: two studies have the id {report.study_id!r}, this one and the one of "
                            f"{chosen[report.study_id].path}; remove one of the two")
        else:
            chosen[report.study_id] = report
            continue
        left_out.append({"id": report.study_id, "why": why})

    if split_of is not None:
        here = chosen.keys() | {entry["id"] for entry in left_out}
        left_out += [{"id": missing, "why": f"in {Path(split_from).name}, but no such report in the download"}
                     for missing in sorted(split_of.keys() - here)]
    return list(chosen.values()), left_out


def _study(report, target, views, split, raw, pngs, view_of):
    """The `Study` of a report, with at most `views` pictures, chosen and ordered as the top of this file says."""
    names = report.names[:views]
    frontal = [name for name in report.names if view_of.get(name) == "frontal"]
    if frontal and not set(frontal) & set(names):
        names = names[:-1] + frontal[:1]
    names = sorted(names, key=lambda name: ("frontal", "", "lateral").index(view_of.get(name, "")))

    pictures = [str(pngs[name].relative_to(raw)) if name in pngs else f"{name}.png" for name in names]
    extra = {"view_names": names}
    if view_of:
        extra["view_positions"] = [view_of.get(name, "") for name in names]
    return Study(report.study_id, split, report.text(target), pictures, extra)


def _views(path):
    """{picture: "frontal" or "lateral"} of the pictures for which Kaggle's table names the view."""
    return {_open_i_name(file.removesuffix(".png")): projection.lower()
            for _, file, projection in read_csv(path, "filename", "projection")
            if projection in ("Frontal", "Lateral")}
