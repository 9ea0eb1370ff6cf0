"""Few rows by oneDNN: torch's own to rounding, where it is the faster one and nowhere else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import few_rows as few_rows_file
from model.decode import generate
from model.few_rows import MOST, Weight, few_rows
from model.lora import LINEAR, add_lora
from model.mistral import Mistral, MistralConfig

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


class Products(TorchDispatchMode):
    """The rows of every product that oneDNN makes inside."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if str(operation).startswith("mkldnn._linear_pointwise"):
            self.rows.append(args[0].shape[:-1].numel())
        return operation(*args, **kwargs or {})


def capability(monkeypatch, name):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@ONEDNN
def test_it_is_on_for_large_weights_with_avx512_alone(monkeypatch):
    network = nn.ModuleList([nn.Linear(8, 4), nn.Linear(3, 4), nn.Embedding(4, 8), nn.LayerNorm(32),
                             nn.Linear(8, 4, dtype=torch.bfloat16)])
    state = {name: id(weight) for name, weight in network.named_parameters()}
    monkeypatch.setattr(few_rows_file, "LARGE", 32)

    def on():
        return [type(module.weight) is Weight for module in network]
    capability(monkeypatch, "AVX2")
    with few_rows(network):
        assert not any(on())
    capability(monkeypatch, "AVX512")
    with pytest.raises(KeyboardInterrupt), few_rows(network):
        assert on() == [True, False, True, False, False]
        with few_rows(network):                                    # as two threads may
            pass
        assert state == {name: id(weight) for name, weight in network.named_parameters()}
        raise KeyboardInterrupt
    assert not any(on())


@ONEDNN
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 7, 5), (0, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_few_rows_equal_torchs(shape, biased):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(4, 5), torch.randn(4) if biased else None
    expected = F.linear(x, weight, bias)
    with torch.inference_mode(), Products() as products:
        assert torch.allclose(F.linear(x, weight.as_subclass(Weight), bias), expected, atol=1e-6)
        assert torch.allclose(F.linear(x, weight=weight.as_subclass(Weight), bias=bias), expected, atol=1e-6)
    assert len(products.rows) == 2


@ONEDNN
def test_it_takes_any_layout():
    torch.manual_seed(0)
    x, wide, weight = torch.randn(3, 6, 5), torch.randn(3, 10), torch.randn(4, 5)
    with torch.inference_mode():
        for part in (x[:, -1], x[:, ::2], x.transpose(0, 1), x[:, :1].expand(-1, 4, -1), wide[:, 1:6], wide[:, ::2]):
            assert torch.allclose(F.linear(part, weight.as_subclass(Weight)), part @ weight.T, atol=1e-6)


@ONEDNN
def test_many_rows_other_types_and_autocast_are_torchs():
    torch.manual_seed(0)
    x, weight = torch.randn(MOST + 1, 5), torch.randn(4, 5)
    special = weight.as_subclass(Weight)
    with torch.inference_mode(), Products() as products:
        assert torch.equal(F.linear(x, special), F.linear(x, weight))
        assert type(F.embedding(torch.tensor([1]), special)) is torch.Tensor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(x[:2], special).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            F.linear(x[:, :4], special)
    assert not products.rows


@ONEDNN
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_puts_it_on_and_takes_it_off(beams, tied, monkeypatch):
    """Each step's products are oneDNN's, the prompt's are not, and the tokens are those of F.linear."""
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=tied)
    model, ids = add_lora(Mistral(config), rank=4).eval(), torch.randint(0, 50, (2, MOST))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    monkeypatch.setattr(few_rows_file, "LARGE", 1)

    def run(name):
        capability(monkeypatch, name)
        with Products() as products:
            tokens = generate(model, ids=ids, max_new_tokens=5, min_new_tokens=5, eos_id=2, beams=beams)
            model(ids=ids[:, :1])
        return tokens, products.rows
    tokens, rows = run("AVX512")
    plain, none = run("AVX2")
    steps, products = 4, 2 * len(LINEAR) + 1                       # the maps of two layers, adapted or not; the head
    assert rows == [2] + [2 * beams] * steps * products and not none and tokens == plain
