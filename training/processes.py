"""One process or several: what the scripts need of torch.distributed, as torchrun sets it up.

A batch is planned for all processes together and each takes its `Share`; nothing else knows how many there are.
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
    """torch.distributed as torchrun set it up, or one process alone."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.turns = 0
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            # The store outlives a process that fails, so it can tell who failed first.
            self.store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=5),
                                    store=dist.PrefixStore("group", self.store), rank=self.rank, world_size=self.world)

    def close(self):
        """At a good end: all together, since gloo of torch 2.6 may hang where one closes while others are further."""
        if self.world > 1:
            if self.rank == 0:
                self.store.set("closing", "")
            else:
                self.store.wait(["closing"], timedelta(days=1))          # the first may have long work of its own
            dist.barrier()
            dist.destroy_process_group()

    def barrier(self):
        if self.world > 1:
            dist.barrier()

    def lead_first(self, work):
        """work() on the first process, and its result there; the others wait for it, for as long as it takes."""
        self.turns += 1                                     # a key of the store is for one wait
        if self.rank > 0:
            return self.store.wait([f"lead {self.turns}"], timedelta(days=1))
        result = work()
        if self.world > 1:
            self.store.set(f"lead {self.turns}", "done")
        return result

    def fails_first(self):
        """Whether this process is the first to fail, and so the one that has to say why."""
        try:
            return self.world == 1 or self.store.add("failures", 1) == 1
        except dist.DistError:          # the store's own process has gone: not the first, then
            return False

    def lost(self, error):
        """Whether an error means that another process has gone; NCCL has a class for it, gloo only words."""
        return self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def sum(self, **values):
        """{name: the sum of this number over all processes}, the same on each."""
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


class Gather(torch.autograd.Function):
    """(b, d) of every process → (world, b, d). Backward sums the gradients that all processes have for our rows."""

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
    """Rows of all processes, (Σ sizes, d); this process holds sizes[rank] of them (or one stand-in for none)."""
    if len(sizes) == 1:
        return x
    size = sizes[dist.get_rank()]
    padded = torch.cat([x[:size], x.new_zeros(max(sizes) - size, *x.shape[1:])])
    parts = Gather.apply(padded + 0 * x.sum())      # a stand-in row stays in the graph, with no weight
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


class Share:
    """One process's part of a planned batch, `batch`, which lists the study numbers of all processes.

    numbers   the studies that this process visits in `epoch`
    sizes     how many of the batch's studies each process has
    weight    1; 0 where this process has none left: it visits the first study, so that every process runs the same
              collectives, and the result does not count
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
    """(what to say of an error, the exit code); None for one that is nobody's mistake but the program's."""
    if isinstance(error, UserError):
        # A loader process's error arrives with its traceback, whose last line is the error
        return str(error).strip().splitlines()[-1].removeprefix("data.files.UserError: "), 2
    if isinstance(error, Stopped):
        return str(error), error.code
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{run}: {error.strerror}; what was written before is whole: make room and run the command again", 1
    if isinstance(error, RuntimeError) and processes.lost(error):
        return (f"process {processes.rank}: lost another one, which ended or was killed; what was saved is whole: "
                "run the command again"), 1
    return None


class StopSignal:
    """SIGTERM or Ctrl-C, noted for the end of the step; torchrun may send it more than once.

    As a context: the handlers from before come back at its end. Where one of several processes leaves it by an error,
    they do not: torchrun's SIGTERM is on its way to it, and it has to say first what went wrong.
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
    """Loader processes leave it to the run when to end, and end with it where it is killed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
