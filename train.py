"""Trains TRRG.

    python train.py                                                    the demo: its data, base weights, both stages
    torchrun --nproc_per_node 4 train.py --stage 1                     the same on 4 processes (GPUs, or gloo on CPUs)
    torchrun --nproc_per_node 4 train.py --preset mimic_cxr --stage 1  the paper's settings
    torchrun --nproc_per_node 4 train.py --preset mimic_cxr --stage 2

Running a command again goes on where it stopped. One process and several are the same code path: a batch is planned
for all processes together, each takes its share, and every loss is divided by what the whole batch holds.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import demo
import trrg
from data.dataset import Prepared, Visits, collate, plan_epoch
from data.files import UserError
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert
from model.mistral import Mistral
from model.swin import Swin
from processes import Processes, Share, gather
from state import load_state, newest_state, rng_state, save_state

# Settings a preset fixes; a pair is (stage 1, stage 2). The paper gives batch 8, lr 1e-4, 5 epochs on MIMIC-CXR, 20 on
# IU X-Ray, on 4 GPUs (§3.2); it is silent on everything else.
PAPER = dict(batch_size=(8, 8), lr=(1e-4, 1e-4), queries=32, lora_rank=16, lora_dropout=0.1,
             same_sentence_positives=False, embed_base=False, save_every=500)
PRESETS = {
    "demo": dict(PAPER, epochs=(10, 6), batch_size=(64, 32), lr=(1e-3, 2e-3), queries=16,
                 lora_dropout=0.0, same_sentence_positives=True, report_tokens=120, max_new_tokens=120,
                 embed_base=True, save_every=100),
    "iu_xray": dict(PAPER, epochs=(20, 20), report_tokens=160, max_new_tokens=100),
    "mimic_cxr": dict(PAPER, epochs=(5, 5), report_tokens=256, max_new_tokens=150),
}


def arguments(argv=None):
    pre = argparse.ArgumentParser(add_help=False)
    pre.add_argument("--preset", default="demo", metavar="demo|iu_xray|mimic_cxr", help="settings to start from (default: demo)")
    preset = pre.parse_known_args(argv)[0].preset
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: no such preset; there are {', '.join(PRESETS)}")
    defaults = PRESETS[preset]

    def pair(name):
        return "{} for stage 1, {} for stage 2".format(*defaults[name])

    parser = argparse.ArgumentParser(parents=[pre], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    switch = argparse.BooleanOptionalAction
    run = parser.add_argument_group("what to run")
    run.add_argument("--stage", type=int, choices=(1, 2), help="one stage alone (default: both)")
    run.add_argument("--variant", choices=trrg.VARIANTS, default="trrg", help="rung of Table 2 (default: trrg)")
    run.add_argument("--data", type=Path, default=Path("datasets") / preset, help="prepared data set (default: %(default)s)")
    run.add_argument("--weights", type=Path, default=Path("weights") / preset,
                     help="folder with swin/, bert/, mistral/ in Hugging Face's layout (default: %(default)s)")
    run.add_argument("--run", "--run-dir", type=Path, default=Path("runs") / preset,
                     help="where results go; torchrun mistakes --run for an option of its own: there, say --run-dir (default: %(default)s)")
    run.add_argument("--stage1", type=Path, help="stage-1 checkpoint for stage 2 (default: RUN/stage1.safetensors)")
    run.add_argument("--fresh", action="store_true", help="start over, whatever the run's folder holds")
    run.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")

    method = parser.add_argument_group("the method")
    method.add_argument("--k", type=int, default=3, help="injected clues (default: %(default)s)")
    method.add_argument("--queries", type=int, default=defaults["queries"], help="L, learnable queries (default: %(default)s)")
    method.add_argument("--views", choices=("concat", "mean"), default="concat", help="(default: %(default)s)")
    method.add_argument("--prompts-per-disease", type=int, default=0, help="1 is the paper's form; 0 the whole bank (default: %(default)s)")
    method.add_argument("--clue-threshold", type=float, default=0.0, help="mask lighter clues out (default: %(default)s, none)")
    method.add_argument("--dc-weight", type=float, default=1.0, help="weight of L_DC, Eq. (5) (default: %(default)s)")
    method.add_argument("--lora-rank", type=int, default=defaults["lora_rank"], help="0: literally frozen (default: %(default)s)")
    method.add_argument("--lora-alpha", type=float, default=16, help="(default: %(default)s)")
    method.add_argument("--lora-dropout", type=float, default=defaults["lora_dropout"], help="(default: %(default)s)")
    method.add_argument("--same-sentence-positives", action=switch, default=defaults["same_sentence_positives"],
                        help="equal sentences of a batch are positives")
    method.add_argument("--report-tokens", type=int, default=defaults["report_tokens"],
                        help="longer reports are cut in training, and counted (default: %(default)s)")
    method.add_argument("--max-new-tokens", type=int, default=defaults["max_new_tokens"], help="kept for decoding (default: %(default)s)")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=int, help=f"(default: {pair('epochs')})")
    optim.add_argument("--max-steps", type=int, help="stop after so many optimiser steps (default: all epochs)")
    optim.add_argument("--batch-size", type=int, help=f"per process (default: {pair('batch_size')})")
    optim.add_argument("--accumulate", type=int, default=1, help="batches a step (default: %(default)s)")
    optim.add_argument("--lr", type=float, help=f"(default: {pair('lr')})")
    optim.add_argument("--weight-decay", type=float, default=0.05, help="on matrices only (default: %(default)s)")
    optim.add_argument("--warm-up", type=float, default=0.03, help="fraction of the steps (default: %(default)s)")
    optim.add_argument("--clip", type=float, default=1.0, help="gradient norm (default: %(default)s)")

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 on a GPU (default: %(default)s)")
    machine.add_argument("--checkpointing", action=switch, default=False, help="recompute activations, to save memory")
    machine.add_argument("--workers", type=int, default=0, help="loader processes a process (default: %(default)s)")
    machine.add_argument("--save-every", type=int, default=defaults["save_every"], help="steps between states (default: %(default)s)")
    machine.add_argument("--embed-base", action=switch, default=defaults["embed_base"], help="keep the language model in the checkpoint")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "lr"):
        given = getattr(args, name)
        setattr(args, name, defaults[name] if given is None else (given, given))
    return args


# ---------------------------------------------------------------------------------------------------------------------
# The two stages: what they train, and their step


class Stage1:
    """Alignment of both encoders by Eq. (1), with the negatives of all processes."""

    name, checkpoint = "stage1", "stage1.safetensors"

    def __init__(self, args, processes):
        self.args = args
        self.words = WordPiece.from_pretrained(args.weights / "bert")
        swin, bert = Swin.from_pretrained(args.weights / "swin"), Bert.from_pretrained(args.weights / "bert")
        self.model = trrg.Alignment(swin, bert, trrg.AlignmentConfig(
            d=swin.config.width, same_sentence_positives=args.same_sentence_positives)).to(processes.device)
        swin.checkpoint = args.checkpointing

    def inputs(self, batch, device):
        ids, mask = trrg.encode_words(self.words, batch["texts"], self.model.config.sentence_tokens)
        keys = torch.tensor([text_key(text) for text in batch["texts"]])
        return batch["images"][:, 0].to(device), ids.to(device), mask.to(device), keys.to(device)

    def counts(self, inputs, share):
        return 0, 0

    def loss(self, model, inputs, share, totals, world):
        images, ids, mask, keys = inputs
        v, t = (gather(x.float(), share.sizes) for x in model(images, ids, mask))
        keys = gather(keys[:, None], share.sizes)
        same = keys == keys.T if self.args.same_sentence_positives else None
        tau = self.model.tau
        return trrg.contrastive_loss(v, t, tau, same), {"tau": tau.item()}

    def save(self, path, header):
        trrg.save_alignment(path, self.model, self.words, header)


def text_key(text):
    """63 bits of a text's SHA-256: equal texts, and practically only these, have equal keys on every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Stage2:
    """Instruction tuning by Eq. (5), on the frozen encoders of stage 1."""

    name, checkpoint = "stage2", "ckpt.safetensors"

    def __init__(self, args, processes):
        self.args = args
        path = args.stage1 or args.run / "stage1.safetensors"
        if not path.is_file():
            raise UserError(f"{path}: no stage-1 checkpoint; run `train.py --stage 1` with the same --run first, or give --stage1 FILE")
        alignment = trrg.load(path, device=processes.device)
        if not isinstance(alignment, trrg.Alignment):
            raise UserError(f"{path}: a stage-2 checkpoint; --stage1 wants the file that stage 1 wrote")
        config = trrg.TRRGConfig(
            variant=args.variant, views=args.views, k=args.k, prompts_per_disease=args.prompts_per_disease,
            clue_threshold=args.clue_threshold, queries=args.queries, dc_weight=args.dc_weight, lora_rank=args.lora_rank,
            lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout)
        dtype = torch.bfloat16 if precision(args, processes.device) == torch.bfloat16 else None
        self.base = args.weights / "mistral"
        language_model = Mistral.from_pretrained(self.base, dtype=dtype).to(processes.device)
        language_model.checkpoint = args.checkpointing
        self.model = trrg.on_alignment(alignment, alignment.words, language_model, SentencePiece.from_pretrained(self.base), config)
        self.model.to(processes.device)
        self.cut = 0

    def inputs(self, batch, device):
        ids, labels, cut = self.model.supervise(batch["texts"], self.args.report_tokens)
        self.cut += cut
        return batch["images"].to(device), ids.to(device), labels.to(device)

    def counts(self, inputs, share):
        return int((inputs[2] != -100).sum()) * share.weight, len(inputs[0]) * share.weight

    def loss(self, model, inputs, share, totals, world):
        loss = model(*inputs)
        tokens, studies = totals
        total = trrg.loss_total(loss, self.args.dc_weight, tokens / world, studies / world) * share.weight
        return total, {"ce": loss.ce.item() / max(1, loss.tokens.item()), "dc": loss.dc.mean().item()}

    def save(self, path, header):
        trrg.save(path, self.model, dict(header, base={"folder": str(self.base)}), embed_base=self.args.embed_base)


def precision(args, device):
    return torch.bfloat16 if args.precision == "bf16" or (args.precision == "auto" and device.type == "cuda") else torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# The loop, shared by both stages


def learning_rate(step, steps, peak, warm_up):
    """Linear warm-up over a fraction of the steps, then a cosine to 0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def optimizer_for(parameters, lr, weight_decay):
    """AdamW; weight decay on matrices only, so not on biases, norms and the temperature."""
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}], lr=lr)


def module_table(model):
    """What trains and what is frozen, a line a part."""
    lines = [f"{'part':<22}{'parameters':>14}{'trainable':>14}{'dtype':>10}"]
    for name, part in model.named_children():
        sizes = [(p.numel(), p.requires_grad, p.dtype) for p in part.parameters()]
        if sizes:
            dtypes = "/".join(sorted({str(dtype).removeprefix("torch.") for _, _, dtype in sizes}))
            lines.append(f"{name:<22}{sum(s[0] for s in sizes):>14,}{sum(s[0] for s in sizes if s[1]):>14,}{dtypes:>10}")
    return "\n".join(lines)


class Plan:
    """Every batch of a run, as a pure function of the seed: `step(i)` is a list of `accumulate` batches for all processes."""

    def __init__(self, view_counts, batch_size, accumulate, seed, epochs, max_steps):
        self.view_counts, self.batch_size, self.accumulate, self.seed = view_counts, batch_size, accumulate, seed
        self.steps_per_epoch = math.ceil(len(plan_epoch(view_counts, batch_size)) / accumulate)
        self.steps = self.steps_per_epoch * epochs if max_steps is None else min(max_steps, self.steps_per_epoch * epochs)
        self._epoch, self._batches = None, None

    def step(self, step):
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, plan_epoch(self.view_counts, self.batch_size, self.seed, epoch)
        start = within * self.accumulate
        return epoch, self._batches[start:start + self.accumulate]


def visits_of(plan, first, last, processes):
    """What this process loads for the steps first..last-1: one list of (epoch, study number) a batch."""
    for step in range(first, last):
        epoch, batches = plan.step(step)
        for batch in batches:
            yield [(epoch, number) for number in Share(batch, processes).numbers]


def fit(stage, args, processes, prepared, header):
    """Trains one stage to its end, from its newest state where there is one."""
    number = 0 if stage.name == "stage1" else 1
    lead = processes.rank == 0
    say = tqdm.write if lead else (lambda text: None)
    args.run.mkdir(parents=True, exist_ok=True)

    crop = stage.model.swin.config.image_size
    train = Visits(prepared, prepared.split("train"), number + 1, crop, args.seed)
    held_out = Visits(prepared, prepared.split("val"), number + 1, crop)
    views = [1 if number == 0 else len(study["views"]) for study in train.studies]
    plan = Plan(views, args.batch_size[number] * processes.world, args.accumulate, args.seed, args.epochs[number], args.max_steps)

    model = stage.model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizer_for(parameters.values(), args.lr[number], args.weight_decay)
    say(module_table(model))
    wrapped = DistributedDataParallel(model) if processes.world > 1 else model
    torch.manual_seed(args.seed + processes.rank)

    first, best, skipped = 0, math.inf, 0
    state = newest_state(args.run / "state", stage.name, say)
    if state:
        first, best = state[1]["step"], state[1]["facts"]["best"]
        load_state(state, parameters, optimizer, processes.rank, processes.device)
        say(f"going on at step {first} of {plan.steps}")
    log = Log(args.run / "log.jsonl", stage.name, first) if lead else None

    loader = torch.utils.data.DataLoader(
        train, batch_sampler=list(visits_of(plan, first, plan.steps, processes)), collate_fn=collate,
        num_workers=args.workers, persistent_workers=False)
    batches = iter(loader)
    autocast = torch.autocast(processes.device.type, torch.bfloat16) if precision(args, processes.device) == torch.bfloat16 else nullcontext()
    bar = tqdm(total=plan.steps, initial=first, desc=stage.name, unit="step", disable=not lead)
    for step in range(first, plan.steps):
        clock = Clock(processes.device)
        epoch, planned = plan.step(step)
        shares = [Share(batch, processes) for batch in planned]
        inputs = [stage.inputs(next(batches), processes.device) for _ in shares]
        totals = processes.sum(*(sum(column) for column in zip(*(stage.counts(i, s) for i, s in zip(inputs, shares)))))
        clock.lap("data")

        lr = learning_rate(step, plan.steps, args.lr[number], args.warm_up)
        for group in optimizer.param_groups:
            group["lr"] = lr
        total = 0.0
        for i, (batch, share) in enumerate(zip(inputs, shares)):
            last = i == len(shares) - 1
            with nullcontext() if last or processes.world == 1 else wrapped.no_sync():
                with autocast:
                    loss, figures = stage.loss(wrapped, batch, share, totals, processes.world)
                if number == 0:
                    loss = loss / len(shares)
                clock.lap("forward")
                loss.backward()
                clock.lap("backward")
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), args.clip).item()

        if math.isfinite(norm) and math.isfinite(total):
            optimizer.step()
            skipped = 0
        else:
            skipped += 1
            ids = [train.studies[n]["id"] for batch in planned for n in batch]
            say(f"step {step}: loss {total}, gradient norm {norm}: skipped; the studies were {', '.join(ids)}")
            if skipped > 3:
                raise FloatingPointError(f"step {step}: not finite {skipped} times in a row; the newest state is sound; "
                                         "lower --lr, or look at the studies named above")
        optimizer.zero_grad(set_to_none=True)
        clock.lap("optimiser")

        (total,) = processes.sum(total / processes.world)
        done = step + 1
        if lead:
            studies = sum(map(len, planned))
            row = log.step(done, epoch, total, lr, norm, studies, clock, figures, processes.device)
            bar.set_postfix(loss=f"{total:.3f}", lr=f"{lr:.1e}", per_s=f"{row['studies_per_s']:.0f}", gb=f"{row['memory_gb']:.1f}", refresh=False)
            bar.update()
        if done % plan.steps_per_epoch == 0 or done == plan.steps:
            loss = validate(stage, wrapped, held_out, args, processes, autocast)
            say(f"{stage.name}: epoch {epoch + 1}, validation loss {loss:.4f}" + (" (best so far)" if loss < best else ""))
            if lead:
                log.write({"stage": stage.name, "step": done, "epoch": epoch, "validation_loss": loss})
            if loss < best:
                best = loss
                if lead:
                    stage.save(args.run / stage.checkpoint, dict(header, step=done, validation_loss=loss))
        if done % args.save_every == 0 or done == plan.steps:
            rngs = processes.gather_objects(rng_state(processes.device))
            if lead:
                save_state(args.run / "state", stage.name, done, parameters, optimizer, rngs, {"best": best})
            processes.barrier()
    bar.close()


@torch.no_grad()
def validate(stage, model, held_out, args, processes, autocast):
    """The stage's own loss on the val split, mean over its batches' studies (stage 1) or tokens and studies (stage 2)."""
    model = getattr(model, "module", model).eval()
    number = 0 if stage.name == "stage1" else 1
    views = [1 if number == 0 else len(study["views"]) for study in held_out.studies]
    sums = [0.0] * 4
    for batch in plan_epoch(views, args.batch_size[number] * processes.world)[processes.rank::processes.world]:
        visits = collate([held_out[0, n] for n in batch])
        inputs = stage.inputs(visits, processes.device)
        with autocast:
            if number == 0:
                v, t = model(*inputs[:3])
                loss = trrg.contrastive_loss(v.float(), t.float(), model.tau)
                sums[0] += loss.item() * len(batch)
                sums[1] += len(batch)
            else:
                loss = model(*inputs)
                sums = [a + b for a, b in zip(sums, (loss.ce.item(), loss.tokens.item(), loss.dc.sum().item(), len(batch)))]
    sums = processes.sum(*sums)
    model.train()
    if number == 0:
        return sums[0] / sums[1]
    return sums[0] / sums[1] + args.dc_weight * sums[2] / sums[3]


class Clock:
    """Where the time of a step goes; on a GPU it waits for the queue, so that each part is charged its own."""

    def __init__(self, device):
        self.device, self.laps, self.last = device, {}, time.perf_counter()

    def lap(self, name):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


class Log:
    """log.jsonl: one line a step. Going on, the lines after the state that is gone on from are dropped."""

    def __init__(self, path, stage, first):
        self.path, self.stage = path, stage
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= first]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, row):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def step(self, step, epoch, loss, lr, norm, studies, clock, figures, device):
        seconds = {name: round(value, 4) for name, value in clock.laps.items()}
        memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak_memory_gb()
        row = {"stage": self.stage, "step": step, "epoch": epoch, "loss": loss, **figures, "lr": lr, "gradient_norm": norm,
               "studies_per_s": round(studies / sum(clock.laps.values()), 2), "memory_gb": round(memory, 3), "seconds": seconds}
        self.write(row)
        return row


def peak_memory_gb():
    import resource   # not on Windows, where there is no torchrun with gloo either
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(argv=None):
    args = arguments(argv)
    processes = Processes()
    if processes.rank == 0 and args.preset == "demo":
        demo.prepare(args.data, args.weights, args.seed)
    processes.barrier()
    prepared = Prepared(args.data)
    for stage_class in [Stage1, Stage2] if args.stage is None else [(Stage1, Stage2)[args.stage - 1]]:
        torch.manual_seed(args.seed)
        stage = stage_class(args, processes)
        header = {"pictures": {"size": prepared.size, "crop": stage.model.swin.config.image_size}, "data": str(args.data), "preset": args.preset,
                  "decoding": {"beams": 3, "max_new_tokens": args.max_new_tokens}}
        fit(stage, args, processes, prepared, header)
        processes.barrier()
    processes.close()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
