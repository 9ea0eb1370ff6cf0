"""Reads files of reports to score: JSON lines or CSV with id, hypothesis, reference (and labels, findings)."""

import csv
import json
import re
from pathlib import Path

from data.files import UserError
from data.reports import LABELS

SURROGATES = re.compile("[\ud800-\udfff]")


def read_pairs(path):
    """Rows {"id", "hypothesis": str, "reference": str or list, maybe "labels", "findings"} of a .jsonl or .csv file.

    "hypothesis" may be a list of one text. "labels" holds 14 values 0..3 in CheXbert's order a side:
    {"hypothesis": […], "reference": […]}, either alone, or a bare list, which is the reference's. A CSV has a header,
    one reference a row, and no labels. Blank lines are skipped. Raises UserError, naming the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from error
    rows, lines = [], {}
    for line, row in (_csv if path.suffix.lower() == ".csv" else _json_lines)(path, text):
        where = f"{path}: line {line}"
        row = _checked(row, where)
        if row["id"] in lines:
            raise UserError(f"{where}: id {row['id']!r} is there already, on line {lines[row['id']]}; "
                            "give each pair its own id")
        lines[row["id"]] = line
        rows.append(row)
    if not rows:
        raise UserError(f'{path}: holds no pairs; write lines of {{"id", "hypothesis", "reference"}}')
    return rows


def _json_lines(path, text):
    # Only "\n" ends a line: U+2028 and its like are text.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({error}); write one object a line, "
                                "or name the file .csv") from error


def _csv(path, text):
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(text.splitlines(keepends=True) if "\r" in text and "\n" not in text
                            else re.findall(r"[^\n]*\n|[^\n]+", text), strict=True)
    try:
        columns = reader.fieldnames or []
        for name in ("hypothesis", "id", "reference"):
            if columns.count(name) != 1:
                raise UserError(f"{path}: the header has {'no' if name not in columns else 'more than one'} {name}; "
                                f"the first line names the columns id, hypothesis, reference, separated by commas, "
                                f"here {', '.join(map(repr, columns))[:300] or 'nothing'}")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.reader.line_num} has not as many fields as the header; "
                                "quote texts with commas")
            yield reader.reader.line_num, {name: row[name] for name in ("id", "hypothesis", "reference")}
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.reader.line_num} is not CSV ({error})") from error


def _text(value):
    return SURROGATES.sub("\ufffd", value)


def _checked(row, where):
    if not isinstance(row, dict):
        raise UserError(f'{where} is no object; write {{"id", "hypothesis", "reference"}}')
    missing = [name for name in ("id", "hypothesis", "reference") if row.get(name) is None]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)}; add it, or remove the line")
    if row["id"] == "" or str(row["id"]).isspace():
        raise UserError(f"{where}: the id is empty; give each pair its own id")
    if isinstance(row["id"], bool) or not isinstance(row["id"], (str, int)):
        raise UserError(f"{where}: the id is a string or a whole number")
    hypothesis, reference = row["hypothesis"], row["reference"]
    if isinstance(hypothesis, list) and len(hypothesis) == 1:
        hypothesis = hypothesis[0]
    if not isinstance(hypothesis, str):
        raise UserError(f"{where}: the hypothesis is one text")
    texts = [reference] if isinstance(reference, str) else reference
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the reference is a text or a list of texts")
    texts = list(map(_text, texts))
    checked = {"id": _text(str(row["id"])), "hypothesis": _text(hypothesis),
               "reference": texts[0] if isinstance(reference, str) else texts}
    for name, check in (("labels", _labels), ("findings", _findings)):
        if row.get(name) is not None:
            sides = row[name] if isinstance(row[name], dict) else {"reference": row[name]}
            sides = {side: value for side, value in sides.items() if value is not None}
            if not sides.keys() <= {"hypothesis", "reference"} or not all(map(check, sides.values())):
                raise UserError(f"{where}: {name} are {check.__doc__}, under \"hypothesis\" and \"reference\"")
            if sides:
                checked[name] = sides
    return checked


def _labels(values):
    """14 values 0 (blank), 1 (positive), 2 (negative), 3 (uncertain) in CheXbert's order"""
    return (isinstance(values, list) and len(values) == len(LABELS)
            and all(type(value) is int and 0 <= value <= 3 for value in values))


def _findings(values):
    """lists of {"finding", "severity", "location"}, all three texts"""
    return isinstance(values, list) and all(
        isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("finding", "severity", "location"))
        for value in values)
