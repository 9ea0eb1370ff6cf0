"""Every figure in a table of docs/measurements.md, and every one of the demo in the README, stands in the record,
tests/bench/results.jsonl, to the digits shown. The record is a log of what was measured: any of its lines will do."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from tests.bench import record

ROOT = record.ROOT
NUMBER = re.compile(r"(?<![\w.-])−?(?:\d{1,3}(?:,\d{3})+|\d*\.\d+|\d+)(?!\w|\.\d)")
COMMAND = re.compile(r"`((?:\w+=\S+ )*(?:python|pytest) [^`]*)`")
LINES = [json.loads(line) for line in record.FILE.read_text(encoding="utf-8").splitlines()]


def numbers(text):
    """The numbers of a text as they are written, those in code left out."""
    return NUMBER.findall(re.sub(r"`[^`]*`", "", text))


def held(number, lines):
    """Whether a line has a number, to the digits shown, as a figure or in the name of one (the 8 of "batch 8")."""
    number = number.replace(",", "").replace("−", "-")
    value, digits = float(number), len(number.partition(".")[2])
    figures = [figure for line in lines for figure in line["figures"].items()]
    return any(abs(measured - value) <= 0.50001 * 10**-digits or number in re.findall(r"[\d.]+", name)
               for name, measured in figures)


def of_command(command):
    """The lines of a command, with more options or fewer FILES than a page names."""
    start = re.split(r" [A-Z]+\b", command)[0]
    return [line for line in LINES if f"{line['command']} ".startswith(f"{start} ")]


def rows(page):
    """(figures, commands) of every row of every table: figures are all cells but the first and the command's."""
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        commands = []
        for row in body:
            figures = " | ".join(cell for title, cell in zip(head[1:], row[1:]) if title != "command")
            if "as above" not in row:
                commands = COMMAND.findall(" ".join(row))
            yield figures, commands


def missing(figures, commands):
    """The numbers of a row that no line of its commands has; without a command, one line must have all of them."""
    groups = [sum(map(of_command, commands), [])] if commands else [[line] for line in LINES]
    return min(([number for number in numbers(figures) if not held(number, lines)] for lines in groups), key=len)


def changed(number):
    """The same with another last digit."""
    return number[:-1] + str((int(number[-1]) + 1) % 10)


def of_demo(readme):
    """Time, memory and scores of the demo: all decimals from its minutes to its recognition."""
    part = re.search(r"took [\d.]+ minutes.*?macro AUROC [^]]*\]", readme, re.S)
    assert part, "README.md: the demo's figures are not between 'took … minutes' and 'macro AUROC … [low, high]'"
    return [number for number in numbers(part[0]) if "." in number]


PAGE, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/measurements.md", "README.md"))
ROWS = list(rows(PAGE))
DEMO = sum(map(of_command, ("python -m tests.bench.demo", "python train.py",
                            "python evaluate.py --ckpt runs/demo/ckpt.safetensors")), [])


@pytest.mark.parametrize("figures, commands", ROWS)
def test_figures_of_a_row_are_recorded(figures, commands):
    for command in commands:
        assert of_command(command), f"tests/bench/results.jsonl has no line of {command}"
    assert not missing(figures, commands), "not in tests/bench/results.jsonl"


def test_figures_of_the_demo_are_recorded():
    assert len(of_demo(README)) > 20
    assert not [number for number in of_demo(README) if not held(number, DEMO)], "not in tests/bench/results.jsonl"


def test_a_line_of_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FILE", tmp_path / "results.jsonl")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="tests.bench.any"))
    monkeypatch.setattr(sys, "argv", ["any.py", "/some/where/a.jsonl", "--against=../../other", "--record"])
    record.add(SimpleNamespace(record=False), {"s": 1})
    assert not record.FILE.exists()
    record.add(SimpleNamespace(record=True), {"s": 1.23456789, "texts": 12, "right": True})
    line = json.loads(record.FILE.read_text(encoding="utf-8"))
    assert line["bench"] == "any" and line["command"] == "python -m tests.bench.any a.jsonl --against=other"
    assert line["figures"] == {"s": 1.23457, "texts": 12, "right": 1}
    assert set(LINES[0]) - {"transcribed"} == set(line)


def test_a_figure_that_was_not_recorded_is_noticed():
    """Any, where it is far off; most, where another last digit alone is wrong, for that may be another figure's."""
    figures = [(row, commands, number) for row, commands in ROWS for number in numbers(row)]
    assert all(missing(row.replace(number, f"{number}917"), commands) for row, commands, number in figures)
    noticed = [bool(missing(row.replace(number, changed(number)), commands)) for row, commands, number in figures]
    assert sum(noticed) > 0.8 * len(noticed) > 100
    assert not any(held(f"{number}917", DEMO) for number in of_demo(README))
    noticed = [not held(changed(number), DEMO) for number in of_demo(README)]
    assert sum(noticed) > 0.8 * len(noticed)
