"""Shares of a batch, gathering with gradient, and signals."""

import os
import signal
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests import runs
from training.processes import Processes, Share, StopSignal, gather


class Two:
    def __init__(self, rank, world):
        self.rank, self.world = rank, world


@pytest.mark.parametrize("studies, world", [(8, 1), (8, 4), (7, 4), (2, 3), (1, 4)])
def test_shares_hold_every_study_once_and_nobody_is_idle(studies, world):
    batch = list(range(10, 10 + studies))
    shares = [Share(batch, Two(rank, world)) for rank in range(world)]
    assert sorted(n for share in shares if share.weight for n in share.numbers) == batch
    assert all(share.numbers for share in shares)
    assert all(share.sizes == shares[0].sizes for share in shares) and sum(shares[0].sizes) == studies


def gathered_gradients():
    """On three processes: rows 2, 1 and 0 (a stand-in); the loss is the same on each, its gradients are summed."""
    processes = Processes()
    sizes = [2, 1, 0]
    x = torch.arange(8.0).view(4, 2)[processes.rank:processes.rank + max(1, sizes[processes.rank])].requires_grad_()
    rows = gather(x, sizes)
    (rows * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    print(rows.tolist(), x.grad.tolist(), processes.sum(rank=processes.rank, one=1), flush=True)
    processes.close()
    sys.exit(0)


def test_gathering_passes_gradients_back_to_their_process(tmp_path):
    started = runs.Started("train", [], tmp_path, world=3, hook=gathered_gradients)
    assert started.wait() == [0, 0, 0]
    lines = started.text("out").splitlines()
    rows, sums = "[[0.0, 1.0], [2.0, 3.0], [2.0, 3.0]]", {"rank": 3.0, "one": 3.0}
    assert lines == [f"{rows} [[3.0, 3.0], [30.0, 30.0]] {sums}", f"{rows} [[300.0, 300.0]] {sums}",
                     f"{rows} [[0.0, 0.0]] {sums}"]


def test_one_process_gathers_nothing():
    x = torch.randn(3, 2)
    assert gather(x, [3]) is x
    assert Processes().sum(a=1, b=2.5) == {"a": 1.0, "b": 2.5} and Processes().gather_objects("a") == ["a"]


@pytest.mark.parametrize("world, error, back",
                         [(1, None, True), (1, KeyError, True), (2, None, True), (2, KeyError, False)])
def test_a_signal_is_noted_and_the_handlers_come_back(world, error, back):
    """They stay in one of several processes that fails: it says why before it is ended."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(error) if error else nullcontext(), StopSignal(SimpleNamespace(world=world)) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            if error:
                raise error
        assert ({number: signal.getsignal(number) for number in before} == before) == back
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
