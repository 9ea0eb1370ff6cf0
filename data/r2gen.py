"""R2Gen's layout, IU X-Ray or MIMIC-CXR, unchanged: RAW/annotation.json and the pictures it names under RAW/images/.

    {"train": [{"id", "report", "image_path": ["CXR2384_IM-0942/0.png", …], "split"}, …], "val": […], "test": […]}

The IU file names two pictures per study, the MIMIC file one (an example is an image there, and its id the DICOM's).
"""

import json
from pathlib import Path

from data.files import UserError, read_json
from data.images import locate
from data.source import SPLITS, Source, Study

# R2Gen's own two files: examples per split (cuhksz-nlp/R2Gen issue 16 for MIMIC-CXR; IU X-Ray counted).
PUBLISHED = {"IU X-Ray": (2069, 296, 590), "MIMIC-CXR": (270790, 2130, 3858)}


def collect(raw, views=2):
    """The `Source`. At most `views` pictures per study, the first ones named.

    Raises UserError for a file that is not R2Gen's, an id that stands twice, and a path or link that leaves images/.
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
            raise UserError(f"{path}: {study_id!r} stands under {split!r} but says split {entry['split']!r}; mend it")
        for name in names:
            try:
                locate(root, name)
            except UserError as error:
                raise UserError(f"{path}, entry {study_id!r}: {error}") from None

        extra = {key: entry[key] for key in ("study_id", "subject_id") if key in entry}
        studies.append(Study(study_id, split, entry["report"], names[:views], {**extra, "view_names": names[:views]}))

    # R2Gen's own files are known by their counts; any other file is as good.
    numbers = tuple(sum(study.split == split for study in studies) for split in SPLITS)
    kind = "MIMIC-CXR" if studies and "study_id" in studies[0].extra else "IU X-Ray"
    if numbers in PUBLISHED.values():
        counts = {f"{split} entries (R2Gen's {kind} file)": (number, published)
                  for split, number, published in zip(SPLITS, numbers, PUBLISHED[kind], strict=True)}
    else:
        counts = {f"{split} entries": (number, None) for split, number in zip(SPLITS, numbers, strict=True)}
    return Source(studies, [], counts, root)


def read_annotation(path):
    """[(split, entry)] of an annotation.json, every entry checked: id, report (text), image_path (list of names)."""
    path = Path(path)
    try:
        splits = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; R2Gen's layout is annotation.json beside images/") from None
    if not (isinstance(splits, dict) and splits.keys() <= set(SPLITS)
            and all(isinstance(entries, list) for entries in splits.values())):
        raise UserError(f"{path}: not R2Gen's annotation: expected {{\"train\": […], \"val\": […], \"test\": […]}}")

    entries = []
    for split in SPLITS:
        for number, entry in enumerate(splits.get(split, [])):
            if isinstance(entry, dict) and "report" in entry and _is_blank(entry["report"]):
                entry["report"] = ""
            if not _is_entry(entry):
                raise UserError(f"{path}: entry {number} of {split!r} lacks an id, a report text or a list image_path; "
                                "mend it")
            try:
                json.dumps(entry, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"{path}: entry {entry['id']!r} holds text that is no valid Unicode; mend it") from None
            entries.append((split, entry))
    return entries


def _is_blank(report):
    """Whether it is null or NaN, as pandas writes the empty cell of a table."""
    return report is None or report != report


def _is_entry(entry):
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
        return False
    names = entry.get("image_path")
    return (isinstance(entry.get("report"), str)
            and isinstance(names, list) and len(names) > 0 and all(isinstance(name, str) for name in names))
