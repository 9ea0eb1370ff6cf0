"""Kills train.py at random moments, many times, and compares the weights with those of an undisturbed run.

    OMP_NUM_THREADS=1 python -m tests.bench.kills [--kills 20] [--processes 1 2] [--workers 2 --accumulate 2 --precision bf16]

On toy data, both stages, dropout on, a state every step, so that many kills fall into a save. A run that ends before it has
met all kills is followed by another. Exits with 1 where a bit differs.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests import runs
from tests.bench import record


def killed_run(argv, folder, world, kills, rng):
    """Runs to the end through up to `kills` kills; → (kills, how many left a half-written state behind)."""
    during_save, done = 0, 0
    while True:
        started = runs.Started("train", [*argv, "--run", folder / "run"], folder / "out", world)
        if done < kills:
            log, end = folder / "run" / "log.jsonl", time.monotonic() + 60
            before = log.read_bytes().count(b"\n") if log.exists() else 0
            wanted = before + rng.randint(0, 2)
            while (log.read_bytes().count(b"\n") if log.exists() else 0) < wanted and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(rng.random() * (0.05 if wanted > before else 1.0))
            if started.processes[0].is_alive():
                rng.choice(started.processes).kill()
                done += 1
        codes = started.wait()
        during_save += bool(list((folder / "run").glob("state/.*")))
        if not any(codes):
            return done, during_save


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", default=0, help="of the loader")
    parser.add_argument("--accumulate", default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--record", action="store_true", help=record.HELP)
    args = parser.parse_args()
    extra = ["--workers", args.workers, "--accumulate", args.accumulate, "--precision", args.precision]
    failed = False
    for world in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            folder, begun = Path(folder), time.monotonic()
            argv = [*runs.prepare(folder, train=24), *runs.WRITER, "--batch-size", 4 // world, "--epochs", "5", "--save-every", "1", *extra]
            code, _, err = runs.run("train", [*argv, "--run", folder / "whole"], folder / "out", world)
            assert code == 0, err
            rng, kills, saves, same, log, disturbed = random.Random(world), 0, 0, True, True, []
            while kills < args.kills:
                disturbed.append(folder / f"killed{len(disturbed)}")
                done, during_save = killed_run(argv, disturbed[-1], world, args.kills - kills, rng)
                kills, saves = kills + done, saves + during_save
                same &= all(runs.same_weights(disturbed[-1] / "run" / name, folder / "whole" / name)
                            for name in ("stage1.safetensors", "ckpt.safetensors"))
                log &= runs.log_of(disturbed[-1] / "run") == runs.log_of(folder / "whole")
            print(f"{world} processes: {kills} kills of {len(disturbed)} runs, {saves} of them during a save, in "
                  f"{time.monotonic() - begun:.0f} s: weights {'identical' if same else 'DIFFERENT'}, log {'identical' if log else 'DIFFERENT'}",
                  flush=True)
            record.add(args, {"processes": world, "kills": kills, "during a save": saves, "same weights": int(same),
                              "same log": int(log)})
            failed |= not (same and log)
    sys.exit(failed)


if __name__ == "__main__":
    main()
