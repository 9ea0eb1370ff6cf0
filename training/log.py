"""Output of a run: the table of parts, a progress bar, log.jsonl, and a summary at the end."""

import json
import os
import shlex
import time

import torch
from tqdm import tqdm

from data.files import whole_file


def module_table(model):
    """The table of a model's parts: parameters, trainable parameters, size and number type, one line per part."""
    lines, sums = [f"{'part':<22}{'parameters':>16}{'trainable':>16}{'megabytes':>12}  {'type'}"], [0, 0, 0]
    for name, part in model.named_children():
        tensors = [*part.parameters(), *part.buffers()]
        if not tensors:
            continue
        row = [sum(p.numel() for p in part.parameters()), sum(p.numel() for p in part.parameters() if p.requires_grad),
               sum(t.numel() * t.element_size() for t in tensors)]
        types = "/".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))
        lines.append(f"{name:<22}{row[0]:>16,}{row[1]:>16,}{row[2] / 1e6:>12,.1f}  {types}")
        sums = [a + b for a, b in zip(sums, row)]
    return "\n".join([*lines, f"{'all':<22}{sums[0]:>16,}{sums[1]:>16,}{sums[2] / 1e6:>12,.1f}"])


class Clock:
    """The seconds of each part of a step, in `laps`. On a GPU a lap ends when all queued work is done, so that each
    part is charged with its own time.
    """

    def __init__(self, device):
        self.device, self.laps, self.last = device, {}, time.perf_counter()

    def lap(self, name):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


class Log:
    """The progress bar and log.jsonl: a line per step, and for each validation a line with its figures and a line per
    sample report.

    A run that resumes at step `first` drops this stage's later lines, and a line that was cut off by a kill.
    """

    def __init__(self, path, stage, first, validated, steps):
        self.stage = stage
        # The lines of a validation stand after the line of its step; a validation that is repeated writes them again
        rows = [row for row in read_rows(path) if row["stage"] != stage
                or row["step"] <= (first if "loss" in row else validated)]
        with whole_file(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.file = open(path, "a", encoding="utf-8")
        self.bar = tqdm(total=steps, initial=first, desc=stage, unit="step")

    def write(self, row):
        self.file.write(json.dumps({"stage": self.stage, **row}) + "\n")
        self.file.flush()

    def step(self, row, clock, studies, device):
        """Logs a step. row: step, epoch, loss, its terms, lr, gradient_norm; speed, memory and time are added here."""
        seconds = sum(clock.laps.values())
        rate, memory = studies / seconds, peak_memory(device) / 1e9
        self.write({**row, "studies_per_s": round(rate, 2), "memory_gb": round(memory, 3),
                    "seconds": {name: round(value, 4) for name, value in clock.laps.items()}})
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}", studies_per_s=f"{rate:.1f}",
                             gb=f"{memory:.1f}", refresh=False)
        self.bar.update()

    def sync(self):
        """Flushes to the disk. Called before a state is saved, so that the log never ends before the newest state."""
        os.fsync(self.file.fileno())

    def close(self):
        self.bar.close()
        self.file.close()


def read_rows(path):
    """The complete rows of a log.jsonl; an empty list where there is no file."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:              # cut off by a kill, or damaged
            continue
        if isinstance(row, dict) and {"stage", "step"} <= row.keys():
            rows.append(row)
    return rows


def threads_told(chosen):
    """A line that tells how many CPU threads each process uses, and why; `chosen`: the value of --threads."""
    used = torch.get_num_threads()
    told = f"{used} CPU thread{'s' * (used != 1)} per process (--threads)"
    if chosen == 1:
        return f"{told}: a second thread gains little with small networks, and costs much beside another program"
    return told if chosen else f"{told}: PyTorch's own choice"


def peak_memory(device):
    """Peak memory in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where there is no torchrun with gloo either
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(stage, plan, counters, args):
    """The text at the end of a stage: its length, reports cut, steps skipped, the best figure, and its files."""
    best = counters["best"]
    cut = f", {counters['cut']:,} reports were cut to {args.report_tokens} tokens" if counters["cut"] else ""
    left_out = (f", {counters['left_out']} steps skipped, since the loss or gradient was not finite"
                if counters["left_out"] else "")
    return (f"{stage.name}: {plan.steps:,} steps, {counters['studies']:,} studies, {counters['seconds'] / 3600:.2f} h"
            f"{cut}{left_out}\n"
            f"  best {args.select if stage.number == 2 else 'loss'} on val: {best['value']:.4f} "
            f"after step {best['step']:,}\n"
            f"  {args.run / stage.checkpoint}, {args.run / 'log.jsonl'}, {args.run / 'state'}")


def sample_text(sample):
    """The current report of a val study beside its reference, as printed."""
    clues = "; ".join(f"{weight:.0%} {prompt}" for prompt, weight in sample["clues"])
    return (f"  {sample['id']}\n    report     {sample['report'] or '(empty)'}\n    reference  {sample['reference']}"
            + (f"\n    clues      {clues}" if clues else ""))


def next_commands(args):
    """The commands that evaluate the new checkpoint, ready to be pasted."""
    if args.stage == 1:
        checkpoint = shlex.quote(str(args.run / "stage1.safetensors"))
        return f"next:\n  python evaluate.py --ckpt {checkpoint}"
    checkpoint = shlex.quote(str(args.run / "ckpt.safetensors"))
    return "\n".join(["next:", f"  python evaluate.py --ckpt {checkpoint}",
                      f"  python evaluate.py --ckpt {checkpoint} --serve"])
