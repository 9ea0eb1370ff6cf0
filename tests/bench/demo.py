"""The demo's whole time, this commit and another one turn about: wall, CPU seconds and the largest process.

    git worktree add ../old 871f017
    python -m tests.bench.demo --against ../old
    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 python -m tests.bench.demo --against ../old
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (["train.py"], ["evaluate.py", "--ckpt", "runs/demo/ckpt.safetensors"])


def timed(root):
    """Both commands of a checkout in a new folder → (wall, CPU seconds of all processes, GB of the largest one)."""
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), os.times()
        largest = 0
        for script, *words in COMMANDS:
            process = subprocess.Popen([sys.executable, str(root / script), *words], cwd=folder,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{root / script}: exit code {process.returncode}")
            largest = max(largest, usage.ru_maxrss * 1024 / 1e9)
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu, largest


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--against", type=Path, required=True, help="a checkout of the commit to compare with")
    p.add_argument("--rounds", type=int, default=1)
    args = p.parse_args()
    print("commit        wall min    CPU min         GB", flush=True)
    for _ in range(args.rounds):
        for name, root in (("the other", args.against.resolve()), ("this", ROOT)):
            wall, cpu, largest = timed(root)
            print(f"{name:<10}{wall / 60:>12.2f}{cpu / 60:>11.2f}{largest:>11.2f}", flush=True)


if __name__ == "__main__":
    main()
