"""Trains TRRG.

    python train.py                                                    the demo: its data, base weights, both stages
    torchrun --nproc_per_node 4 train.py --stage 1                     the same on 4 processes (GPUs, or gloo on CPUs)
    torchrun --nproc_per_node 4 train.py --preset mimic_cxr --stage 1  the paper's settings
    torchrun --nproc_per_node 4 train.py --preset mimic_cxr --stage 2
    python train.py --preset mimic_cxr --dry-run                       parts, shapes, memory and time,
                                                                       without any weights

Running a command again goes on where it stopped; SIGTERM and Ctrl-C save first. One process and several are the same
code path: a batch is planned for all processes together, each takes its share, and every loss is divided by what the
whole batch holds.
"""

import errno
import math
import os
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

# Read as torch is imported: DDP remarks, past Python, that it need not look for unused parameters (see `distributed`).
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from data.dataset import Prepared, Visits, collate, plan_epoch
from data.files import UserError
from data.reports import clean_report
from evaluation.writing import write_reports
from metrics import score
from training import demo
from training.log import Clock, Log, NoLog, module_table, summary
from training.optimizer import optimizer_for
from training.options import arguments
from training.processes import Processes, Share, Stopped, StopSignal, start_loader
from training.schedule import Plan, learning_rate
from training.sharding import fsdp
from training.stages import Stage1, Stage2
from training.state import (
    Lock,
    data_digest,
    differences,
    drop_states,
    load_state,
    newest_state,
    remove_leftovers,
    rng_state,
    save_state,
)

MOST_SKIPPED = 3           # steps in a row that may go without an update because something was not finite


# ---------------------------------------------------------------------------------------------------------------------
# The loop, shared by both stages

class Run:
    """One stage from its newest state, or from the start, to its end."""

    def __init__(self, stage, plan, args, processes, prepared, settings, say):
        self.stage, self.plan, self.args, self.processes = stage, plan, args, processes
        self.settings, self.say = settings, say
        self.model, self.device, self.lead = stage.model.train(), processes.device, processes.rank == 0
        self.prepared, crop = prepared, self.model.swin.config.image_size
        self.train = Visits(prepared, prepared.split("train"), stage.number, crop, args.seed, args.sentences)
        self.held_out = Visits(prepared, prepared.split("val"), stage.number, crop, sentences=args.sentences)
        self.model.pictures = {"size": prepared.size, "crop": crop}
        self.model.decoding = {"beams": 3, "max_new_tokens": args.max_new_tokens,
                               "repetition_penalty": args.repetition_penalty}

        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        kind, lr = args.optimizer[stage.number - 1], args.lr[stage.number - 1]
        self.optimizer = optimizer_for(self.parameters, lr, args.weight_decay, muon=kind == "muon")
        self.wrapped = distributed(stage.trained, processes)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=args.precision == "bf16")
        torch.manual_seed(args.seed + processes.rank)
        self.step, self.stopping = 0, False
        self.facts = {"best": None, "validated": 0, "skipped": 0, "left_out": 0, "cut": 0, "studies": 0, "seconds": 0.0}
        self.saved = self.step, 0
        self.go_on()

    def fit(self):
        """The whole run. Raises Stopped where it ends early."""
        self.say(module_table(self.model))
        log = self.args.run / "log.jsonl"
        self.log = (Log(log, self.stage.name, self.step, self.facts["validated"], self.plan.steps)
                    if self.lead else NoLog())
        self.begun = time.perf_counter() - self.facts["seconds"]
        with StopSignal(self.processes) as self.signal:
            self.batches = self.loader()
            try:
                self.steps()
            finally:
                shut(self.batches)
                self.log.close()
        if self.facts["best"] is None:
            raise Stopped(f"{self.stage.name}: no validation gave a finite figure, so there is no checkpoint; "
                          "start over with --fresh and a lower --lr")
        self.say(summary(self.stage, self.plan, self.facts, self.args))

    def steps(self):
        """Steps, states and validations from where the run stands to its end. Raises Stopped where it ends early."""
        while True:
            due = self.plan.validates(self.step) and self.facts["validated"] < self.step and not self.stopping
            if due or self.stopping or self.step % self.args.save_every == 0:
                self.save()         # before a validation too, which may take hours
            if due:
                self.validate()
                self.save()
            if self.stopping:
                raise Stopped(f"{self.stage.name}: told to stop after step {self.step} of {self.plan.steps}; the same "
                              "command goes on from there", code=128 + (self.signal.number or 15))
            if self.step == self.plan.steps:
                break
            self.train_step()

    def train_step(self):
        """One optimiser step on `accumulate` batches of all processes."""
        clock, stage, facts = Clock(self.device), self.stage, self.facts
        epoch, planned = self.plan.step(self.step)
        shares = [Share(batch, self.processes) for batch in planned]
        inputs, cuts = zip(*(self.read(next(self.batches)) for _ in shares))
        totals = self.processes.sum(*map(sum, zip(*map(stage.counts, inputs, shares))))
        clock.lap("data")

        terms = 0
        for number, (batch, share) in enumerate(zip(inputs, shares), start=1):
            with nullcontext() if number == len(shares) or self.processes.world == 1 else self.wrapped.no_sync():
                with self.autocast:
                    of_batch = stage.terms(self.wrapped, batch, share)
                clock.lap("forward")
                # DDP takes the mean over processes where the sum is wanted
                (stage.loss(of_batch, totals) * self.processes.world).backward()
                clock.lap("backward")
            terms = terms + torch.stack(of_batch).detach().double()
        cut = sum(cut for cut, share in zip(cuts, shares) if share.weight)
        *terms, cut, told = self.processes.sum(*terms.tolist(), cut, self.signal.number > 0)
        loss = stage.loss(torch.tensor(terms), totals).item()
        norm = clip_grad_norm_(self.parameters.values(), self.args.clip).item()
        lr = learning_rate(self.step, self.plan.steps, self.args.lr[stage.number - 1], self.args.warm_up)
        if math.isfinite(loss) and math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            facts["skipped"] = 0
        else:
            self.skip(loss, norm, [self.train.studies[i]["id"] for batch in planned for i in batch])
        self.optimizer.zero_grad(set_to_none=True)
        clock.lap("optimiser")

        self.step, self.stopping, studies = self.step + 1, told > 0, sum(map(len, planned))
        facts["cut"], facts["studies"] = facts["cut"] + int(cut), facts["studies"] + studies
        means = {name: term / total for name, term, total in zip(stage.term_names, terms, totals)}
        self.log.step({"step": self.step, "epoch": epoch, "loss": loss, **means, **stage.figures(), "lr": lr,
                       "gradient_norm": norm, "cut": int(cut)}, clock, studies, self.device)

    def read(self, batch):
        """What the stage's `inputs` makes of collated visits.

        Raises UserError, naming the study whose text is at fault.
        """
        try:
            return self.stage.inputs(batch, self.device)
        except ValueError:
            for i, study in enumerate(batch["ids"]):
                try:
                    self.stage.inputs({name: values[i:i + 1] for name, values in batch.items()}, self.device)
                except ValueError as error:
                    raise UserError(f"{self.prepared.folder}: the text of the study {study!r} can't be tokenized "
                                    f"({error}); mend it in studies.jsonl") from error
            raise

    def skip(self, loss, norm, ids):
        """A step without an update; a fourth in a row ends the run."""
        facts = self.facts
        facts["skipped"], facts["left_out"] = facts["skipped"] + 1, facts["left_out"] + 1
        what = (f"{self.stage.name}: step {self.step + 1}: loss {loss}, gradient norm {norm}; "
                f"the studies: {', '.join(ids)}")
        if facts["skipped"] > MOST_SKIPPED:
            raise Stopped(f"{what}; not finite {facts['skipped']} times in a row: look at these studies, or start over "
                          "with --fresh and a lower --lr")
        self.say(f"{what}; left out")

    @torch.no_grad()
    def validate(self):
        """Looks at the val split, and keeps the checkpoint where its figure is the best so far."""
        stage, args, processes = self.stage, self.args, self.processes
        self.model.eval()
        views = [1 if stage.number == 1 else len(study["views"]) for study in self.held_out.studies]
        sums = [0.0] * (2 * len(stage.term_names))
        for batch in plan_epoch(views, args.batch_size[stage.number - 1] * processes.world):
            share = Share(batch, processes)
            inputs, _ = self.read(collate([self.held_out[0, i] for i in share.numbers]))
            with self.autocast:
                terms = stage.terms(stage.trained, inputs, share)
            *more, told = processes.sum(*(term.item() for term in terms), *stage.counts(inputs, share),
                                        self.signal.number > 0)
            sums = [a + b for a, b in zip(sums, more)]
            if told:
                self.stopping = True
                break
        else:
            terms, totals = torch.tensor(sums).chunk(2)
            figures = {"loss": stage.loss(terms, totals).item()}
            if stage.number == 2 and args.select != "loss":
                figures |= self.score_reports()
            self.keep(figures, "loss" if stage.number == 1 else args.select)
        self.model.train()

    def score_reports(self):
        """BLEU-4 and CIDEr of reports for `--val-reports` studies, evenly spaced over the val split."""
        studies = self.held_out.studies
        fixed = [studies[i * len(studies) // self.args.val_reports] for i in range(self.args.val_reports)] \
            if self.args.val_reports < len(studies) else studies
        reports = write_reports(self.model, self.prepared, fixed, self.processes, what="validation")
        scores = score([report.text for report, _ in reports], [clean_report(study["report"]) for study in fixed],
                       meteor_data=False)
        return {name: scores[name] for name in ("BLEU-4", "CIDEr")}

    def keep(self, figures, select):
        """Writes the checkpoint if the chosen figure is better than ever before."""
        value, best = figures[select], self.facts["best"]
        better = (math.isfinite(value)
                  and (best is None or (value < best["value"] if select == "loss" else value > best["value"])))
        self.say(f"{self.stage.name}: after step {self.step}, val: "
                 + ", ".join(f"{name} {x:.4f}" for name, x in figures.items())
                 + (", the best so far" if better else ""))
        self.log.write({"step": self.step, "validation": figures})
        if better:
            self.facts["best"] = {"value": value, "step": self.step}
            if self.lead:
                self.stage.save(self.args.run / self.stage.checkpoint, {
                    "pictures": self.model.pictures, "decoding": self.model.decoding, "data": str(self.args.data),
                    "preset": self.args.preset, "step": self.step, "validation": figures})
        self.facts["validated"] = self.step

    def save(self):
        """Writes the state, unless the newest one holds the same."""
        now = self.step, self.facts["validated"]
        if self.saved != now:
            rngs = self.processes.gather_objects(rng_state(self.device))
            self.facts["seconds"] = time.perf_counter() - self.begun
            if self.lead:
                self.log.sync()
                save_state(self.args.run / "state", self.stage.name, self.step, self.parameters, self.optimizer, rngs,
                           {**self.facts, "settings": self.settings})
            self.processes.barrier()
            self.saved = now

    def go_on(self):
        """Puts the newest state back, if there is one. The first process chooses, for it checks the file."""
        found = newest_state(self.args.run / "state", self.stage.name, say=lambda text: None) if self.lead else None
        path, header = self.processes.gather_objects(found)[0]
        if path is None:
            return
        load_state(path, self.parameters, self.optimizer, self.processes.rank, self.device)
        self.step = header["step"]
        self.facts = {key: value for key, value in header["facts"].items() if key != "settings"}
        self.say(f"{self.stage.name}: going on after step {self.step} of {self.plan.steps}")
        self.saved = self.step, self.facts["validated"]

    def loader(self):
        return iter(torch.utils.data.DataLoader(
            self.train, batch_sampler=self.plan.visits(self.step, self.processes), collate_fn=collate,
            num_workers=self.args.workers, worker_init_fn=start_loader, pin_memory=self.device.type == "cuda",
            generator=torch.Generator()))       # one of its own: drawing from the run's would set a resumed run apart


def shut(batches):
    """Ends a loader's processes now. They heed no signal, so one that is left to the interpreter's end holds it up."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def distributed(module, processes):
    """The module, its gradients averaged over all processes; all start equal, from the same files and seed."""
    if processes.world == 1:
        return module
    warnings.filterwarnings("ignore", ".*broadcast_buffers.*")
    # Without find_unused_parameters, DDP lays its buckets out anew after the first step it sees, and three or more
    # processes would then add gradients in another order than the run that was interrupted.
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(     # or it would send them around at the start
        module, frozen + [name for name, _ in module.named_buffers()])
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


# ---------------------------------------------------------------------------------------------------------------------
# From the command line to the runs


def finished(stage, plan, args, settings, say):
    """Whether a stage has nothing left to do. Raises UserError where its state was begun with other settings."""
    if args.fresh:
        drop_states(args.run / "state", stage.name)
        (args.run / stage.checkpoint).unlink(missing_ok=True)
    _, header = newest_state(args.run / "state", stage.name, say)
    if header is None:
        return False
    if other := differences(header["facts"]["settings"], settings):
        raise UserError(f"{args.run}: {stage.name} was begun with other settings: {'; '.join(other)}; "
                        "give the same again, or start over with --fresh")
    if header["step"] < plan.steps or header["facts"]["validated"] < plan.steps:
        return False
    if not (args.run / stage.checkpoint).is_file():
        raise UserError(f"{args.run / stage.checkpoint}: is gone, though its run is finished; start over with --fresh")
    say(f"{stage.name} is finished\n" + summary(stage, plan, header["facts"], args))
    return True


def settings_of(stage, args, processes, prepared):
    """What must be the same again when a run goes on: {option: value}."""
    names = ("seed", "max_steps", "accumulate", "weight_decay", "warm_up", "clip", "precision")
    return {**{f"--{name.replace('_', '-')}": getattr(args, name) for name in names},
            **{f"--{name.replace('_', '-')}": getattr(args, name)[stage.number - 1]
               for name in ("epochs", "batch_size", "lr", "optimizer")},
            "the number of processes": processes.world, "the data set": data_digest(prepared), **stage.settings(args)}


def make_demo(args):
    """Makes what the demo lacks: its data at their own place alone, its weights there or where there is nothing yet.

    Raises UserError elsewhere: a folder of the user's, or a misspelt one, is not to be filled.
    """
    if args.data != Path("datasets/demo"):
        Prepared(args.data)
    made = args.weights == Path("weights/demo") or (args.weights / "mistral" / "model.safetensors").is_file()
    if not made and any(args.weights.glob("*")):
        raise UserError(f"{args.weights}: holds something, but no mistral/model.safetensors of the demo's; "
                        "give a new folder to make it in, or --preset iu_xray or mimic_cxr for published weights")
    demo.prepare(args.data, args.weights, args.seed)


def train(args, processes):
    """Every stage asked for, one after the other."""
    say = tqdm.write if processes.rank == 0 else lambda text: None
    if args.shard and processes.world == 1:
        raise UserError("--shard: there is one process, and nothing to spread over; start several with torchrun, "
                        "or leave it out")
    if args.shard:
        fsdp()                                             # where it can't be had, say so now, not after stage 1
    if args.preset == "demo":
        processes.lead_first(lambda: make_demo(args))
    lock = Lock(args.run) if processes.rank == 0 else None
    if lock:
        remove_leftovers(args.run)
    if processes.device.type == "cuda" and args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False     # it guards against bugs, at the cost of a write
    prepared = Prepared(args.data)
    for stage_class in [Stage1, Stage2] if args.stage is None else [(Stage1, Stage2)[args.stage - 1]]:
        plan = Plan(stage_class, prepared, args, processes)
        settings = settings_of(stage_class, args, processes, prepared)
        done = processes.rank == 0 and finished(stage_class, plan, args, settings, say)
        if not any(processes.gather_objects(done)):
            torch.manual_seed(args.seed)
            Run(stage_class(args, processes), plan, args, processes, prepared, settings, say).fit()
        processes.barrier()
    if lock:
        lock.close()


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(argv=None):
    """Runs a command line → its exit code: 0 done, 2 a mistake of the user, 1 or 128 + signal stopped early."""
    processes, said, code = Processes(), None, 0
    try:
        args = arguments(argv, __doc__)
        if args.dry_run:
            from training import dry_run
            print(dry_run.dry_run(args, processes)) if processes.rank == 0 else None
        else:
            train(args, processes)
    except UserError as error:
        # a loader process's error arrives with its traceback, whose last line is the error
        said, code = str(error).strip().splitlines()[-1].removeprefix("data.files.UserError: "), 2
    except Stopped as error:
        said, code = str(error), error.code
    except FloatingPointError as error:
        said, code = str(error), 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        said, code = (f"{args.run}: {error.strerror}; what was written before is whole: "
                      "make room and run the command again"), 1
    except RuntimeError as error:
        if not processes.lost(error):
            raise
        said, code = (f"process {processes.rank}: lost another one, which ended or was killed; "
                      "what was saved is whole: run the command again"), 1
    if code and processes.fails_first():
        print(said, file=sys.stderr, flush=True)
    if not code:
        processes.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
