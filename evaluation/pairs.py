"""Reads files of reports to score: JSON lines or CSV with id, hypothesis, reference (and labels, findings), or
ReXrank's JSON, {study: {"model_prediction", "section_findings", "section_impression", …}}.

ReXrank (rajpurkarlab/ReXrank, example_files/evaluation_script.md) scores a prediction against both sections in one
text, "Findings: … Impression: …", with the word None for a missing section: `section="report"`. With "findings" or
"impression" only this section is compared, and studies without this section are left out.
"""

import csv
import json
import re
import sys
from pathlib import Path

from data.files import UserError
from data.reports import LABELS

SECTIONS = ("report", "findings", "impression")
SURROGATES = re.compile("[\ud800-\udfff]")
# "Findings: … Impression: …", or one of both.
HEADED = re.compile(r"\s*(?:findings\s*:(?P<findings>.*?))?(?:impression\s*:(?P<impression>.*))?", re.I | re.S)


def read_pairs(path, section="report"):
    """Rows {"id", "hypothesis": str, "reference": str or list, maybe "labels", "findings"} of a .jsonl, .csv or .json.

    "hypothesis" may be a list of one text. "labels" holds 14 values 0..3 in CheXbert's order per side: {"hypothesis":
    […], "reference": […]}, or one of both; a plain list belongs to the reference. A CSV has a header, one reference per
    row, and no labels. A .json file is ReXrank's, of which `section` is scored. Blank lines are skipped. Raises
    UserError, naming the line or the study.
    """
    path = Path(path)
    text = _text_of(path)
    if path.suffix.lower() == ".json":
        entries = _rexrank(path, text, section)
    else:
        entries = (_csv if path.suffix.lower() == ".csv" else _json_lines)(path, text)

    rows, places = [], {}
    for place, row in entries:
        row = _checked(row, f"{path}: {place}")
        if row["id"] in places:
            raise UserError(f"{path}: {place}: id {row['id']!r} occurs already on {places[row['id']]}; "
                            "give each pair its own id")
        places[row["id"]] = place
        rows.append(row)
    if not rows:
        raise UserError(f'{path}: holds no reports; write one {{"id", "hypothesis", "reference"}} per line')
    return rows


def _text_of(path):
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from error


# --- the three formats: each function yields (place in the file, the row as it is) ------------------------------------


def _json_lines(path, text):
    # Only "\n" ends a line; U+2028 and similar characters are text.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({error}); write one object per line, "
                                "or name the file .csv") from error


def _csv(path, text):
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(text.splitlines(keepends=True) if "\r" in text and "\n" not in text
                            else re.findall(r"[^\n]*\n|[^\n]+", text), strict=True)
    try:
        columns = reader.fieldnames or []
        for name in ("hypothesis", "id", "reference"):
            if columns.count(name) != 1:
                number = "no" if name not in columns else "more than one"
                raise UserError(f"{path}: the header has {number} column {name}; the first line must name the "
                                "columns id, hypothesis, reference, separated by commas; "
                                f"it holds {', '.join(map(repr, columns))[:300] or 'nothing'}")

        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.reader.line_num} has more or fewer fields than the header; "
                                "put texts with commas into quotes")
            yield f"line {reader.reader.line_num}", {name: row[name] for name in ("id", "hypothesis", "reference")}
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.reader.line_num} is not CSV ({error}); correct the line") from error


def _rexrank(path, text, section):
    left_out = 0
    studies = rexrank_studies(path, text)
    for name, study in studies.items():
        place = f"study {name!r}"
        if not isinstance(study.get("model_prediction"), str):
            raise UserError(f'{path}: {place} has no text "model_prediction"; add it, or remove the study')

        # ReXrank's example file has the older names. A missing section is null, NaN or left out.
        sections = {}
        for one in ("findings", "impression"):
            value = study.get(f"section_{one}", study.get(one))
            sections[one] = value if isinstance(value, str) and value.strip() else None
        if not any(sections.values()) and "section_findings" not in study and "findings" not in study:
            raise UserError(f'{path}: {place} has no "section_findings" and no "section_impression", so there is '
                            "no reference; copy both sections from ReXrank's own file of the split")

        if section == "report":
            reference = f"Findings: {sections['findings']} Impression: {sections['impression']}"
            hypothesis = study["model_prediction"]
        else:
            reference, hypothesis = sections[section], section_of(study["model_prediction"], section)
        if reference is None or not any(sections.values()):
            left_out += 1
            continue
        yield place, {"id": name, "hypothesis": hypothesis, "reference": reference}

    if left_out:
        print(f"{path}: {left_out:,} of {len(studies):,} studies are left out, since they have no {section} as "
               f"reference",
              file=sys.stderr)


def rexrank_studies(path, text):
    """{study: its fields} of a text in ReXrank's format. Raises UserError, naming the file `path`."""
    try:
        studies = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}); if it holds one object per line, name it .jsonl") from None
    if not isinstance(studies, dict) or not all(isinstance(study, dict) for study in studies.values()):
        raise UserError(f"{path}: is not in ReXrank's format, {{study: {{fields}}}}; if it holds one object per line, "
                        "name it .jsonl")
    return studies


def section_of(text, section):
    """One section of a text "Findings: … Impression: …"; the whole text if it has no such headings."""
    match = HEADED.fullmatch(text)
    if match is None or not any(match.groups()):
        return text
    return (match[section] or "").strip()


# --- checks of a row --------------------------------------------------------------------------------------------------


def _text(value):
    return SURROGATES.sub("\ufffd", value)


def _checked(row, where):
    if not isinstance(row, dict):
        raise UserError(f'{where} is no JSON object; write {{"id", "hypothesis", "reference"}}')
    missing = [name for name in ("id", "hypothesis", "reference") if row.get(name) is None]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)}; add it, or remove the line")
    if row["id"] == "" or str(row["id"]).isspace():
        raise UserError(f"{where}: the id is empty; give each pair its own id")
    if isinstance(row["id"], bool) or not isinstance(row["id"], (str, int)):
        raise UserError(f"{where}: the id must be a string or a whole number")

    hypothesis, reference = row["hypothesis"], row["reference"]
    if isinstance(hypothesis, list) and len(hypothesis) == 1:
        hypothesis = hypothesis[0]
    if not isinstance(hypothesis, str):
        raise UserError(f"{where}: the hypothesis must be one text")
    texts = [reference] if isinstance(reference, str) else reference
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the reference must be a text or a list of texts")

    texts = list(map(_text, texts))
    checked = {"id": _text(str(row["id"])), "hypothesis": _text(hypothesis),
               "reference": texts[0] if isinstance(reference, str) else texts}
    for name, check in (("labels", _labels), ("findings", _findings)):
        sides = _sides(row.get(name), name, check, where)
        if sides:
            checked[name] = sides
    return checked


def _sides(value, name, check, where):
    """Labels or findings as {"hypothesis": …, "reference": …} or one of both; a plain list is the reference's."""
    if value is None:
        return {}
    sides = value if isinstance(value, dict) else {"reference": value}
    sides = {side: of_side for side, of_side in sides.items() if of_side is not None}
    if not sides.keys() <= {"hypothesis", "reference"} or not all(map(check, sides.values())):
        raise UserError(f"{where}: {name} must be {check.__doc__}, under \"hypothesis\" and \"reference\"")
    return sides


def _labels(values):
    """14 values 0 (blank), 1 (positive), 2 (negative), 3 (uncertain) in CheXbert's order"""
    return (isinstance(values, list) and len(values) == len(LABELS)
            and all(type(value) is int and 0 <= value <= 3 for value in values))


def _findings(values):
    """lists of {"finding", "severity", "location"}, all three texts"""
    return isinstance(values, list) and all(
        isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("finding", "severity", "location"))
        for value in values)
