"""Muon's orthogonalised step."""

import pytest
import torch

from training.optimizer import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5)])
def test_all_directions_get_nearly_equal_weight(shape):
    torch.manual_seed(0)
    matrix = torch.randn(*shape) @ torch.diag(torch.linspace(1, 0.4, shape[1]))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.3 < values.min() and values.max() < 1.4
    before = torch.linalg.svdvals(matrix)
    assert values.max() / values.min() < before.max() / before.min()


def test_the_singular_directions_stay():
    """U S Vᵀ becomes about U Vᵀ: for a diagonal matrix, about the identity."""
    out = orthogonalised(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert torch.allclose(out - torch.diag(out.diagonal()), torch.zeros(3, 3), atol=1e-5)
    assert (out.diagonal() - 1).abs().max() < 0.4


def test_a_step_by_hand():
    """First step from zero momentum: ahead = g + 0.95 g; a 1 × 1 matrix is orthogonalised to about ±1 whatever its size."""
    p = torch.nn.Parameter(torch.tensor([[2.0]]))
    p.grad = torch.tensor([[1e-3]])
    q = torch.nn.Parameter(torch.tensor([1.0]))
    q.grad = torch.tensor([5.0])
    Muon([{"params": [p], "muon": True, "weight_decay": 0.5}, {"params": [q], "weight_decay": 0.0}], lr=0.1).step()
    assert q.item() == pytest.approx(0.9, abs=1e-6)                  # AdamW's first step is lr, whatever the gradient
    assert p.item() == pytest.approx(2.0 * (1 - 0.05) - 0.1 * orthogonalised(torch.ones(1, 1)).item(), abs=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (12, 3)])
def test_steps_as_torchs_own_muon_takes_them(shape):
    """Momentum, Nesterov's look ahead, decay and the factor of tall matrices; torch orthogonalises in bf16: to 3 %."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    one = Muon([{"params": [ours], "muon": True, "weight_decay": 0.1}], lr=0.1)
    other = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.1)
    start = ours.detach().clone()
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        one.step(), other.step()
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_more_than_two_dimensions_are_the_first_against_the_rest():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1))
    unused = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [kernel, matrix, unused], "muon": True, "weight_decay": 0.1}], lr=0.01)
    for _ in range(2):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1)
        optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix) and unused.eq(1).all() and unused not in optimizer.state
