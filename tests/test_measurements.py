"""Every figure in a table of docs/measurements.md, and every one of the demo in the README, stands in the record,
tests/bench/results.jsonl, to the digits shown. The record is a log: any line of the commands and commits that the page
names may hold a figure, wherever it names some."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from tests.bench import record

NUMBER = re.compile(r"(?<![\w.-])−?(?:\d{1,3}(?:,\d{3})+|\d*\.\d+|\d+)(?!\w|\.\d)")
COMMAND = re.compile(r"`((?:\w+=\S+ )*(?:python|pytest) [^`]*)`")
COMMIT = re.compile(r"commit ([0-9a-f]{7,}(?:-dirty)?)")
PAGE, README = ((record.ROOT / name).read_text(encoding="utf-8") for name in ("docs/measurements.md", "README.md"))
LINES = [json.loads(line) for line in record.FILE.read_text(encoding="utf-8").splitlines()]


def numbers(text):
    """The numbers of a text as they are written, those in code left out."""
    return NUMBER.findall(re.sub(r"`[^`]*`", "", text))


def held(number, lines):
    """Whether a line has a number, to the digits shown, as a figure or in the name of one (the 8 of "batch 8")."""
    number = number.replace(",", "").replace("−", "-")
    value, digits = float(number), len(number.partition(".")[2])
    return any(abs(figure - value) <= 0.50001 * 10**-digits or number in re.split(r"[^\d.]", name)
               for line in lines for name, figure in line["figures"].items())


def at(commits):
    """The lines that were measured at some commits; all, where none is named."""
    return [line for line in LINES if not commits or line["commit"] in commits]


def of_command(command, commits):
    """The lines of a command, also with more options than a page names, or with files in place of FILES."""
    start = re.split(r" [A-Z]+\b", command)[0]
    return [line for line in at(commits) if f"{line['command']} ".startswith(f"{start} ")]


def missing(shown, commands, commits):
    """The numbers that no line of the commands holds; without a command, one line must hold them all."""
    groups = [[line] for line in at(commits)]
    if commands:
        groups = [[line for command in commands for line in of_command(command, commits)]]
    return min(([number for number in shown if not held(number, lines)] for lines in groups), key=len, default=shown)


def changed(number):
    """The same with another last digit."""
    return number[:-1] + str((int(number[-1]) + 1) % 10)


def rows(page):
    """(numbers, commands, commits) of every row of every table; the numbers are those of its cells with figures."""
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        commands = commits = []
        for row in body:
            named = COMMIT.findall(" ".join(row))
            if "as above" not in row:
                commands, commits = COMMAND.findall(" ".join(row)), named
            figures = [cell for title, cell in zip(head[1:], row[1:]) if title != "command"]
            yield numbers(" | ".join(figures)), commands, named or commits


def demo(readme):
    """The same of the README's demo: all decimals from its minutes to its recognition."""
    part = re.search(r"took [\d.]+ minutes.*?macro AUROC [^]]*\]", readme, re.S)
    assert part, "README.md: the demo's figures are not between 'took … minutes' and 'macro AUROC … [low, high]'"
    commits = COMMIT.findall(part[0])
    ways = "python -m tests.bench.demo", "python train.py", "python evaluate.py --ckpt runs/demo/ckpt.safetensors"
    commands = [command for command in ways if of_command(command, commits)]
    return [number for number in numbers(part[0]) if "." in number], commands, commits


SHOWN = [*rows(PAGE), demo(README)]


@pytest.mark.parametrize("shown, commands, commits", SHOWN)
def test_figures_are_recorded(shown, commands, commits):
    for command in commands:
        assert of_command(command, commits), f"results.jsonl has no line of {command} at {commits or 'any commit'}"
    assert not missing(shown, commands, commits), "results.jsonl does not hold these"


def test_a_figure_that_was_not_recorded_is_noticed():
    """Any, where it is far off; most, where its last digit alone is wrong, for that may be another figure."""
    copies = [(number, [*shown[:i], *shown[i + 1:]], where)
              for shown, *where in SHOWN for i, number in enumerate(shown)]
    assert len(copies) > 200
    assert all(missing([f"{number}917", *others], *where) for number, others, where in copies)
    noticed = [bool(missing([changed(number), *others], *where)) for number, others, where in copies]
    assert sum(noticed) > 0.8 * len(noticed)


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
