"""The record of what was measured: results.jsonl, one line per group of figures, to which lines are only added.

Every benchmark adds its figures itself with --record. Those of another command are added by hand:

    python -m tests.bench.record "python evaluate.py --ckpt runs/demo/ckpt.safetensors" seconds=32 "largest GB=1.22"

The figures in docs/measurements.md, and the demo's in the README, stand in these lines (tests/test_measurements.py).
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("results.jsonl")
HELP = "add the figures to tests/bench/results.jsonl"
OUTSIDE = re.compile(r"(^|=)(?:/|~|\.\.).*/")                  # a folder outside of the repository, in an option


def add(args, figures, root=ROOT, threads=...):
    """One line with {name: number}, where --record was given.

    root: the checkout that was measured. threads: where the benchmark's own process is not what was measured.
    """
    if args.record:
        module = sys.modules["__main__"].__spec__.name
        words = [OUTSIDE.sub(r"\1", word) for word in sys.argv[1:] if word != "--record"]
        write(shlex.join(["python", "-m", module, *words]), figures, root, threads)


def write(command, figures, root=ROOT, threads=..., **more):
    """The line itself: the figures, and what they hang on."""
    import torch  # not before, for it would count in the memory that a benchmark measures

    bench = re.search(r"tests\.bench\.(\w+)", command)
    line = {"bench": bench and bench[1], "command": command,
            "commit": commit(root), "date": datetime.date.today().isoformat(), "machine": machine(torch),
            "torch": torch.__version__, "threads": torch.get_num_threads() if threads is ... else threads, **more,
            "figures": {name: number(value) for name, value in figures.items()}}
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def commit(root):
    """The short hash of a checkout, with -dirty where program text was changed since; None outside of git."""
    def git(*words):
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!*.md", ":!*.jsonl")
    return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed) or None


def machine(torch):
    """Processor, cores, and the vector instructions that torch may use (ATEN_CPU_CAPABILITY); the GPU."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", info.read_text(), re.M) if info.exists() else None
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([model[1] if model else platform.processor() or platform.machine(), f"{os.cpu_count()} cores",
                      torch.backends.cpu.get_cpu_capability().lower(), *gpu])


def number(value):
    """A whole number as it is, any other to six digits."""
    value = float(value)
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("command", help="as typed in the repository's folder")
    p.add_argument("figures", nargs="+", metavar="name=number")
    args = p.parse_args()
    pairs = [pair.rpartition("=") for pair in args.figures]
    write(args.command, {name: number(value) for name, _, value in pairs}, threads=None, transcribed=True)


if __name__ == "__main__":
    main()
