"""MIMIC-CXR from PhysioNet: the pictures and csv files of MIMIC-CXR-JPG, and the report texts of MIMIC-CXR.

    RAW/…/p10/p10000032/s50414267/<dicom_id>.jpg   the pictures, in the folder files/ of MIMIC-CXR-JPG
    RAW/…/p10/p10000032/s50414267.txt              mimic-cxr-reports.zip, unpacked beside these folders or into them
    RAW/…/mimic-cxr-2.0.0-{split,metadata,chexpert}.csv[.gz]

Our rules where the release leaves a choice:
- The split is the official one, by patient; "validate" is called val.
- Sections are found as by the official parser, MIT-LCP/mimic-cxr's txt/section_parser.py. Of two sections with one name
  the last is used. So a header must be in capitals, "FINDINGS AND IMPRESSION" is an impression, and an addendum or a
  wet read is a section of its own, never the target.
- A target text ends at a line of underscores, or at a line that begins with WET READ: another document follows there.
- For 46 studies the parser's authors list where the descriptive text is. This text is used for any target. The 8
  studies that describe nothing, by the same list, are left out.
- The order of views is PA, AP, LATERAL, LL, other, unknown.
"""

import itertools
import re
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data.files import UserError, read_csv, read_text
from data.images import locate
from data.reports import LABELS
from data.source import SPLITS, Source, Study, label_codes

PUBLISHED = {"images in the split file": 377110, "studies": 227835, "patients": 65379, "images to train on": 368960,
             "images to validate on": 2991, "images to test on": 5159}
SPLIT_OF = {"train": "train", "validate": "val", "test": "test"}
VIEW_ORDER = ("PA", "AP", "LATERAL", "LL")

# The parser's rules for the names of sections (MIT-LCP/mimic-cxr, txt/section_parser.py), including its mistake with
# "ndication". A lower-cased header is looked up in SECTION_NAMES, then searched for SECTION_WORDS and SECTION_VIEWS.
SECTION_NAMES = {
    "impression": ("conclusion", "findings and impression", "findings/impression", "findings/ impression", "ndication",
                   "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion",
                   "mpression", "impession"),
    "findings": ("chest, two views", "finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs",
                 "reference findings"),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "comparison": ("comparisons", "reference exam", "comparison exam", "comparison film", "comparision", "comparsion",
                   "comparrison", "comparisions"),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation(s)", "recommendation"),
    "wet read": ("wetread",),
}
SECTION_OF = {alias: name for name, aliases in SECTION_NAMES.items() for alias in aliases}
SECTION_WORDS = ("impression", "findings", "history", "comparison", "addendum")
SECTION_VIEWS = re.compile("chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|"
                           "two views|frontal view|pa view|ap view|one view|lateral view|bone window|frontal upright|"
                           "frontal semi-upright|ribs")
HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
OTHER_DOCUMENT = re.compile(r"(?m)^[ \t]*(?:_{10,}[ \t]*$|WET READ\b)")

# Studies whose descriptive text is below another header …
ODD_SECTIONS = {
    "recommendations": "s50913680 s59768032 s59067458 s59087630 s58157373 s56482935 s58375018",
    "examination": "s59363654 s53356173 s50743547 s59215320 s55157853",
    "technique": "s59279892 s53202765 s50808053",
    "indication": "s57936451 s50058765 s51966317 s55124749 s54365831 s54654948",
    "note": "s56451190",
    "history": "s51491012",
}
ODD_SECTION_OF = {study: name for name, studies in ODD_SECTIONS.items() for study in studies.split()}
# … or has no header (start and end of the text in the report, in characters) …
ODD_RANGES = {
    "s50525523": (201, 349), "s57564132": (233, 554), "s59982525": (313, 717), "s53488209": (149, 475),
    "s54875119": (234, 988), "s50196495": (59, 399), "s56579911": (59, 218), "s52648681": (292, 631),
    "s59889364": (172, 453), "s53514462": (73, 377), "s59505494": (59, 450), "s53182247": (59, 412),
    "s51410602": (47, 320), "s56412866": (522, 822), "s54986978": (59, 306), "s59003148": (262, 505),
    "s57150433": (61, 394), "s56760320": (219, 457), "s59562049": (158, 348), "s52674888": (145, 296),
    "s55258338": (192, 568), "s59330497": (140, 655), "s52119491": (179, 454),
}
# … or that describe nothing.
ODD_EMPTY = set("s58235663 s50798377 s54168089 s53071062 s56724958 s54231141 s53607029 s52035334".split())


class Record(NamedTuple):
    """One study of the official split; `dicoms` are the dicom_ids of its pictures."""

    split: str
    subject: str
    dicoms: list


def collect(raw, target="findings", views=2, count="studies", text_only=False):
    """The `Source` of a download.

    With `count` "studies" an example is a study with up to `views` pictures. With "images", R2Gen's way, an example is
    one picture with the text of its study, and the example's id is the dicom_id. Raises UserError if files are missing
    or contradict each other.
    """
    tables, report_tree, picture_tree = look_around(raw, text_only)
    records = _records(tables["split"])
    position = _positions(tables["metadata"])
    labels = _labels(tables["chexpert"]) if "chexpert" in tables else {}

    studies, left_out = [], []
    for name, record in tqdm(records.items(), desc="reports", unit=" reports", delay=1,
                             mininterval=0.5 if sys.stderr.isatty() else 30):
        patient = f"p{record.subject[:2]}/p{record.subject}"
        try:
            text = target_text(_report(report_tree, f"{patient}/{name}.txt"), name, target)
        except NoText as error:
            left_out.append({"id": name, "why": str(error)})
            continue

        dicoms = sorted(record.dicoms, key=lambda dicom: (_rank(position.get(dicom, "")), dicom))
        examples = [(name, dicoms[:views])] if count == "studies" else [(dicom, [dicom]) for dicom in dicoms]
        shared = {"subject_id": int(record.subject), "study_id": int(name[1:])}
        if name in labels:
            shared["labels"] = labels[name]
        for example, chosen in examples:
            extra = {**shared, "view_names": chosen, "view_positions": [position.get(dicom, "") for dicom in chosen]}
            pictures = [f"{patient}/{name}/{dicom}.jpg" for dicom in chosen]
            studies.append(Study(example, record.split, text, pictures, extra))
    return Source(studies, left_out, _counts(records, position, labels), picture_tree)


def _counts(records, position, labels):
    """{what: (number found, number published)}"""
    images = {split: sum(len(record.dicoms) for record in records.values() if record.split == split)
              for split in SPLITS}
    subjects = {record.subject for record in records.values()}
    numbers = (sum(images.values()), len(records), len(subjects), *images.values())
    counts = {what: (number, PUBLISHED[what]) for what, number in zip(PUBLISHED, numbers, strict=True)}
    without_row = sum(dicom not in position for record in records.values() for dicom in record.dicoms)
    counts["images without a metadata row"] = (without_row, 0)
    counts["studies with CheXpert labels"] = (len(labels), 227827)
    return counts


def sections(text):
    """[(name, text)] of a report's sections, as in the official parser; two sections may have the same name.

    A header is at the start of a line: one blank, capitals and a colon. The text before the first header is called
    "preamble"; a report without headers is one section, "full report". Empty findings and impressions are dropped. If
    neither is left, the text of the last section after its first paragraph becomes "last_paragraph".
    """
    header = HEADER.search(text)
    found = [("preamble", text[:header.start(1)])] if header else [("full report", text)]
    while header:
        name, start = header.group(1), header.end()
        # The search continues at the end of the next line. So a header directly below an empty section is missed, as in
        # the official parser.
        following = HEADER.search(text, max(start, text.find("\n", start)))
        found.append((section_name(name), text[start:following.start() if following else len(text)]))
        header = following
    found = [(name, body) for name, body in found if name not in ("impression", "findings") or body.strip()]
    if not {"impression", "findings"} & {name for name, _ in found}:
        name, body = found[-1]
        first, blank_line, rest = body.partition("\n \n")
        if blank_line:
            found[-1:] = [(name, first), ("last_paragraph", rest)]
    return found


def section_name(header):
    """A header's section name: "FINDINGS AND IMPRESSION" → "impression", "CHEST, PA AND LATERAL" → "findings"."""
    name = header.lower().strip()
    if name in SECTION_OF or name in SECTION_NAMES:
        return SECTION_OF.get(name, name)
    for word in SECTION_WORDS:
        if word in name:
            return word
    return "findings" if SECTION_VIEWS.search(name) else name


class NoText(Exception):
    """A study has no target text; the message is the reason."""


def target_text(report, study, target="findings"):
    """The target text of a report; `study` is its id, such as "s50414267", `report` the whole text.

    `target` is "findings", "impression", or "both" (findings, a blank line, impression). Raises NoText.
    """
    if study in ODD_EMPTY:
        raise NoText("describes nothing (the official parser's list)")
    if study in ODD_RANGES:
        parts = [report[slice(*ODD_RANGES[study])]]
    else:
        last = dict(sections(report))  # of sections with the same name the last is used
        wanted = ("findings", "impression") if target == "both" else (target,)
        parts = [last.get(name, "") for name in ([ODD_SECTION_OF[study]] if study in ODD_SECTION_OF else wanted)]
    parts = [OTHER_DOCUMENT.split(part, maxsplit=1)[0].strip() for part in parts]
    if not any(parts):
        raise NoText(f"no {'findings and no impression' if target == 'both' else target} in the report")
    return "\n\n".join(part for part in parts if part)


def look_around(raw, text_only=False):
    """Finds ({table: path}, tree of reports, tree of pictures) below `raw`; a tree is a folder with p10 … p19.

    A download of MIMIC-CXR (reports and DICOM files) and MIMIC-CXR-JPG from PhysioNet has two trees with the same
    folders. The tree of reports has .txt files, the tree of pictures .jpg files. Raises UserError if something is
    missing.
    """
    tables, trees = {}, []
    level = [Path(raw)]
    for _ in range(6):  # wget makes at most physionet.org/files/mimic-cxr-jpg/2.1.0/files
        below = []
        for folder in level:
            entries = sorted(folder.iterdir())
            for table in ("split", "metadata", "chexpert"):
                for path in entries:
                    if re.fullmatch(rf"mimic-cxr-[\d.]+-{table}\.csv(\.gz)?", path.name):
                        tables.setdefault(table, path)
            if any(re.fullmatch(r"p1\d", path.name) for path in entries):
                trees.append(folder)
            else:
                below += [path for path in entries if path.is_dir() and not path.name.startswith(".")]
        level = below
    for table in ("split", "metadata"):
        if table not in tables:
            raise UserError(f"{raw}: no mimic-cxr-2.0.0-{table}.csv.gz in it; download it from MIMIC-CXR-JPG")

    reports = _tree(raw, trees, "reports", "s*.txt", "unpack mimic-cxr-reports.zip of MIMIC-CXR there")
    if text_only:
        return tables, reports, reports
    return tables, reports, _tree(raw, trees, "pictures", "s*/*.jpg", "download MIMIC-CXR-JPG there (the "
                                  "DICOM files of MIMIC-CXR are not read), or give --text-only")


def _tree(raw, trees, kind, pattern, remedy):
    """The tree that has files of this pattern. Looks at the first 100 patients of each of the folders p10 … p19 only.

    Raises UserError, which ends with `remedy`, if there is no such tree; also if there are two.
    """
    holding = [tree for tree in trees
               if any(any(patient.glob(pattern)) for group in sorted(tree.glob("p1[0-9]"))
                      for patient in itertools.islice(sorted(group.glob("p*")), 100))]
    if not holding:
        raise UserError(f"{raw}: no {kind} (p1?/p*/{pattern}) in it; {remedy}")
    if len(holding) > 1:
        raise UserError(f"{raw}: {kind} (p1?/p*/{pattern}) in both {holding[0]} and {holding[1]}; move one of the two "
                        f"out of {raw}")
    return holding[0]


def _records(path):
    """{"s50414267": Record} of the official split. Raises UserError for impossible rows or a patient in two splits."""
    records, split_of, dicoms = {}, {}, set()
    for _, dicom, study, subject, split in read_csv(path, "dicom_id", "study_id", "subject_id", "split"):
        if not (re.fullmatch(r"[\w-]+", dicom) and study.isdecimal() and subject.isdecimal() and split in SPLIT_OF):
            raise UserError(f"{path}: a row with impossible values: {dicom!r}, {study!r}, {subject!r}, {split!r}; "
                            "download it again")
        if dicom in dicoms:
            raise UserError(f"{path}: the dicom_id {dicom} is in two rows; download it again")
        dicoms.add(dicom)
        if split_of.setdefault(subject, split) != split:
            raise UserError(f"{path}: patient {subject} is in {split_of[subject]} and in {split}; download it again")
        record = records.setdefault(f"s{study}", Record(SPLIT_OF[split], subject, []))
        if record.subject != subject:
            raise UserError(f"{path}: study {study} has the patients {record.subject} and {subject}; download it again")
        record.dicoms.append(dicom)
    return records


def _positions(path):
    """{dicom_id: ViewPosition} from the csv of metadata. Raises UserError."""
    positions = {}
    for _, dicom, position in read_csv(path, "dicom_id", "ViewPosition"):
        if dicom in positions:
            raise UserError(f"{path}: the dicom_id {dicom} is in two rows; download it again")
        positions[dicom] = position
    return positions


def _labels(path):
    """{"s50414267": 14 labels in CheXbert's order and coding}; the columns are found by name. Raises UserError."""
    labels = {}
    for _, study, *values in read_csv(path, "study_id", *LABELS):
        if f"s{study}" in labels:
            raise UserError(f"{path}: the study_id {study} is in two rows; download it again")
        labels[f"s{study}"] = label_codes(values, f"{path}: study {study}")
    return labels


def _report(tree, name):
    path = locate(tree, name)
    try:
        return read_text(path)
    except FileNotFoundError:
        raise NoText("no report file") from None
    except UserError:
        raise NoText("the report file is not UTF-8 text") from None


def _rank(position):
    """The position of a ViewPosition in the order of views: other ones after the four named, unknown ones last."""
    if not position:
        return len(VIEW_ORDER) + 1
    return VIEW_ORDER.index(position) if position in VIEW_ORDER else len(VIEW_ORDER)
