"""The product on a CPU, by oneDNN where that is worth it: torch's own to rounding, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import model.linear
from model.bert import Bert, BertConfig
from model.linear import FEW, PIECES, SMALL, Linear, linear
from model.lora import LINEAR, add_lora
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
OUT, IN = 160, 208                                         # of a weight that is large enough


class Calls(TorchDispatchMode):
    """The rows of every product that oneDNN makes inside."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if str(operation).startswith("mkldnn._linear_pointwise"):
            self.rows.append(args[0].shape[0])
        return operation(*args, **kwargs or {})


def near(ours, expected):
    return (ours.double() - expected.double()).abs().max() < 1e-5 * (1 + expected.double().abs().max())


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 7, 5), (0, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_few_rows_equal_torchs(shape, biased):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(4, 5), torch.randn(4) if biased else None
    expected = F.linear(x, weight, bias)
    with torch.inference_mode():
        assert torch.allclose(linear(x, weight, bias), expected, atol=1e-6)


def test_takes_any_layout():
    torch.manual_seed(0)
    x, wide, weight = torch.randn(3, 6, 5), torch.randn(3, 10), torch.randn(4, 5)
    with torch.inference_mode():
        for part in (x[:, -1], x[:, ::2], x.transpose(0, 1), x[:, :1].expand(-1, 4, -1), wide[:, 1:6], wide[:, ::2]):
            assert torch.allclose(linear(part, weight), part @ weight.T, atol=1e-6)
    x, wide, weight = torch.randn(90, 6, IN), torch.randn(330, IN + 10), torch.randn(OUT, IN)
    for part in (x, x[:, ::2], x.transpose(0, 1), x[:, :1].expand(-1, 4, -1), wide[:, 1:IN + 1]):
        assert near(linear(part, weight), part.double() @ weight.double().T)


@pytest.mark.parametrize("shape", [(64, IN), (256, IN), (330, IN), (2, 7, 59, IN), (100, 4, IN), (2, 1200, IN)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("loss", [lambda y: y.sum(), lambda y: y.tanh().square().sum(), lambda y: y.transpose(0, 1).sin().sum()],
                         ids=["expanded gradient", "dense gradient", "transposed gradient"])
def test_pieces_and_their_gradients_equal_torchs_in_double_precision(shape, biased, loss):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(OUT, IN) / 14, *([torch.randn(OUT)] if biased else [])]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    double = [tensor.double().requires_grad_() for tensor in inputs]
    y, expected = linear(*ours), F.linear(*double)
    assert y.shape == expected.shape and near(y, expected)
    for gradient, exact in zip(torch.autograd.grad(loss(y), ours), torch.autograd.grad(loss(expected), double), strict=True):
        assert gradient.shape == exact.shape and near(gradient, exact)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_gradients_are_made_for_what_trains_alone(frozen):
    torch.manual_seed(0)
    tensors = [torch.randn(300, IN), torch.randn(OUT, IN), torch.randn(OUT)]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index not in frozen)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor):
        linear(*tensors).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [index in frozen for index in range(3)]
    assert (tensors[0].data_ptr() in kept) == (1 not in frozen)        # x is kept for the weight's gradient alone


@ONEDNN
def test_onednn_meets_few_sizes():
    """It keeps a kernel for each: three when training, whatever the batch, and those of decoding."""
    weight = torch.randn(OUT, IN, requires_grad=True)
    with Calls() as training:
        for rows in (1, FEW, 63, 64, 65, 300, 333, 700, 2049, 4500):
            linear(torch.randn(rows, IN, requires_grad=True), weight).sum().backward()
    assert set(training.rows) == {*PIECES, OUT}                        # OUT rows: the weight's gradient
    with torch.inference_mode(), Calls() as inference:
        for rows in (1, FEW, FEW + 1, 63, 64, 333):
            linear(torch.randn(rows, IN), weight)
    assert inference.rows == [1, FEW, 64, 256, 64]
    with Calls() as small:
        linear(torch.randn(300, IN), torch.randn(SMALL // IN, IN))
    assert not small.rows


def test_other_types_and_autocast_are_torchs():
    torch.manual_seed(0)
    x, weight = torch.randn(300, IN), torch.randn(OUT, IN)
    with torch.inference_mode():
        for x in (x[:2], x):
            for dtype in (torch.float64, torch.bfloat16):
                assert torch.equal(linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert linear(x, weight).dtype == torch.bfloat16
            with pytest.raises(RuntimeError):
                linear(x, torch.randn(OUT, IN + 1))


def test_a_layer_is_torchs_in_name_and_shape():
    ours, theirs = Linear(5, 4), torch.nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(ours(x), theirs(x))


def language_model():
    config = MistralConfig(vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=16)
    model = add_lora(Mistral(config), LINEAR, rank=4)
    model.checkpoint = True
    return model, (torch.randint(0, 50, (4, 81)),)


def swin():
    return Swin(SwinConfig(image_size=56, embed_dim=32, depths=(2, 2), num_heads=(2, 4), drop_path_rate=0.0)), (torch.randn(2, 3, 56, 56),)


def bert():
    config = BertConfig(vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids = torch.randint(0, 40, (5, 67))
    return Bert(config), (ids, ids > 3)


@ONEDNN
@pytest.mark.parametrize("make", [language_model, swin, bert])
def test_whole_networks_do_not_see_the_difference(make, monkeypatch):
    torch.manual_seed(0)
    network, inputs = make()
    network.train()
    for weight in network.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1)

    def run(small):
        monkeypatch.setattr(model.linear, "SMALL", small)
        network.zero_grad()
        with Calls() as calls:
            y = network(*inputs)
            y.tanh().sum().backward()
        return y, [weight.grad for weight in network.parameters() if weight.grad is not None], calls.rows
    y, gradients, rows = run(0)
    expected, exact, none = run(2**40)
    assert rows and not none and len(gradients) == len(exact) > 10
    assert (y - expected).abs().max() < 1e-4 * expected.abs().max() and expected.std() > 0.01
    for ours, theirs in zip(gradients, exact):
        assert (ours - theirs).abs().max() < 1e-4 * max(theirs.abs().max(), 1)
