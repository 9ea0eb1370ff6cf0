"""Your own data: a folder with one .csv file, and the pictures that it names.

    id,split,report,pictures
    A1,train,"The heart is enlarged. No pneumothorax.",a/front.png;a/side.png
    B2,val,Small left pleural effusion.,b2.jpg
    B7,test,Lungs clear.,b7.jpg

Columns are found by their names, in any order; further columns are ignored.
    id        the study's id, unique in the table
    report    the text that the model learns to write
    pictures  paths relative to the folder, separated by ";", in the order in which the model sees them
    split     optional: train, val or test; without this column a random 70/10/20 % split by the ids
    patient   optional: all studies of a patient come into one split
    the 14 labels, optional: CheXpert's names and values (1 positive, 0 negative, -1 uncertain, blank not mentioned)
"""

from pathlib import Path

from data.files import UserError, read_csv
from data.images import locate
from data.reports import LABELS
from data.source import SPLITS, Source, Study, drawn_split, label_codes

REMEDY = ("the table needs the columns id, report and pictures, separated by commas; split, patient and the 14 labels "
          "are optional")


def find_table(raw):
    """The path of the .csv file in the folder `raw`. Raises UserError if there is none, or more than one."""
    tables = sorted(path for path in Path(raw).iterdir() if path.suffix.lower() == ".csv" and path.name[0] != ".")
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables)
        raise UserError(f"{raw}: {f'has more than one .csv file ({names})' if tables else 'has no .csv file'}; "
                        f"put exactly one there; {REMEDY}")
    return tables[0]


def columns_of(table):
    """The optional columns (split, patient, labels) that the table has. Raises UserError if a needed column is missing,
    or if there are some labels, but not all 14.
    """
    optional = ("split", "patient", *LABELS)
    for _, *values in read_csv(table, "id", "report", "pictures", optional=optional, remedy=REMEDY):
        present = [name for name, value in zip(optional, values[3:], strict=True) if value is not None]
        break
    else:
        raise UserError(f"{table}: has no row below the header; add one row per study")
    lacking = [name for name in LABELS if name not in present]
    if 0 < len(lacking) < len(LABELS):
        raise UserError(f"{table}: has labels, but no column {', '.join(lacking)}; add all 14 (unknown values blank), "
                        "or rename the label columns to use none")
    return present


def collect(raw, views=2, seed=0, text_only=False):
    """The `Source` of the table in the folder `raw`.

    A study has at most `views` pictures, the first ones in its row. `seed` is the seed of the random split, which is
    used if there is no column split. Raises UserError, which names the line, for an empty or repeated id, an unknown
    split, a patient in two splits, and a path or link that leads out of the folder.
    """
    table = find_table(raw)
    present = columns_of(table)
    studies, left_out, line_of, patient_of = [], [], {}, {}
    rows = read_csv(table, "id", "report", "pictures", optional=("split", "patient", *LABELS), remedy=REMEDY)
    for line, study_id, report, pictures, split, patient, *labels in rows:
        where = f"{table}, line {line}"
        study_id = study_id.strip()
        if not study_id:
            raise UserError(f"{where}: the id is empty; give every study an id")
        if study_id in line_of:
            raise UserError(f"{where}: the id {study_id!r} is already used on line {line_of[study_id]}; give every "
                            "study an id of its own")
        line_of[study_id] = line
        if split is not None and split.strip() not in SPLITS:
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}; correct it")
        patient_of[study_id] = study_id if patient is None or not patient.strip() else f"patient {patient.strip()}"

        names = _picture_names(raw, pictures, where)[:views]
        if not names and not text_only:
            left_out.append({"id": study_id, "why": "names no picture"})
            continue
        extra = {"view_names": names}
        if "No Finding" in present:
            extra["labels"] = label_codes([value.strip() for value in labels], where)
        studies.append(Study(study_id, (split or "").strip(), report, names, extra))

    # A model must not be tested on a patient of its training data.
    if "split" in present:
        _check_patients(table, studies, patient_of, line_of)
    else:
        split_of = drawn_split({patient_of[study.id] for study in studies}, seed)
        studies = [study._replace(split=split_of[patient_of[study.id]]) for study in studies]
    counts = {f"rows of {table.name}": (len(line_of), None)}
    if "patient" in present:
        counts["patients"] = (len(set(patient_of.values())), None)
    return Source(studies, left_out, counts, Path(raw))


def _picture_names(raw, cell, where):
    """The paths in a cell of the column pictures. Raises UserError if one leads out of the folder."""
    # A table made on Windows has backslashes between folders.
    names = [name.strip().replace("\\", "/") for name in cell.split(";") if name.strip()]
    for name in names:
        try:
            locate(raw, name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return names


def _check_patients(table, studies, patient_of, line_of):
    """Raises UserError if a patient is in two splits."""
    first = {}
    for study in studies:
        earlier = first.setdefault(patient_of[study.id], study)
        if earlier.split != study.split:
            raise UserError(f"{table}, line {line_of[study.id]}: {patient_of[study.id]} is in {study.split} here and "
                            f"in {earlier.split} on line {line_of[earlier.id]}; put all studies of a patient into one "
                            "split")
