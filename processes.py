"""One process or several: what the scripts need of torch.distributed, as torchrun sets it up.

A batch is planned for all processes together and each takes its `Share`; nothing else knows how many there are.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


class Processes:
    """torch.distributed as torchrun set it up, or one process alone."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))

    def close(self):
        if self.world > 1:
            dist.destroy_process_group()

    def barrier(self):
        if self.world > 1:
            dist.barrier()

    def sum(self, *values):
        """Sums of numbers over all processes."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device if self.device.type == "cuda" else "cpu")
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather_objects(self, value):
        """The value of every process, in the order of their ranks."""
        values = [None] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values if self.world > 1 else [value]


class Gather(torch.autograd.Function):
    """(b, d) of every process → (world, b, d), with gradient: what each process's loss owes to ours comes back to us."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather(x, shares):
    """Rows of all processes, (Σ shares, d); this process holds shares[rank] of them (or one stand-in for none)."""
    if len(shares) == 1:
        return x
    longest = max(shares)
    padded = torch.cat([x[:shares[dist.get_rank()]], x.new_zeros(longest - shares[dist.get_rank()], *x.shape[1:])])
    every = Gather.apply(padded + 0 * x.sum())      # a stand-in row stays in the graph, with no weight
    return torch.cat([part[:share] for part, share in zip(every, shares)])


class Share:
    """One process's part of a planned batch. One without a study of its own takes the first with weight 0, so that
    every process runs the same collectives."""

    def __init__(self, batch, processes):
        parts = [batch[rank::processes.world] for rank in range(processes.world)]
        self.sizes = [len(part) for part in parts]
        self.weight = float(bool(parts[processes.rank]))
        self.numbers = parts[processes.rank] or batch[:1]
