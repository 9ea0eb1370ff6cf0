"""NCCL wants the same collectives in the same order from every process, or all of them wait for ever.

Recorded on gloo: every call of torch.distributed and every bucket of gradients that DDP sends, with its size.
"""

import os
import signal
from pathlib import Path

import pytest

from tests import runs

CALLS = ("all_reduce", "all_gather", "all_gather_object", "barrier", "broadcast", "reduce", "gather", "scatter")


def note(*what):
    """A line of this process's output, past all buffers: a process that is killed keeps what it noted."""
    os.write(1, ("COLLECTIVE " + " ".join(map(str, what)) + "\n").encode())


def record():
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    import train

    def noted(name, call):
        def wrapper(value=None, *args, **kwargs):
            tensor = value[0] if isinstance(value, list) and name == "all_gather" else value
            shape = tuple(tensor.shape) if hasattr(tensor, "shape") else ""
            note(name, shape)
            return call(value, *args, **kwargs) if value is not None else call(*args, **kwargs)
        return wrapper

    for name in CALLS:
        setattr(dist, name, noted(name, getattr(dist, name)))

    def bucket(state, bucket):
        note("gradients", bucket.index(), bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    distributed = train.distributed

    def wrapped(module, processes):
        module = distributed(module, processes)
        module.register_comm_hook(None, bucket)
        return module

    train.distributed = wrapped


def in_the_second_step(work):
    """Runs `work` on the second process when it is in its second step."""
    import train
    original, calls = train.learning_rate, []

    def counted(*args):
        calls.append(1)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            work()
        return original(*args)

    train.learning_rate = counted


def told_to_stop():
    record()
    in_the_second_step(lambda: os.kill(os.getpid(), signal.SIGTERM))


def in_error():
    from data.files import UserError

    def fail():
        raise UserError("an unreadable study")

    record()
    in_the_second_step(fail)


def recorded(started):
    """The collectives of each process, in order."""
    texts = [Path(f"{output}.out").read_text(encoding="utf-8", errors="replace") for output in started.outputs]
    return [[line for line in text.splitlines() if line.startswith("COLLECTIVE")] for text in texts]


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    """Seven studies for three processes with two each: of the second batch, one process has one, the others none."""
    folder = tmp_path_factory.mktemp("collectives")
    return [*runs.prepare(folder, train=7, val=4), "--batch-size", "2", "--epochs", "2", "--save-every", "2"]


@pytest.mark.parametrize("extra", [[], ["--accumulate", "2"]])
def test_where_processes_have_no_study(argv, tmp_path, extra):
    started = runs.Started("train", [*argv, *extra, "--run", tmp_path / "run"], tmp_path / "out", 3, record)
    assert started.wait(120) == [0, 0, 0], started.text("err")
    first, second, third = recorded(started)
    assert first == second == third
    assert {line.split()[1] for line in first} == {"all_reduce", "all_gather", "all_gather_object", "barrier",
                                                   "gradients"}


def test_where_one_is_told_to_stop(argv, tmp_path):
    started = runs.Started("train", [*argv, "--run", tmp_path / "run"], tmp_path / "out", 3, told_to_stop)
    started.wait(120)
    assert "stopped after step 2 of 4" in started.text("err")       # all agree on it in the validation there
    first, second, third = recorded(started)
    assert first == second == third and len(first) > 10


def test_where_one_meets_an_error(argv, tmp_path):
    """It has begun nothing that the others have not; they are at most one collective ahead, and wait for it there."""
    started = runs.Started("train", [*argv, "--run", tmp_path / "run"], tmp_path / "out", 3, in_error)
    assert started.wait(120)[1] == 2
    assert "an unreadable study" in started.text("err")
    failed = recorded(started)[1]
    for others in (recorded(started)[0], recorded(started)[2]):
        assert others[:len(failed)] == failed and len(others) <= len(failed) + 1
