"""The files that an evaluation writes, and the notices that stand with every report."""

import csv
import json
import tempfile
from pathlib import Path

from data.files import UserError, whole_file, writable_folder
from data.reports import LABELS
from evaluation.labels import SIDES

RESULTS = ("reports.jsonl", "metrics.json", "report.html", "labels.csv")
NO_ADVICE = "research output, no medical advice"
# CheXbert's CSV form of its labels: blank, 1 positive, 0 negative, -1 uncertain.
CSV_FORM = ("", "1", "0", "-1")


def trained_on(header):
    """One sentence that tells what data a checkpoint was trained on, with a warning if its reports mean little.

    header["trained_on"] is {"source", "studies", "pictures", "steps"}; older checkpoints hold less.
    """
    facts = header.get("trained_on") or {}
    if not {"source", "studies", "pictures", "steps"} <= facts.keys():
        facts = {}
    steps = facts.get("steps", header.get("step"))
    if facts.get("source") == "phantom" or not facts and str(header.get("data")) == "datasets/demo":
        studies = f"{facts['studies']:,} " if facts.get("studies") else ""
        text = f"trained on {studies}drawn phantoms: its reports say nothing about a real picture"
    elif facts:
        source = f" ({facts['source']})" if facts.get("source") else ""
        text = f"trained on {facts['pictures']:,} pictures of {facts['studies']:,} studies{source}"
    else:
        text = f"trained on {header.get('data') or 'an unknown data set'}"

    # After a few steps, or from a few pictures, a model imitates the style of reports and recognises nothing.
    if steps is not None and steps < 100:
        return f"{text}, for {steps} step{'s' * (steps != 1)} only: its reports mean nothing yet"
    if facts.get("source") != "phantom" and facts.get("pictures", 1000) < 1000:
        return f"{text}: too few to learn to recognise findings"
    return text


def results_folder(out, *read):
    """The folder `out`, created and tested for writing before any work.

    Raises UserError, also if a result would overwrite one of the input files `read`.
    """
    out = Path(out)
    for path in filter(None, read):
        if Path(path).resolve() in [(out / name).resolve() for name in RESULTS]:
            raise UserError(f"{path}: would be overwritten by the results; give another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        why = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{out}: the results cannot be written into this folder ({why}); "
                        "give another folder with --out") from None
    return out


def writable(text):
    """The text with each unpaired surrogate as its JSON escape, such as \\ud800, since UTF-8 cannot encode it."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(path, value):
    with whole_file(path) as file:
        file.write(writable(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)) + "\n")


def write_rows(path, rows):
    """Writes rows as JSON lines. Raises OSError."""
    with whole_file(path) as file:
        for row in rows:
            file.write(writable(json.dumps(row, ensure_ascii=False)) + "\n")


def write_rexrank(path, predictions):
    """Writes {study: text} in ReXrank's format, without references, which may be confidential. Raises OSError."""
    write_json(path, {study: {"model_prediction": text} for study, text in predictions.items()})


def check_rexrank(path, *read):
    """Raises UserError if the file of --rexrank cannot be written, or is one of the input files `read`."""
    if not path:
        return
    if Path(path).is_dir():
        raise UserError(f"--rexrank {path}: is a folder; give the name of a file to write")
    if Path(path).resolve() in [Path(other).resolve() for other in filter(None, read)]:
        raise UserError(f"--rexrank {path}: would overwrite an input file; give the name of another file")
    writable_folder(Path(path).parent, "--rexrank")


def write_labels(path, rows):
    """Writes one CSV line per text: id, side, and the labels in CheXbert's order and CSV coding. Raises OSError."""
    with whole_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "text", *LABELS])
        for row in rows:
            for side in SIDES:
                table.writerow([writable(str(row["id"])), side, *(CSV_FORM[value] for value in row["labels"][side])])
