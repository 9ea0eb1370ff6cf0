"""R2Gen's download of IU X-Ray or MIMIC-CXR: RAW/annotation.json, and the pictures that it names in RAW/images/.

    {"train": [{"id", "report", "image_path": ["CXR2384_IM-0942/0.png", …], "split"}, …], "val": […], "test": […]}

An entry of the IU file has two pictures. An entry of the MIMIC file has one, and its id is the picture's dicom_id.
"""

import json
from pathlib import Path

from data.files import UserError, read_json
from data.images import locate
from data.source import SPLITS, Source, Study

# Examples per split in R2Gen's two files. Sources: cuhksz-nlp/R2Gen issue 16 for MIMIC-CXR, our count for IU X-Ray.
PUBLISHED = {"IU X-Ray": (2069, 296, 590), "MIMIC-CXR": (270790, 2130, 3858)}


def collect(raw, views=2):
    """The `Source` of a download; each study has at most `views` pictures, the first ones of its entry.

    Raises UserError if annotation.json is not in R2Gen's format, if two entries have one id, and if a path or link
    leads out of images/.
    """
    root = Path(raw) / "images"
    path = Path(raw) / "annotation.json"
    studies, ids = [], set()
    for split, entry in read_annotation(path):
        study_id, names = str(entry["id"]), entry["image_path"]
        if study_id in ids:
            raise UserError(f"{path}: two entries have the id {study_id!r}; remove one")
        ids.add(study_id)
        if entry.get("split", split) != split:
            raise UserError(f"{path}: entry {study_id!r} is listed under {split!r}, but its split is "
                            f"{entry['split']!r}; correct it")
        for name in names:
            try:
                locate(root, name)
            except UserError as error:
                raise UserError(f"{path}, entry {study_id!r}: {error}") from None

        extra = {key: entry[key] for key in ("study_id", "subject_id") if key in entry}
        studies.append(Study(study_id, split, entry["report"], names[:views], {**extra, "view_names": names[:views]}))

    # R2Gen's own files are recognised by their counts; other files in this format are accepted too.
    numbers = tuple(sum(study.split == split for study in studies) for split in SPLITS)
    kind = "MIMIC-CXR" if studies and "study_id" in studies[0].extra else "IU X-Ray"
    if numbers in PUBLISHED.values():
        counts = {f"{split} entries (R2Gen's {kind} file)": (number, published)
                  for split, number, published in zip(SPLITS, numbers, PUBLISHED[kind], strict=True)}
    else:
        counts = {f"{split} entries": (number, None) for split, number in zip(SPLITS, numbers, strict=True)}
    return Source(studies, [], counts, root)


def read_annotation(path):
    """[(split, entry)] of an annotation.json; every entry has an id, a report (text) and image_path (list of names).

    A report that is null or NaN becomes "". Raises UserError for any other entry.
    """
    path = Path(path)
    try:
        splits = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; R2Gen's download is a folder with annotation.json and "
                        "images/") from None
    if not (isinstance(splits, dict) and splits.keys() <= set(SPLITS)
            and all(isinstance(entries, list) for entries in splits.values())):
        raise UserError(f"{path}: not R2Gen's annotation, which is {{\"train\": […], \"val\": […], \"test\": […]}}; "
                        "download it again")

    entries = []
    for split in SPLITS:
        for number, entry in enumerate(splits.get(split, [])):
            if isinstance(entry, dict) and "report" in entry and _is_blank(entry["report"]):
                entry["report"] = ""
            if not _is_entry(entry):
                raise UserError(f"{path}: entry {number} of {split!r} lacks an id, a report text or a list image_path; "
                                "correct it")
            try:
                json.dumps(entry, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"{path}: entry {entry['id']!r} has text that is not valid Unicode; correct "
                                "it") from None
            entries.append((split, entry))
    return entries


def _is_blank(report):
    """Whether a report is null or NaN, which is how pandas writes an empty cell of a table."""
    return report is None or report != report


def _is_entry(entry):
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
        return False
    names = entry.get("image_path")
    return (isinstance(entry.get("report"), str)
            and isinstance(names, list) and len(names) > 0 and all(isinstance(name, str) for name in names))
