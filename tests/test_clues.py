"""Recognition and top-k, on numbers small enough to check by hand."""

import pytest
import torch

from model.clues import ClueBank, clue_weights
from trrg import contrastive_loss


def bank():
    """Three diseases; the second has two prompts. Their cls tokens point east, north, north-east, west."""
    cls = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    tokens = torch.arange(4 * 2 * 2.0).reshape(4, 2, 2)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]]).bool()
    return ClueBank(tokens, cls, mask, torch.tensor([0, 1, 1, 2]), m=3)


def test_weights_by_hand():
    # v_cls = (3, 4) has the cosines 0.6, 0.8, -0.6; over τ = 0.2: 3, 4, -3; e³, e⁴, e⁻³ sum to 74.7335
    c_cls = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-5.0, 0.0]])
    w, best = clue_weights(torch.tensor([[3.0, 4.0]]), c_cls, torch.arange(3), m=3, tau=torch.tensor(0.2))
    assert best.tolist() == [[0, 1, 2]] and torch.allclose(w, torch.tensor([[0.268762, 0.730572, 0.000666]]), atol=1e-6)


def test_a_disease_scores_as_the_mean_of_its_prompts_under_the_softmax():
    # cosines of (3, 4): 0.6; 0.8 and 1.4 / √2 = 0.98995; -0.6. Over τ = 0.2: 3; 4 and 4.94975, whose powers of e are
    # 54.598 and 141.139 with the mean 97.869; -3. With e³ = 20.086 and e⁻³ = 0.050 they sum to 118.004
    clues = bank()(torch.tensor([[3.0, 4.0]]), tau=torch.tensor(0.2), k=2)
    assert torch.allclose(clues.weights, torch.tensor([[20.0855, 97.8685, 0.0498]]) / 118.0038, atol=1e-5)
    assert clues.disease.tolist() == [[1, 0]] and clues.prompt.tolist() == [[2, 0]]


def test_a_prompt_said_twice_changes_no_weight():
    once, v = bank(), torch.tensor([[3.0, 4.0], [1.0, -1.0]])
    twice = ClueBank(*(torch.cat([x, x[1:3]]) for x in (once.tokens, once.cls, once.mask, once.disease)), m=3)
    assert torch.allclose(once(v, torch.tensor(0.2), k=1).weights, twice(v, torch.tensor(0.2), k=1).weights, atol=1e-6)


def test_the_injected_tokens_are_the_winning_prompts_heaviest_first():
    clues = bank()(torch.tensor([[3.0, 4.0]]), tau=torch.tensor(0.2), k=2)
    assert torch.equal(clues.tokens, torch.tensor([[[8.0, 9], [10, 11], [0, 1], [2, 3]]]))
    assert clues.mask.tolist() == [[True, True, True, True]]
    clues = bank()(torch.tensor([[0.0, 1.0]]), tau=torch.tensor(0.2), k=1)
    assert clues.prompt.tolist() == [[1]] and clues.mask.tolist() == [[True, False]]     # padding stays masked


@pytest.mark.parametrize("threshold, kept", [(0.0, 2), (0.2, 1), (0.95, 0)])
def test_threshold_masks_light_clues_out(threshold, kept):
    clues = bank()(torch.tensor([[3.0, 4.0]]), tau=torch.tensor(0.2), k=2, threshold=threshold)
    weights = clues.weights[0, clues.disease[0]]
    assert 0.8 < weights[0] < 0.95 and 0.1 < weights[1] < 0.2
    assert clues.mask.unflatten(1, (2, 2)).any(-1).sum() == kept


def test_weights_do_not_depend_on_norms():
    one = bank()(torch.tensor([[3.0, 4.0]]), tau=torch.tensor(0.2), k=3)
    ten = bank()(torch.tensor([[30.0, 40.0]]), tau=torch.tensor(0.2), k=3)
    assert torch.allclose(one.weights, ten.weights) and torch.equal(one.disease, ten.disease)


def test_a_row_alone_is_the_row_in_a_batch():
    v = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    together = bank()(v, tau=torch.tensor(0.1), k=2)
    for i in range(5):
        alone = bank()(v[i:i + 1], tau=torch.tensor(0.1), k=2)
        assert all(torch.allclose(a[0].float(), b[i].float()) for a, b in zip(alone, together))


@torch.no_grad()
def test_autocast_changes_no_clue():
    """Cosines that lie close together: in bfloat16 most of these pictures would get another disease's clue."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(256, generator=generator)
    cls, v = (common + 0.6 * torch.randn(rows, 256, generator=generator) for rows in (28, 40))
    close = ClueBank(torch.randn(28, 3, 256), cls, torch.ones(28, 3, dtype=torch.bool), torch.arange(28) // 2, m=14)
    exact = close(v, torch.tensor(0.01), k=3)
    loss = contrastive_loss(v[:28], cls, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = close(v, torch.tensor(0.01), k=3)
        assert contrastive_loss(v[:28], cls, 0.01) == loss                                               # Eq. (1)
    assert all(torch.equal(a, b) for a, b in zip(exact, mixed))
