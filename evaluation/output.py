"""What an evaluation writes, and what every report says of itself."""

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
    """One sentence on what a checkpoint learned from, and what its reports are therefore worth.

    header["trained_on"] is {"source", "studies", "pictures", "steps"}; older checkpoints tell less.
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
        text = f"trained on {header.get('data') or 'a data set that it does not name'}"

    # A few steps, or pictures, teach a model the sound of reports, and nothing to see.
    if steps is not None and steps < 100:
        return f"{text}, for {steps} step{'s' * (steps != 1)} only: its reports mean nothing yet"
    if facts.get("source") != "phantom" and facts.get("pictures", 1000) < 1000:
        return f"{text}: too few to learn to see from"
    return text


def results_folder(out, *read):
    """The folder `out`, made and tried before any work.

    Raises UserError, also where a result would replace a file `read`.
    """
    out = Path(out)
    for path in filter(None, read):
        if Path(path).resolve() in [(out / name).resolve() for name in RESULTS]:
            raise UserError(f"{path}: would be overwritten by the results; name another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out}: results can't be written there ({error.strerror}); "
                        "name another folder with --out") from None
    return out


def writable(text):
    """The text with half a surrogate pair written as \\ud800, since UTF-8 has no form for it; in JSON
    that is its escape.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(path, value):
    with whole_file(path) as file:
        file.write(writable(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)) + "\n")


def write_rows(path, rows):
    """JSON lines."""
    with whole_file(path) as file:
        for row in rows:
            file.write(writable(json.dumps(row, ensure_ascii=False)) + "\n")


def write_rexrank(path, predictions):
    """{study: text} in ReXrank's form. Predictions alone: no reference text leaves the machine by it."""
    write_json(path, {study: {"model_prediction": text} for study, text in predictions.items()})


def check_rexrank(path, *read):
    """Raises UserError where --rexrank can't be written, or names a file that is read."""
    if not path:
        return
    if Path(path).is_dir():
        raise UserError(f"--rexrank {path}: is a folder; name a file to write")
    if Path(path).resolve() in [Path(other).resolve() for other in filter(None, read)]:
        raise UserError(f"--rexrank {path}: would overwrite what is read; name another file")
    writable_folder(Path(path).parent, "--rexrank")


def write_labels(path, rows):
    """One line per text: id, which side, and its labels in CheXbert's order and CSV form."""
    with whole_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "text", *LABELS])
        for row in rows:
            for side in SIDES:
                table.writerow([writable(str(row["id"])), side, *(CSV_FORM[value] for value in row["labels"][side])])
