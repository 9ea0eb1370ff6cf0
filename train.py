"""Trains TRRG.

    python train.py                                          the demo: its data, weights, both stages
    python train.py --epochs 34 5 --run runs/longer          longer: 34 epochs of stage 1, 5 of stage 2
    torchrun --nproc_per_node 4 train.py                     on 4 processes: GPUs, or CPUs with gloo
    torchrun --nproc_per_node 4 train.py --preset mimic_cxr  the paper's settings
    python train.py --preset mimic_cxr --dry-run             prints parts, shapes, memory and time;
                                                             needs no weights

An interrupted run is resumed by the same command; SIGTERM and Ctrl-C save the state first. One
process and several run the same code: a batch is planned for all processes together, each process
takes its share, and every loss is a mean over the whole batch. Exit codes: 0 done, 2 a mistake of
the user (one line on stderr), 128 + signal number after a signal, 1 anything else.
"""

from data.command import plain_output, stop_in_one_line

if __name__ == "__main__":
    stop_in_one_line()                     # before the imports below, which may take seconds

import math
import os
import sys
import time
from contextlib import closing, nullcontext
from functools import reduce
from operator import add
from pathlib import Path

# Torch reads this when imported. Without it DDP's C++ code prints a needless warning about unused parameters.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from data.dataset import Prepared, Visits, collate, plan_epoch
from data.files import UserError
from data.reports import PRESENT, clean_report
from evaluation.recognition import auroc_so_far
from evaluation.writing import write_reports
from metrics import score
from training import demo
from training.dry_run import dry_run
from training.features import cache_features
from training.log import Clock, Log, module_table, next_commands, sample_text, summary, threads_told
from training.optimizer import optimizer_for, set_learning_rate
from training.options import arguments, of_stage
from training.processes import Processes, Share, Stopped, StopSignal, distributed, last_words
from training.schedule import Plan, learning_rate, loaded
from training.sharding import fsdp
from training.stages import Stage1, Stage2, tokenized
from training.state import (
    Lock,
    drop_states,
    finished,
    newest_state,
    remove_leftovers,
    restore_state,
    rng_state,
    save_state,
    settings_of,
)
from training.timetable import Part, Timetable, slowness

MOST_SKIPPED = 3           # consecutive steps that may go without an update because loss or gradient is not finite


# ---------------------------------------------------------------------------------------------------------------------
# The loop, shared by both stages

class Run:
    """One stage, from its newest state or from the start, to its last step."""

    def __init__(self, stage, plan, args, processes, settings, timetable, say, features):
        self.stage, self.plan, self.args, self.processes, self.timetable = stage, plan, args, processes, timetable
        self.settings, self.say, self.device, self.lead = settings, say, processes.device, processes.rank == 0

        self.model, prepared, crop = stage.model.train(), stage.prepared, stage.model.pictures["crop"]
        features = (cache_features(self.model, prepared, features, processes)
                    if stage.number == 2 and args.cache_features else None)
        self.train = Visits(prepared, prepared.split("train"), stage.number, crop, args.seed, args.sentences, features)
        self.val = Visits(prepared, prepared.split("val"), stage.number, crop, None, args.sentences, features)

        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = optimizer_for(self.parameters, args.lr, args.weight_decay, muon=args.optimizer == "muon")
        self.wrapped = distributed(self.model, processes)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=args.precision == "bf16")
        torch.manual_seed(args.seed + processes.rank)

        self.step, self.stopping = 0, False
        self.counters = {"best": None, "validated": 0, "skipped": 0, "left_out": 0, "cut": 0, "studies": 0,
                         "seconds": 0.0}

    def fit(self):
        """All remaining steps, with their saved states and validations. Raises Stopped if the stage ends early."""
        self.go_on()
        self.say(module_table(self.model))
        first = self.step
        self.begun = time.perf_counter() - self.counters["seconds"]
        log = (closing(Log(self.args.run / "log.jsonl", self.stage.name, self.step, self.counters["validated"],
                           self.plan.steps)) if self.lead else nullcontext())

        with StopSignal(self.processes) as self.signal, log as self.log, \
                closing(loaded(self.plan, self.train, self.step, self.args.workers, self.device)) as self.batches:
            while True:
                due = self.plan.validates(self.step) and self.counters["validated"] < self.step and not self.stopping
                if due or self.stopping or self.step % self.args.save_every == 0:
                    self.save()         # also before a validation, which may take hours
                if due:
                    self.validate()
                    self.save()
                if self.stopping:
                    raise Stopped(f"{self.stage.name}: stopped after step {self.step} of {self.plan.steps}; the state "
                                  "is saved, and the same command resumes the run",
                                  code=128 + (self.signal.number or 15))
                if self.step == self.plan.steps:
                    break
                self.train_step()
                self.timetable.measured(self.step - first, self.plan.steps - first)

        if self.counters["best"] is None:
            raise Stopped(f"{self.stage.name}: no validation gave a finite loss or score, so no checkpoint was "
                          "written; start over with --fresh and a lower --lr")
        self.say(summary(self.stage, self.plan, self.counters, self.args))

    def train_step(self):
        """One optimiser step, on `--accumulate` batches of all processes."""
        clock, stage = Clock(self.device), self.stage

        # This process's batches, and the divisors of the step's loss, summed over all batches and processes
        batches = [tokenized(stage, share, visits) for share, visits in next(self.batches)]
        divisors = self.processes.sum(**{name: sum(batch.counts[name] for batch in batches)
                                         for name in batches[0].counts})
        clock.lap("data")

        # Forward and backward, batch by batch; the summed gradients are exchanged with the last batch
        losses = []
        for batch in batches:
            last = batch is batches[-1] or self.processes.world == 1
            with nullcontext() if last else self.wrapped.no_sync():
                with self.autocast:
                    loss = stage.step(self.wrapped, batch)
                clock.lap("forward")
                # DDP takes the mean over processes; the factor makes it a sum
                (stage.total(loss._replace(**divisors)) * self.processes.world).backward()
                clock.lap("backward")
            losses.append(as_numbers(loss))

        # The loss of all processes, and whether one of them received a signal to stop
        figures = self.processes.sum(**reduce(add, losses)._asdict(), cut=sum(batch.cut for batch in batches),
                                     told=self.signal.number > 0)
        cut, self.stopping = int(figures.pop("cut")), figures.pop("told") > 0
        loss = type(loss)(**figures)
        total = stage.total(loss)

        # The update, which all processes skip if the loss or the gradient is not finite
        norm = clip_grad_norm_(self.parameters.values(), self.args.clip).item()
        lr = learning_rate(self.step, self.plan.steps, self.args.lr, self.args.warm_up)
        if math.isfinite(total) and math.isfinite(norm):
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
            self.counters["skipped"] = 0
        else:
            self.skip(total, norm, [number for batch in batches for number in batch.share.batch])
        self.optimizer.zero_grad(set_to_none=True)
        clock.lap("optimiser")

        studies = sum(len(batch.share.batch) for batch in batches)
        self.step += 1
        self.counters["cut"] += cut
        self.counters["studies"] += studies
        if self.lead:
            self.log.step({"step": self.step, "epoch": batches[0].share.epoch, "loss": total, **stage.figures(loss),
                           "lr": lr, "gradient_norm": norm, "cut": cut}, clock, studies, self.device)

    def skip(self, loss, norm, studies):
        """Reports a step without an update, on `studies` (numbers); a fourth such step in a row ends the run."""
        self.counters["skipped"] += 1
        self.counters["left_out"] += 1
        what = (f"{self.stage.name}: step {self.step + 1}: loss {loss}, gradient norm {norm}, on the studies "
                f"{', '.join(self.train.studies[number]['id'] for number in studies)}")
        if self.counters["skipped"] > MOST_SKIPPED:
            raise Stopped(f"{what}; not finite in {self.counters['skipped']} steps in a row: check these studies, or "
                          "start over with --fresh and a lower --lr")
        self.say(f"{what}; step skipped, no update")

    @torch.no_grad()
    def validate(self):
        """Measures the val split, and writes a checkpoint if the result is the best so far."""
        stage, losses = self.stage, []
        self.model.eval()
        for batch in plan_epoch(stage.view_counts(self.val.studies), self.args.batch_size * self.processes.world):
            share = Share(batch, self.processes)
            visits = collate([self.val[0, number] for number in share.numbers])
            with self.autocast:
                loss = stage.step(self.model, tokenized(stage, share, visits))
            figures = self.processes.sum(**as_numbers(loss)._asdict(), told=self.signal.number > 0)
            if figures.pop("told"):
                self.stopping = True
                break
            losses.append(type(loss)(**figures))
        else:
            figures = {"loss": stage.total(reduce(add, losses))}
            if stage.number == 2 and self.args.select != "loss":
                figures |= self.score_reports()
            if stage.number == 1 and self.args.samples and all("labels" in study for study in self.val.studies):
                auroc = auroc_so_far(self.model, stage.prepared, self.val.studies, self.processes)
                figures |= {} if auroc is None else {"AUROC": auroc}
            self.keep(figures, "loss" if stage.number == 1 else self.args.select)
            if stage.number == 2 and self.args.samples and not self.args.shard:
                self.show_samples()
        self.model.train()

    def score_reports(self):
        """BLEU-4 and CIDEr of the reports of `--val-reports` studies, evenly spaced over the val split."""
        studies, count = self.val.studies, min(self.args.val_reports, len(self.val.studies))
        chosen = [studies[i * len(studies) // count] for i in range(count)]
        reports = write_reports(self.model, self.stage.prepared, chosen, self.processes, what="validation")
        scores = score([report.text for report, _ in reports], [clean_report(study["report"]) for study in chosen],
                       meteor_data=False)
        return {name: scores[name] for name in ("BLEU-4", "CIDEr")}

    def show_samples(self):
        """Prints the current reports of a few val studies, always the same ones, beside their references."""
        studies = [study for study in self.val.studies if PRESENT in study.get("labels", [PRESENT])[:-1]]
        studies = (studies or self.val.studies)[:self.args.samples]
        reports = write_reports(self.model, self.stage.prepared, studies, self.processes, what=None, beams=1)
        for study, (report, _) in zip(studies, reports):
            sample = {"id": study["id"], "report": report.text, "reference": clean_report(study["report"]),
                      "clues": [[prompt, round(weight, 4)] for prompt, weight in report.clues]}
            self.say(sample_text(sample))
            if self.lead:
                self.log.write({"step": self.step, "sample": sample})

    def keep(self, figures, select):
        """Prints the validation's figures, and writes the checkpoint if the selected one is the best so far."""
        value, best = figures[select], self.counters["best"]
        better = (math.isfinite(value)
                  and (best is None or (value < best["value"] if select == "loss" else value > best["value"])))
        self.say(f"{self.stage.name}: after step {self.step}, val: "
                 + ", ".join(f"{name} {x:.4f}" for name, x in figures.items())
                 + (", the best so far" if better else ""))
        if better:
            self.counters["best"] = {"value": value, "step": self.step}
        if self.lead:
            self.log.write({"step": self.step, "validation": figures})
        if self.lead and better:
            studies, options = self.train.studies, self.stage.prepared.manifest.get("options", {})
            self.stage.save(self.args.run / self.stage.checkpoint, {
                "data": str(self.args.data), "preset": self.args.preset, "step": self.step, "validation": figures,
                "trained_on": {"source": options.get("source"), "studies": len(studies), "steps": self.step,
                               "pictures": sum(len(study["views"]) for study in studies)}})
        self.counters["validated"] = self.step

    def save(self):
        """Writes the state, unless the newest state on disk is the same."""
        now = self.step, self.counters["validated"]
        if self.saved != now:
            rngs = self.processes.gather_objects(rng_state(self.device))
            self.counters["seconds"] = time.perf_counter() - self.begun
            if self.lead:
                self.log.sync()
                save_state(self.args.run / "state", self.stage.name, self.step, self.parameters, self.optimizer, rngs,
                           {**self.counters, "settings": self.settings})
            self.processes.barrier()
            self.saved = now

    def go_on(self):
        """Restores the newest state, if there is one. The first process checks the files and chooses for all."""
        newest = newest_state(self.args.run / "state", self.stage.name, say=lambda text: None) if self.lead else None
        path, header = self.processes.gather_objects(newest)[0]
        if path:
            restore_state(path, self.parameters, self.optimizer, self.processes.rank, self.device)
            self.step = header["step"]
            self.counters = {key: value for key, value in header["facts"].items() if key != "settings"}
            self.say(f"{self.stage.name}: going on after step {self.step} of {self.plan.steps}")
        self.saved = self.step, self.counters["validated"]


def as_numbers(loss):
    """The loss as plain numbers, detached from the graph."""
    return type(loss)(*(torch.as_tensor(value).item() for value in loss))


# ---------------------------------------------------------------------------------------------------------------------
# From the command line to the stages


def expected_parts(args):
    """The command's work as a list of `Part`s; for the demo with durations, estimated by a quick measurement."""
    parts, seconds = [], (None, None)
    if args.preset == "demo":
        slow = slowness()
        parts = demo.lacking(args.data, args.weights, slow)
        seconds = [slow * visit * min(epochs * demo.STUDIES[0], (args.max_steps or math.inf) * batch)
                   for visit, epochs, batch in zip(demo.VISIT, args.epochs, args.batch_size)]
    lengths = [f"{epochs} epoch{'s' * (epochs > 1)}" for epochs in args.epochs]
    stages = [Part("stage1", f"stage 1: pictures aligned with sentences, {lengths[0]}", seconds[0]),
              Part("stage2", f"stage 2: reports from pictures and clues, {lengths[1]}", seconds[1])]
    return parts + [stage for number, stage in enumerate(stages, start=1) if args.stage in (None, number)]


def prepare_run(args, timetable):
    """The first process's work before training: refuses folders that do not exist, locks the run's folder, and makes
    missing demo data and weights. Returns the lock and the result of `demo.prepare`. Raises UserError.
    """
    demos = {"data": args.data == Path("datasets/demo"), "weights": args.weights == Path("weights/demo")}
    if args.preset == "demo" and not demos["data"]:
        Prepared(args.data)                                # refuses a misspelt folder, where demo data would be drawn
    if not args.weights.is_dir() and not (args.preset == "demo" and demos["weights"]):
        raise UserError(f"--weights {args.weights}: no such folder; give the folder that holds swin/, bert/ and "
                        "mistral/" + ", or an empty folder for the demo's new weights" * (args.preset == "demo"))
    made = (demos["weights"] or (args.weights / demo.MARK).is_file()
            or (args.weights / "mistral" / "model.safetensors").is_file())
    if args.preset == "demo" and not made and any(args.weights.iterdir()):
        raise UserError(f"--weights {args.weights}: is not empty, but lacks the demo's mistral/model.safetensors; give "
                        "an empty folder for the demo's weights, or --preset iu_xray or mimic_cxr for published "
                        "weights")

    lock = Lock(args.run)
    remove_leftovers(args.run)
    return lock, demo.prepare(args.data, args.weights, args.seed, timetable) if args.preset == "demo" else None


def train(args, processes):
    """Runs the stages that the command line asks for, one after the other."""
    say = tqdm.write if processes.rank == 0 else lambda text: None
    if args.shard and processes.world == 1:
        raise UserError("--shard: splits the language model over several processes, but there is only one; start "
                        "several with torchrun, or leave --shard out")
    if args.shard:
        fsdp()                                             # fails now, not after stage 1, if torch is too old
    if args.shard and args.samples:
        say("--shard: no process holds the whole language model, so validations of stage 2 print no reports "
            "(--samples)")
    say(threads_told(args.threads))
    timetable = Timetable(expected_parts(args), say)
    lock, writing = processes.lead_first(lambda: prepare_run(args, timetable)) or (None, None)

    if processes.device.type == "cuda" and args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False     # a debugging aid that costs time

    prepared = Prepared(args.data)
    if args.stage != 2:
        train_stage(Stage1, of_stage(args, 1), processes, prepared, timetable, say)
        processes.barrier()
    processes.lead_first(lambda: demo.wait_for(writing, args.weights))
    if args.stage != 1:
        train_stage(Stage2, of_stage(args, 2), processes, prepared, timetable, say)
        processes.barrier()
    say(next_commands(args))
    if lock:
        lock.close()


def train_stage(stage_class, args, processes, prepared, timetable, say):
    """Runs one stage, unless it is finished already; `args` holds the settings of this stage alone."""
    plan = Plan(stage_class.view_counts(prepared.split("train")), processes, args.batch_size, args.accumulate,
                args.epochs, args.max_steps, args.seed, args.validate_every)
    settings, counters = settings_of(stage_class, args, processes, prepared), None

    if processes.rank == 0:
        if args.fresh:
            drop_states(args.run / "state", stage_class.name)
            (args.run / stage_class.checkpoint).unlink(missing_ok=True)
        counters = finished(args.run, stage_class, plan, settings, say)
    counters = processes.gather_objects(counters)[0]
    if counters:
        say(f"{stage_class.name} is finished already\n" + summary(stage_class, plan, counters, args))
        return

    torch.manual_seed(args.seed)
    timetable.begin(stage_class.name)
    features = args.run / ".features.tmp"
    try:
        Run(stage_class(args, processes, prepared), plan, args, processes, settings, timetable, say, features).fit()
    finally:
        if processes.rank == 0:
            features.unlink(missing_ok=True)               # the other processes keep their mapping
    timetable.end()


def main(argv=None):
    """Runs a command line → its exit code."""
    plain_output()
    processes, args = Processes(), None
    try:
        args = arguments(argv, __doc__)
        if args.threads:
            torch.set_num_threads(args.threads)
        if not args.dry_run:
            train(args, processes)
        elif processes.rank == 0:
            print(dry_run(args, processes))
    except Exception as error:
        last = last_words(error, args and args.run, processes)
        if last is None:
            raise
        message, code = last
        if processes.fails_first():
            print(message, file=sys.stderr, flush=True)
        return code
    processes.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
