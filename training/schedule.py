"""The plan of a run: its batches, their loading, and the learning rate; all of them follow from the settings alone."""

import math
from functools import lru_cache

import torch

from data.dataset import collate, plan_epoch
from training.processes import Share, start_loader


class Plan:
    """Every batch of a run, as a pure function of the seed.

    `view_counts`: number of views that each study shows; `batch_size`: studies per process; `max_steps`: None for all
    epochs; `validate_every`: epochs from one validation to the next.
    """

    def __init__(self, view_counts, processes, batch_size, accumulate, epochs, max_steps, seed, validate_every=1):
        self.view_counts, self.processes, self.seed = tuple(view_counts), processes, seed
        self.batch_size, self.accumulate = batch_size * processes.world, accumulate         # of all processes together
        self.steps_per_epoch = math.ceil(len(plan_epoch(view_counts, self.batch_size)) / accumulate)
        self.steps = min(self.steps_per_epoch * epochs, max_steps or math.inf)
        self.steps_to_validation = self.steps_per_epoch * validate_every
        self.batches = lru_cache(maxsize=2)(self.batches)            # the loader may be in the next epoch already

    def batches(self, epoch):
        """All batches of an epoch, for all processes together: lists of study numbers."""
        return plan_epoch(self.view_counts, self.batch_size, self.seed, epoch)

    def shares(self, step):
        """This process's `Share` of each of the `accumulate` batches of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        batches = self.batches(epoch)[within * self.accumulate:(within + 1) * self.accumulate]
        return [Share(batch, self.processes, epoch) for batch in batches]

    def validates(self, step):
        """Whether a validation follows after `step` steps; after the last step one always does."""
        return step > 0 and (step % self.steps_to_validation == 0 or step == self.steps)


def loaded(plan, visits, first, workers, device):
    """For every step from `first` on, this process's [(share, collated visits)], one per batch of the step."""
    steps = range(first, plan.steps)
    keys = ([(share.epoch, number) for number in share.numbers] for step in steps for share in plan.shares(step))
    batches = iter(torch.utils.data.DataLoader(
        visits, batch_sampler=keys, collate_fn=collate, num_workers=workers, worker_init_fn=start_loader,
        pin_memory=device.type == "cuda",
        generator=torch.Generator()))           # not the global one, whose state a resumed run needs unchanged
    try:
        for step in steps:
            yield [(share, next(batches)) for share in plan.shares(step)]
    finally:
        shut(batches)


def shut(batches):
    """Ends a loader's processes now. They ignore signals, so a forgotten one would keep Python from exiting."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def learning_rate(step, steps, peak, warm_up):
    """The learning rate of a step: linear warm-up to `peak` over the fraction `warm_up` of the steps, then cosine to
    0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
