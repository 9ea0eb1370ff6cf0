"""Eq. (2) to (4) with weights set by hand, so that each result can be worked out on paper."""

import torch
from torch import nn

from model.interaction import Attention, Extract, Interaction, Stream, disease_consistency


def plain(attention):
    """Attends evenly to every allowed token (no query, no key) and passes their values on unchanged."""
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value, attention.out):
            linear.weight.zero_()
            linear.bias.zero_()
        attention.value.weight.copy_(torch.eye(2))
        attention.out.weight.copy_(torch.eye(2))
    return attention


def test_equation_2_by_hand():
    stream = Stream(d=2, heads=1)
    plain(stream.attention)
    with torch.no_grad():
        stream.project.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        stream.project.bias.copy_(torch.tensor([1.0, 0.0]))
    # projected: (3, 1) and (0, 4); normalised: (1, -1) and (-1, 1)
    x = torch.tensor([[[1.0, 1.0], [-0.5, 4.0]]])
    assert torch.allclose(stream(x), torch.tensor([[[3.0, 1.0], [0.0, 4.0]]]), atol=1e-4)           # their mean is 0
    first_only = torch.tensor([[True, False]])
    assert torch.allclose(stream(x, first_only), torch.tensor([[[4.0, 0.0], [1.0, 3.0]]]), atol=1e-4)   # plus (1, -1)


def test_equation_3_by_hand():
    extract = Extract(d=2, heads=1)
    plain(extract.attention)
    with torch.no_grad():
        extract.ffn[-1].weight.zero_()
        extract.ffn[-1].bias.copy_(torch.tensor([0.5, 0.25]))
    queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    context = torch.tensor([[[5.0, 1.0], [9.0, 2.0], [0.0, 7.0]]])    # normalised: (1, -1), (1, -1), (-1, 1)
    third = 1 / 3                                                     # their mean: (1/3, -1/3)
    expected = torch.tensor([[[1 + third + 0.5, -third + 0.25], [third + 0.5, 1 - third + 0.25]]])
    assert torch.allclose(extract(queries, context), expected, atol=1e-4)


def test_equation_4_by_hand():
    e_v = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [1.0, 1.0]]])
    e_c = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[-4.0, 3.0], [-2.0, -2.0]]])
    # the cosines are 1 and 0, then 0 and -1
    assert torch.allclose(disease_consistency(e_v, e_c), torch.tensor([-0.5, 0.5]))


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    ours, theirs = Attention(16, heads=4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    queries, context = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    mask = torch.rand(3, 7) > 0.4
    mask[:, 0] = True
    expected, _ = theirs(queries, context, context, key_padding_mask=~mask)
    assert torch.allclose(ours(queries, context, mask), expected, atol=1e-6)
    expected, weights = theirs(queries, context, context)
    assert torch.allclose(ours(queries, context), expected, atol=1e-6)
    assert torch.allclose(ours.weights(queries, context), weights, atol=1e-6)


def test_padding_never_reaches_a_query():
    torch.manual_seed(0)
    interaction = Interaction(d=8, heads=2, queries=3).eval()
    v_d, c_s = torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    other = torch.where(mask[..., None], c_s, torch.full_like(c_s, 99.0))
    a, b = interaction(v_d, c_s, mask), interaction(v_d, other, mask)
    assert torch.allclose(a.c, b.c, atol=1e-5) and torch.equal(a.v, b.v)
    assert not torch.allclose(a.c, interaction(v_d, other, torch.ones_like(mask)).c, atol=1e-2)


def test_without_any_clue_the_queries_are_finite_and_read_nothing():
    torch.manual_seed(0)
    interaction = Interaction(d=8, heads=2, queries=3)
    none = torch.zeros(2, 5, dtype=torch.bool)
    out = interaction(torch.randn(2, 6, 8), torch.randn(2, 5, 8, requires_grad=True), none)
    assert torch.isfinite(out.c).all() and torch.allclose(out.c[0], out.c[1], atol=1e-6)
    out.c.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in interaction.parameters() if p.grad is not None)


def test_where_the_queries_look_sums_to_one():
    interaction = Interaction(d=8, heads=2, queries=3)
    weights = interaction.visual_attention(torch.randn(2, 6, 8))
    assert weights.shape == (2, 3, 6) and torch.allclose(weights.sum(-1), torch.ones(2, 3), atol=1e-5)
