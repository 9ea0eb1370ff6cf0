"""The demo's whole time, this commit and another one turn about, by command: wall and CPU minutes, and memory.

"largest" is the largest process, "together" what all processes of a command held at one moment, pages that they share
counted once (PSS of /proc, a few times a second; "-" where there is no /proc).

    git worktree add ../old 871f017
    python -m tests.bench.demo --against ../old
    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 \\
        python -m tests.bench.demo --against ../old
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evaluation.verdicts import headline
from tests.bench import record

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (["train.py"], ["evaluate.py", "--ckpt", "runs/demo/ckpt.safetensors"])
RECOGNITION = ["--ckpt", "runs/demo/stage1.safetensors", "--out", "runs/demo/stage1"]
PROC = Path("/proc")


def together(pid):
    """Bytes that a process and all below it hold now, shared pages counted once; 0 where /proc does not tell."""
    parents = {}
    for path in PROC.glob("[0-9]*/stat"):
        if text := read(path):
            parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])       # a name may hold brackets
    family, more = set(), {pid}
    while more:
        family |= more
        more = {child for child, parent in parents.items() if parent in more} - family
    found = [re.search(r"^Pss: +(\d+) kB", read(PROC / str(one) / "smaps_rollup"), re.M) for one in family]
    return sum(int(match[1]) * 1024 for match in found if match)


def read(path):
    """A file's text; nothing where its process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def timed(command, folder):
    """A command in a folder → (wall, CPU seconds of all processes, bytes of the largest one, and of all together)."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        most = max(most, together(process.pid))
        time.sleep(0.25)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, most


def line(name, command, wall, cpu, largest, most):
    gigabytes = f"{most / 1e9:.2f}" if most else "-"
    return f"{name:<10} {command:<12}{wall / 60:>10.2f}{cpu / 60:>10.2f}{largest / 1e9:>12.2f}{gigabytes:>12}"


def scores(run):
    """{name: number} of what evaluate.py prints of both stages: scores with their intervals, floors, recognition."""
    metrics, stage1 = (json.loads((run / name / "metrics.json").read_text()) for name in ("eval-test", "stage1"))
    cells = {f"{name} ({protocol})": cell for protocol, named in metrics["language"].items()
             for name, cell in named.items()}
    cells |= headline(metrics) | {"macro AUROC": stage1["zero_shot"]["auroc"]["macro"]}
    for floor, of_floor in metrics["floors"].items():
        cells |= {f"{name}, {floor}": cell for name, cell in headline(of_floor).items()}
    return {f"{name}, {end}" if end != "value" else name: cell[end]
            for name, cell in cells.items() for end in ("value", "low", "high") if cell[end] is not None}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--against", type=Path, help="a checkout of the commit to compare with; default: none")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--record", action="store_true", help=record.HELP)
    args = p.parse_args()
    checkouts = {"the other": args.against.resolve()} if args.against else {}
    print("commit     command       wall min   CPU min  largest GB together GB", flush=True)
    for _ in range(args.rounds):
        for name, root in (checkouts | {"this": ROOT}).items():
            figures, known = [], {}
            with tempfile.TemporaryDirectory() as folder:
                for script, *words in COMMANDS:
                    figures.append(timed([sys.executable, str(root / script), *words], folder))
                    print(line(name, script, *figures[-1]), flush=True)
                if args.record and root == ROOT:                    # of another commit the times alone
                    timed([sys.executable, str(root / "evaluate.py"), *RECOGNITION], folder)
                    known = scores(Path(folder) / "runs" / "demo")
            walls, cpus, *memory = zip(*figures)
            print(line(name, "both", sum(walls), sum(cpus), *map(max, memory)), flush=True)
            record.add(args, {"train.py, min": walls[0] / 60, "evaluate.py, min": walls[1] / 60,
                              "both, min": sum(walls) / 60, "both, CPU min": sum(cpus) / 60,
                              "largest process, GB": max(memory[0]) / 1e9, "all together, GB": max(memory[1]) / 1e9,
                              **known}, root, threads=None)


if __name__ == "__main__":
    main()
