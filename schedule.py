"""What happens when: the batches of a run, its learning rate, and its optimiser.

All are functions of the settings alone.
"""

import math
from functools import lru_cache

import torch

from data.dataset import plan_epoch
from muon import Muon
from processes import Share


class Plan:
    """Every batch of a run, as a pure function of the seed:
    `step(i)` is a list of `accumulate` batches for all processes."""

    def __init__(self, stage, prepared, args, processes):
        studies = prepared.split("train")
        # A visit of stage 1 shows one view, so all its visits fit into one batch.
        self.view_counts = [1 if stage.number == 1 else len(study["views"]) for study in studies]
        self.batch_size = args.batch_size[stage.number - 1] * processes.world
        self.accumulate, self.seed = args.accumulate, args.seed
        self.steps_per_epoch = math.ceil(len(plan_epoch(self.view_counts, self.batch_size)) / self.accumulate)
        self.steps = min(self.steps_per_epoch * args.epochs[stage.number - 1], args.max_steps or math.inf)
        self.epoch = lru_cache(maxsize=2)(lambda epoch: plan_epoch(self.view_counts, self.batch_size, self.seed, epoch))

    def step(self, step):
        """(epoch, batches of study numbers) of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, self.epoch(epoch)[within * self.accumulate:(within + 1) * self.accumulate]

    def validates(self, step):
        """Whether the val split is looked at after so many steps: at the end of every epoch and of the run."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.steps)

    def visits(self, first, processes):
        """What this process loads from step `first` on: one list of (epoch, study number) a batch."""
        for step in range(first, self.steps):
            epoch, batches = self.step(step)
            for batch in batches:
                yield [(epoch, number) for number in Share(batch, processes).numbers]


def learning_rate(step, steps, peak, warm_up):
    """Linear warm-up over a fraction of the steps, then a cosine to 0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def optimizer_for(parameters, lr, weight_decay, muon=False):
    """AdamW on {name: parameter}; weight decay on matrices only, so not on biases, norms and the temperature.

    For networks that start at random (the demo's), `muon` moves the matrices of all but stage 1's text side by Muon,
    and no tables.
    """
    groups = {}
    for name, p in parameters.items():
        matrix = p.ndim > 1
        by_muon = (muon and matrix and "relative_position" not in name
                   and not name.endswith((".queries", "embed_tokens.weight", "lm_head.weight"))
                   and not name.startswith(("bert.", "text_projection.")))
        groups.setdefault((matrix, by_muon), []).append(p)
    groups = [{"params": members, "weight_decay": weight_decay if matrix else 0.0, "muon": by_muon}
              for (matrix, by_muon), members in groups.items()]
    return Muon(groups, lr=lr) if muon else torch.optim.AdamW(groups, lr=lr)
