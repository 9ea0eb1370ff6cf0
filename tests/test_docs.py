"""README.md and docs/: every path, link, option, command and test that they name exists, and every
row of a table of experiments is what the recorded lines give."""

import ast
import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests import experiments
from tests.experiments.__main__ import main as tables_of
from training.options import OPTIONS, flag

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"train.py": "training/options.py", "evaluate.py": "evaluate.py"}        # command: where its options stand
OF_OTHERS = {"--nproc_per_node", "--nnodes", "--quiet", "-r", "-m", "-q"}           # torchrun's, pip's and pytest's


@cache
def options_in(path):
    """Every option that a file's add_argument calls, or train.py's table, name; switches with their --no- form."""
    options = {"--run-dir", *map(flag, OPTIONS)} if str(path) == COMMANDS["train.py"] else set()
    options |= {name.replace("--", "--no-", 1) for name in options}
    for call in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
            names = {word.value for word in call.args if isinstance(word, ast.Constant)
                     and isinstance(word.value, str) and word.value.startswith("-")}
            options |= names | {name.replace("--", "--no-", 1) for name in names}
    return options


def module_file(name):
    """The file that `python -m name` runs, or None where it is not one of ours."""
    path = ROOT / name.replace(".", "/")
    return next((file.relative_to(ROOT) for file in (path / "__main__.py", path.with_suffix(".py")) if file.is_file()),
                None)


def command_lines(text):
    """The command lines of a page: those of indented or fenced blocks, continued lines joined."""
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
        line = line.strip().strip("`")
        for part in re.split(r"&&|;| # ", line):
            if match := re.search(r"(?:^|\s)((?:torchrun|python3?)\s.*)", part):
                yield match.group(1).split("#")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor and file.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_paths_and_tests_exist(page):
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`(?:tests/)?(test_\w+\.py)::(\w+)", text):
        path = ROOT / "tests" / file
        assert path.is_file() and f"def {name}(" in path.read_text(encoding="utf-8"), f"{page.name}: {file}::{name}"
    for path in re.findall(r"`((?:model|data|metrics|training|evaluation|tests|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for path in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_options_exist(page):
    """An option named in running text belongs to some command; one in a command line, to that command."""
    text = page.read_text(encoding="utf-8")
    files = [path.relative_to(ROOT) for folder in ("training", "data", "tests/bench", "tests/experiments", "docs")
             for path in sorted((ROOT / folder).glob("*.py"))]
    everywhere = set().union(OF_OTHERS, *map(options_in, [*files, "evaluate.py", "train.py"]), {"--help"})
    for option in re.findall(r"`[^`\n]*?(--[a-z][\w-]*)", text):
        assert option in everywhere, f"{page.name} names {option}"

    for line in command_lines(text):
        words = shlex.split(line.replace("[", "").replace("]", "").replace("|", " "), posix=True)
        script = next((word for word in words if word.endswith(".py")), None)
        module = words[words.index("-m") + 1] if "-m" in words else None
        file = COMMANDS.get(script) or (module and module_file(module))
        assert script is None or script in COMMANDS, f"{page.name}: {line}"
        if module and module not in ("pip", "pytest", "venv"):
            assert file, f"{page.name}: {line}"
        if file:
            known = options_in(str(file)) | OF_OTHERS | {"--help"}
            given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            assert given <= known, f"{page.name}: {line}: {given - known}"


def figures(row):
    """The cells of a table's row that are mean ± deviation, with and without a zero before the point."""
    return frozenset(re.sub(r"\b0\.", ".", cell.strip()) for cell in row.split("|") if " ± " in cell)


@cache
def recorded():
    """The figures of every row of every table that the recorded lines of the experiments give."""
    rows = set()
    for file in sorted(Path(experiments.__file__).parent.glob("results*.jsonl")):
        if "988c456" not in file.name:       # its grid had a stage 1 per seed: that commit's own driver printed its tables
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert tables_of(["--tables", "--as-recorded", "--results", str(file), "--seeds", "5"]) == 0
            rows |= {figures(line) for line in printed.getvalue().splitlines() if line.startswith("|")}
    return rows


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_tables_of_experiments_hold_what_was_recorded(page):
    text = page.read_text(encoding="utf-8").partition("\n## At commit 988c456")[0]
    for row in re.findall(r"^\|.* ± .*\|$", text, flags=re.M):
        assert any(figures(row) <= found for found in recorded()), f"{page.name}: {row}"
