"""bf16 autocast against fp32, module by module, and what is in fp32 under autocast too.

A number of bf16 is off by at most u = 2^-9 of itself. A product rounds its two inputs and its result and adds up in
fp32, so it is off by some √3 u; n products one behind the other, whose roundings are independent, by √(3 n) u.
Residual streams and norms keep that from growing faster, so three times it is the limit; gradients pass twice as many.
"""

import math

import pytest
import torch

import trrg
from model.bert import Bert, BertConfig
from model.clues import clue_weights
from model.interaction import Interaction
from model.lora import add_lora
from model.mistral import Mistral, MistralConfig, rotary
from model.swin import Swin, SwinConfig
from tests import fake_gpu, tiny

U = 2.0**-9


def limit(products):
    return 3 * math.sqrt(3 * products) * U


def adapted():
    model = add_lora(Mistral(MistralConfig(vocab_size=90, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                           num_attention_heads=4, num_key_value_heads=2, head_dim=16)))
    for name, p in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    return model


MASK = torch.arange(12)[None] < torch.tensor([[12], [7]])
IDS = torch.arange(24).view(2, 12) % 60 + 5
# {name: (module, how it runs on its inputs, products one behind the other)}
MODULES = {
    "swin": (lambda: Swin(SwinConfig(image_size=56, embed_dim=32, depths=(2, 2), num_heads=(2, 4))),
             lambda model: model(torch.randn(2, 3, 56, 56)), 1 + 4 * 6 + 1),
    "bert": (lambda: Bert(BertConfig(vocab_size=90, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=128)), lambda model: model(IDS, MASK)[MASK], 2 * 6),
    "mistral and its adapters": (adapted, lambda model: model(ids=IDS), 2 * 7 + 1),
    "clue interaction": (lambda: Interaction(64, 8, 6), lambda model: torch.cat(
        model(torch.randn(2, 20, 64), torch.randn(2, 12, 64), MASK)), 5 + 6)}


@pytest.mark.parametrize("name", MODULES)
def test_a_module(name):
    make, run, products = MODULES[name]
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():                   # a published network's products matter beside its residuals
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)

    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = run(model)
        (output.float() * torch.randn(output.shape)).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((output.float().detach(), gradients))
        model.zero_grad(set_to_none=True)

    (exact, gradient), (rounded, rounded_gradient) = results
    assert 0 < (rounded - exact).norm() / exact.norm() < limit(products)
    assert 0 < (rounded_gradient - gradient).norm() / gradient.norm() < limit(2 * products)


def test_the_softmax_over_the_clues_is_in_fp32():
    """A τ of 0.01 makes of bf16's error of a cosine, 0.002, a fifth of the exponent: another disease might win."""
    torch.manual_seed(0)
    v, c, disease = torch.randn(4, 64), torch.randn(14, 64), torch.arange(14)
    exact = clue_weights(v, c, disease, 14, torch.tensor(0.01))
    with torch.autocast("cpu", torch.bfloat16):
        weights, best = clue_weights(v, c, disease, 14, torch.tensor(0.01))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, exact[0], rtol=1e-4, atol=1e-6)
    assert best.equal(exact[1])


def test_the_losses_are_in_fp32():
    torch.manual_seed(0)
    v, t = torch.randn(8, 64), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trrg.contrastive_loss(v, t, torch.tensor(0.01))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, trrg.contrastive_loss(v, t, torch.tensor(0.01)), rtol=1e-5, atol=1e-5)

    model = tiny.model()
    ids, labels, _ = model.supervise(tiny.REPORTS[:2], 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tiny.batch(), ids, labels)
    assert loss.ce.dtype == loss.dc.dtype == torch.float32


def test_the_rotary_tables_are_made_in_fp32():
    """bf16 knows whole numbers up to 256: angles of later positions would be those of other tokens."""
    positions = torch.arange(0, 4096, 37)
    exact = rotary(positions.double(), 128, 10000.0, torch.float64)
    for table, expected in zip(rotary(positions, 128, 10000.0, torch.bfloat16), exact):
        assert (table.double() - expected).abs().max() < U + 1e-3        # of fp32's own error in an angle of 4,000


def test_norms_are_in_fp32_on_a_gpu():
    """Autocast there takes their inputs to fp32; what they give is rounded by the products that read it."""
    alignment, writer = tiny.alignment(), tiny.model()
    with fake_gpu.here():
        alignment, writer = fake_gpu.move(alignment), fake_gpu.move(writer)
        seen = []
        for norm in [m for model in (alignment, writer) for m in model.modules()
                     if isinstance(m, torch.nn.LayerNorm | torch.nn.RMSNorm)]:
            norm.register_forward_hook(lambda norm, _, output: seen.append(output.dtype))
        ids = torch.zeros(2, 9, dtype=torch.long, device="cuda")
        with fake_gpu.autocast(), fake_gpu.Watch():
            v, t, tau = alignment(torch.empty(2, 3, tiny.CROP, tiny.CROP, device="cuda"), ids, ids == 0)
            loss = writer(torch.empty(2, 1, 3, tiny.CROP, tiny.CROP, device="cuda"), ids, ids)
    assert len(seen) > 10 and set(seen) == {torch.float32}
    assert tau.dtype == loss.ce.dtype == loss.dc.dtype == torch.float32
