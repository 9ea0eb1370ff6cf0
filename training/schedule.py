"""What happens when: the batches of a run, its learning rate, and its optimiser.

All are functions of the settings alone.
"""

import math
from functools import lru_cache

from data.dataset import plan_epoch
from training.processes import Share


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
