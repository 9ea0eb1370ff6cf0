"""One process or several: what the scripts need of torch.distributed, as torchrun sets it up.

A batch is planned for all processes together, and each process takes its `Share`; the rest of the program does not
depend on the number of processes.
"""

import errno
import os
import signal
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data.files import UserError
from data.workers import end_with_parent


class Processes:
    """The process group that torchrun set up, or one process alone."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.turns = 0
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            # The store outlives a failed process, so it can tell which process failed first.
            self.store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=5),
                                    store=dist.PrefixStore("group", self.store), rank=self.rank, world_size=self.world)

    def close(self):
        """Ends the group after a successful run: all processes together, since gloo of torch 2.6 may hang otherwise."""
        if self.world > 1:
            if self.rank == 0:
                self.store.set("closing", "")
            else:
                self.store.wait(["closing"], timedelta(days=1))          # the first process may still have long work
            dist.barrier()
            dist.destroy_process_group()

    def barrier(self):
        if self.world > 1:
            dist.barrier()

    def lead_first(self, work):
        """Runs work() on the first process and returns its result there; the other processes wait, and get None."""
        self.turns += 1                                     # every wait needs a new key in the store
        if self.rank > 0:
            return self.store.wait([f"lead {self.turns}"], timedelta(days=1))
        result = work()
        if self.world > 1:
            self.store.set(f"lead {self.turns}", "done")
        return result

    def fails_first(self):
        """Whether this process is the first to fail; only the first one prints its error."""
        try:
            return self.world == 1 or self.store.add("failures", 1) == 1
        except dist.DistError:          # the store's process has ended, so this one is not the first
            return False

    def lost(self, error):
        """Whether an error means that another process has ended; NCCL has a class for this error, gloo only a text."""
        return self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def sum(self, **values):
        """{name: the value summed over all processes}, the same on every process."""
        total = torch.tensor([float(value) for value in values.values()], dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return dict(zip(values, total.tolist()))

    def gather_objects(self, value):
        """The value of every process, in the order of their ranks."""
        values = [None] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values if self.world > 1 else [value]


def distributed(module, processes):
    """The module in DDP, which averages its gradients. All processes start equal, from the same files and seed."""
    if processes.world == 1:
        return module
    warnings.filterwarnings("ignore", ".*broadcast_buffers.*")
    # Without find_unused_parameters, DDP rearranges its buckets after the first step. With three or more processes a
    # resumed run would then add gradients in another order than an uninterrupted one.
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(     # else DDP broadcasts them at the start
        module, frozen + [name for name, _ in module.named_buffers()])
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


class Gather(torch.autograd.Function):
    """(b, d) of every process → (world, b, d). Backward sums all processes' gradients for this process's rows."""

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


def gather(x, sizes):
    """The rows `x` of all processes, (Σ sizes, d). This process has sizes[rank] rows, or one unused row if that is
    0."""
    if len(sizes) == 1:
        return x
    size = sizes[dist.get_rank()]
    padded = torch.cat([x[:size], x.new_zeros(max(sizes) - size, *x.shape[1:])])
    parts = Gather.apply(padded + 0 * x.sum())      # keeps an unused row in the graph, with gradient 0
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


class Share:
    """One process's part of a planned `batch`, which lists the study numbers of all processes.

    numbers   the numbers of this process's studies
    sizes     the number of studies of each process
    weight    1, or 0 for a process without a study in this batch: it runs the batch's first study, since all processes
              must take part in the same collective operations, and the result does not count
    """

    def __init__(self, batch, processes, epoch=0):
        parts = [batch[rank::processes.world] for rank in range(processes.world)]
        self.batch, self.epoch = batch, epoch
        self.sizes = [len(part) for part in parts]
        self.weight = float(bool(parts[processes.rank]))
        self.numbers = parts[processes.rank] or batch[:1]


class Stopped(Exception):
    """The run ends early, with a reason and an exit code."""

    def __init__(self, reason, code=1):
        super().__init__(reason)
        self.code = code


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def last_words(error, run, processes):
    """(message, exit code) of an error that the user can act on; None for an error of the program itself."""
    if isinstance(error, UserError):
        # An error in a loader process arrives as a traceback, whose last line is the message
        return str(error).strip().splitlines()[-1].removeprefix("data.files.UserError: "), 2
    if isinstance(error, Stopped):
        return str(error), error.code
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{run}: {error.strerror}; the files already written are intact: make room and run the command again", 1
    if isinstance(error, RuntimeError) and processes.lost(error):
        return (f"process {processes.rank}: another process ended or was killed; the saved states are intact: "
                "run the command again"), 1
    return None


class StopSignal:
    """A context that notes SIGTERM or Ctrl-C in `number`, for the end of the step; torchrun may send several signals.

    The earlier handlers come back at its end, except when one of several processes fails: torchrun then sends SIGTERM,
    and the process must still print its error.
    """

    def __init__(self, processes):
        self.several, self.number = processes.world > 1, 0

    def __enter__(self):
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, _):
        self.number = self.number or number             # after Ctrl-C, torchrun sends SIGTERM too

    def __exit__(self, kind, error, trace):
        if self.several and error is not None:
            return
        for number, handler in self.before.items():
            signal.signal(number, handler)


def start_loader(_):
    """Prepares a loader process: it ignores signals, since the run ends it, and it ends if the run is killed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
