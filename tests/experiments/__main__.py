"""Do the clues make reports truer? The experiments of docs/results.md, on the phantom, whose truth is known.

    python -m tests.experiments                                         all of them, three seeds; hours
    python -m tests.experiments --only ladder swap --seeds 1            some of them
    python -m tests.experiments --tables                                tables of the results so far, as Markdown

    ladder     Table 2: base, dci, cmci, trrg and steered with the same LoRA, and base without LoRA
    swap       is the clue used? Other clues at test time: another study's, absent diseases', the true ones, none
    alignment  what stage 1 gives: as trained, untrained, equal sentences as positives or not
    clues      1, 3 or 5 clues; one prompt per disease or the whole bank; the number of queries
    data       10, 30, 100 % of the training studies for both stages, base against trrg, the same number of steps
    scarce     stage 1 on all studies, stage 2 on 3, 10, 30 % of them: base against steered
    mix        reports over the share of the injected clues that is right
    diagnosis  what the queries and L_DC become, and how much the language model reads of the clues

A job trains with train.py (whose presets and options hold: `--train "--epochs 2"`, or `--train1`, `--train2` for one
stage alone) and is measured with the program's own evaluation, in a process of its own. When it ends, its results
become one line of tests/experiments/results.jsonl. An interrupted command, run again, goes on where it stopped: a job
that has a line with the same settings is not run again, and train.py resumes.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import train
import trrg
from data.command import at_least
from data.dataset import Prepared
from data.files import UserError, whole_file
from tests.experiments import measures
from tests.experiments.grid import (
    PERCENT,
    SCARCE,
    SCARCE_VAL,
    TRAINED,
    argv,
    checkpoint,
    experiments,
    folder,
    needs,
    part,
    with_needed,
)
from tests.experiments.tables import COLUMNS, tables
from training import demo
from training.options import arguments
from training.processes import Processes
from training.state import data_digest, weights_digest
from training.timetable import Timetable, slowness

# Options that change no result, or stand in the settings by what was found of them.
PLACES = ("run", "stage1", "data", "weights", "fresh", "dry_run", "stage", "workers", "save_every", "embed_base",
          "checkpointing", "shard", "deterministic", "precision")
FOUND = ("test", "weights", "precision")           # what the machine had; the same for all jobs of a table


# ---------------------------------------------------------------------------------------------------------------------
# What is still to do, and doing it


@functools.lru_cache(maxsize=None)
def digest_of_data(path):
    return data_digest(Prepared(path))


@functools.lru_cache(maxsize=None)
def digest_of_weights(path):
    return weights_digest(path / "swin", path / "bert", path / "mistral")


def options(args, job):
    """What a result depends on, as far as the command line says: {option: value}."""
    found = {"kind": job.kind, "limit": args.limit, "beams": args.beams}
    if job.kind in TRAINED:
        of_stage = TRAINED.index(job.kind)                                        # of a pair, one is each stage's
        found |= {name: value[of_stage] if isinstance(value, tuple) else value
                  for name, value in vars(arguments(argv(args, job))).items() if name not in PLACES}
    return found


def settings(args, job):
    """What a result depends on: the options, what the machine had, and the job before by its `digest`."""
    of_training = arguments(argv(args, job) if job.kind in TRAINED else shlex.split(args.train))
    found = {**options(args, job), "test": digest_of_data(args.data), "weights": digest_of_weights(args.weights),
             "precision": of_training.precision}
    if job.kind in TRAINED:
        found["data"] = digest_of_data(of_training.data)
    return {**found, "after": digest(args, job.after)} if job.after else found


def digest(args, job):
    """A short name of all that a job's checkpoint depends on."""
    found = {name: value for name, value in settings(args, job).items() if name not in ("limit", "beams")}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def done(args, job):
    """The file that says that a job's training is over, and of which settings: a checkpoint is there before."""
    return folder(args, job) / "done"


def read_results(path):
    """{(name, seed): line} of the results there are."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(line["name"], line["seed"]): line for line in map(json.loads, lines)}


def record(args, line):
    """Puts one line among the results, for the job's older one if there is one. Several processes may do so at once."""
    with open(args.runs / ".lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        results = {**read_results(args.results), (line["name"], line["seed"]): line}
        with whole_file(args.results) as file:
            file.writelines(json.dumps(one, separators=(",", ":")) + "\n" for one in results.values())


def trained(args, job):
    """Whether a job's checkpoint is there, whole, and of these settings."""
    end = done(args, job)
    return checkpoint(args, job).is_file() and end.is_file() and end.read_text(encoding="utf-8") == digest(args, job)


def outstanding(args, wanted):
    """The jobs to run, each after the one it needs. One that is done runs again where its checkpoint is needed."""
    results, todo = read_results(args.results), []

    def visit(job, needed):
        line = results.get((job.name, job.seed))
        measured = line is not None and line["settings"] == settings(args, job)
        if job in todo or measured and (not needed or trained(args, job)):
            return
        if job.after:
            visit(job.after, needed=True)
        todo.append(job)

    for job in wanted:
        visit(job, needed=False)
    return todo


def work(args, experiment, job):
    """Trains and measures one job, and records it. Returns the exit code."""
    begun, trains = time.monotonic(), job.kind in TRAINED
    line = {"experiment": experiment, "name": job.name, "seed": job.seed}
    if trains:
        line["arguments"] = shlex.join(argv(args, job))
        done(args, job).unlink(missing_ok=True)
        if code := train.main([*argv(args, job), *["--fresh"] * args.fresh]):
            return code
        with whole_file(done(args, job)) as file:
            file.write(digest(args, job))
    processes, prepared = Processes(), Prepared(args.data)
    model = trrg.load(checkpoint(args, job if trains else job.after), weights=args.weights, device=processes.device)
    on = model, prepared, prepared.split("test")[:args.limit], processes
    if job.kind == "align":
        line["metrics"] = measures.recognition(*on)
    elif job.kind == "diagnose":
        line["metrics"] = measures.diagnosis(*on)
    else:
        decoding = {"beams": args.beams} if args.beams else {}
        line["metrics"], line["studies"] = measures.reports(*on, job.kind, **decoding)
    record(args, {**line, "commit": commit(), "settings": settings(args, job),
                  "seconds": round(time.monotonic() - begun)})
    return 0


def commit():
    """The commit that made a result, with a + where files were changed since; "" outside of git."""
    def git(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))


def start(args, job):
    """The job in a process of its own, its output in its folder. It does not hear Ctrl-C: `run` passes that on."""
    folder(args, job).mkdir(parents=True, exist_ok=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // args.jobs))
    with open(folder(args, job) / "output.txt", "ab") as output:
        return subprocess.Popen([sys.executable, "-m", "tests.experiments", *args.given, "--job", job.name, str(job.seed)],
                                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                env={"OMP_NUM_THREADS": threads, **os.environ}, start_new_session=True)


def run(args, todo):
    """Runs the jobs, `args.jobs` at a time, none before what it needs. Returns those that failed or were left out."""
    waiting, running, failed = list(todo), {}, []
    try:
        while waiting or running:
            ready = [job for job in waiting if job.after not in waiting and job.after not in running]
            for job in ready[:args.jobs - len(running)]:
                waiting.remove(job)
                running[job] = start(args, job), time.monotonic()
            time.sleep(0.2)
            for job, (process, begun) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    failed += [job] * (process.returncode != 0)
                    left_out = [other for other in waiting if needs(other, failed)]
                    waiting = [other for other in waiting if other not in left_out]
                    failed += left_out
                    print(f"{time.strftime('%H:%M')}  {job.name}, seed {job.seed}: {time.monotonic() - begun:.0f} s, "
                          f"{outcome(args, job, process.returncode)}; {len(waiting) + len(running)} to go"
                          + (f", {len(left_out)} left out for it" if left_out else ""), flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()                                # train.py saves its state and ends
        for process, _ in running.values():
            process.wait()
    return failed


def outcome(args, job, code):
    """How a job ended, with the last words of one that failed."""
    if code == 0:
        return "done"
    path = folder(args, job) / "output.txt"
    words = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return f"FAILED ({code}), {path}: {next((line.strip() for line in reversed(words) if line.strip()), '')}"


# ---------------------------------------------------------------------------------------------------------------------


def shown(args, results, jobs):
    """({(name, seed): line} that go into the tables, the names of those left out: made with other settings).

    For --tables nothing but the results need be here, so what their machine had is only compared among them.
    """
    theirs = options if args.tables else settings
    there = {(job.name, job.seed): job for job in jobs if (job.name, job.seed) in results}
    if args.as_recorded:
        return {key: results[key] for key in there}, []
    keys = [key for key, job in there.items() if theirs(args, job).items() <= results[key]["settings"].items()]
    if args.tables and keys:
        had = {key: tuple(results[key]["settings"].get(name) for name in FOUND) for key in keys}
        (most, _), *_ = Counter(had.values()).most_common()
        keys = [key for key in keys if had[key] == most]
    return {key: results[key] for key in keys}, [f"{name}, seed {seed}" for name, seed in there if (name, seed) not in keys]


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = at_least(int, 1)
    p.add_argument("--only", nargs="+", choices=tuple(COLUMNS), default=tuple(COLUMNS), metavar="EXPERIMENT",
                   help="(default: all)")
    p.add_argument("--seeds", type=count, default=3, help="seeds 0, 1, … (default: %(default)s)")
    p.add_argument("--jobs", type=count, default=1, help="at a time, sharing the cores (default: %(default)s)")
    p.add_argument("--train", default="", metavar="OPTIONS", help='train.py\'s, for all jobs: --train "--max-steps 20"')
    p.add_argument("--train1", default="", metavar="OPTIONS", help="the same, for stage 1 alone")
    p.add_argument("--train2", default="", metavar="OPTIONS", help="the same, for stage 2 alone")
    p.add_argument("--fresh", action="store_true",
                   help="start the training of all outstanding jobs over; one begun with other settings needs it")
    p.add_argument("--beams", type=count, help="beam width of the reports (default: the checkpoint's)")
    p.add_argument("--limit", type=count, metavar="N", help="measure on the first N test studies (default: all)")
    p.add_argument("--tables", action="store_true", help="print the tables of the results so far, and stop")
    p.add_argument("--as-recorded", action="store_true",
                   help="with --tables: take lines of any settings, such as those of an older commit's --results")
    p.add_argument("--data", type=Path, default=Path("datasets/demo"), help="the phantom (default: %(default)s)")
    p.add_argument("--weights", type=Path, default=Path("weights/demo"), help="base weights (default: %(default)s)")
    p.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="(default: %(default)s)")
    p.add_argument("--results", type=Path, default=Path("tests/experiments/results.jsonl"), help="(default: %(default)s)")
    p.add_argument("--job", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    return p


def command(args, experiment):
    """The command that makes an experiment's table."""
    words = ["python", "-m", "tests.experiments", "--only", experiment]
    for name in ("seeds", "train", "train1", "train2", "beams", "limit"):
        if getattr(args, name) != parser().get_default(name):
            words += [f"--{name}={getattr(args, name)}"]
    return shlex.join(words)


def main(argv=None):
    args = parser().parse_args(argv)
    args.given = sys.argv[1:] if argv is None else argv
    try:
        grids, failed = [experiments(args, seed) for seed in range(args.seeds)], []
        if args.job:
            name, seed = args.job
            owners = with_needed(grids[int(seed)], COLUMNS)
            return work(args, *next((owners[job], job) for job in owners if job.name == name))
        if not args.tables:
            timetable = Timetable(demo.lacking(args.data, args.weights, slowness()), print)
            demo.wait_for(demo.prepare(args.data, args.weights, 0, timetable), args.weights)
            for seed, percent in product(range(args.seeds), PERCENT[:-1]) if "data" in args.only else ():
                part(args, percent, seed)
            for seed, percent in product(range(args.seeds), SCARCE) if "scarce" in args.only else ():
                part(args, percent, seed, SCARCE_VAL)
            failed = run(args, outstanding(args, [job for grid in grids for job in with_needed(grid, args.only)]))
        results, left_out = shown(args, read_results(args.results),
                                  [job for grid in grids for job in with_needed(grid, args.only)])
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130
    for experiment in args.only:
        print(f"### {experiment}\n", *tables(results, grids, experiment), f"    {command(args, experiment)}\n", sep="\n")
    if left_out:
        print(f"Left out, for they were made with other settings: {'; '.join(left_out)}")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
