"""Anyone's own data: the one .csv file in a folder, and the pictures that it names below that folder.

    id,split,report,pictures
    A1,train,"The heart is enlarged. No pneumothorax.",a/front.png;a/side.png
    B7,test,Lungs clear.,b7.jpg

Columns are taken by name, in any order; others are passed over.
    id        of the study, once only
    report    the text to generate
    pictures  paths below the folder, parted by ";", in the order in which the model sees them
    split     train, val or test; without this column 70/10/20 is drawn by the ids
    patient   optional: all studies of a patient come into one split
    the 14 labels, optional: CheXpert's names and values, 1 positive, 0 negative, -1 uncertain, blank not mentioned
"""

from pathlib import Path

from data.files import UserError, read_csv
from data.images import locate
from data.reports import LABELS
from data.source import SPLITS, Source, Study, drawn_split, label_codes

REMEDY = ('the table needs the columns id, report and pictures, parted by commas; split, patient and the 14 labels are '
          "optional")


def find_table(raw):
    """The path of the one .csv file in a folder. Raises UserError where there is none, or more than one."""
    tables = sorted(path for path in Path(raw).iterdir() if path.suffix.lower() == ".csv" and path.name[0] != ".")
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables)
        raise UserError(f"{raw}: {f'has more than one .csv file ({names})' if tables else 'has no .csv file'}; "
                        f"put one there: {REMEDY}")
    return tables[0]


def columns_of(table):
    """The table's column names among those that are read. Raises UserError where one that is needed is missing."""
    optional = ("split", "patient", *LABELS)
    for _, *values in read_csv(table, "id", "report", "pictures", optional=optional, remedy=REMEDY):
        present = [name for name, value in zip(optional, values[3:], strict=True) if value is not None]
        break
    else:
        raise UserError(f"{table}: has no row; give it one per study")
    lacking = [name for name in LABELS if name not in present]
    if 0 < len(lacking) < len(LABELS):
        raise UserError(f"{table}: has labels, but no column {', '.join(lacking)}; add it, blank where it is not "
                        "known, or rename the others to leave labels out")
    return present


def collect(raw, views=2, seed=0, text_only=False):
    """The `Source`. At most `views` pictures per study, the first ones named; `seed` is the drawn split's.

    Raises UserError, naming the line: no id or one that stands twice, no such split, a patient in two splits, a path or
    link that leaves the folder.
    """
    table = find_table(raw)
    present = columns_of(table)
    studies, left_out, line_of, patient_of = [], [], {}, {}
    rows = read_csv(table, "id", "report", "pictures", optional=("split", "patient", *LABELS), remedy=REMEDY)
    for line, study_id, report, pictures, split, patient, *labels in rows:
        where = f"{table}, line {line}"
        study_id = study_id.strip()
        if not study_id:
            raise UserError(f"{where}: the id is empty; give every study one")
        if study_id in line_of:
            raise UserError(f"{where}: the id {study_id!r} stands on line {line_of[study_id]} too; ids must be unique")
        line_of[study_id] = line
        if split is not None and split.strip() not in SPLITS:
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}; mend it")
        patient_of[study_id] = study_id if patient is None or not patient.strip() else f"patient {patient.strip()}"

        names = _picture_names(raw, pictures, where)[:views]
        if not names and not text_only:
            left_out.append({"id": study_id, "why": "names no picture"})
            continue
        extra = {"view_names": names}
        if "No Finding" in present:
            extra["labels"] = label_codes([value.strip() for value in labels], where)
        studies.append(Study(study_id, (split or "").strip(), report, names, extra))

    # A model must not be tested on a patient whom it has seen.
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
    """The paths in a cell of the column pictures. Raises UserError where one leads out of the folder."""
    # A table made on Windows parts folders by backslashes.
    names = [name.strip().replace("\\", "/") for name in cell.split(";") if name.strip()]
    for name in names:
        try:
            locate(raw, name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return names


def _check_patients(table, studies, patient_of, line_of):
    """Raises UserError where a patient is in two splits."""
    first = {}
    for study in studies:
        earlier = first.setdefault(patient_of[study.id], study)
        if earlier.split != study.split:
            raise UserError(f"{table}, line {line_of[study.id]}: {patient_of[study.id]} is in {study.split} here and "
                            f"in {earlier.split} on line {line_of[earlier.id]}; put a patient's studies into one split")
