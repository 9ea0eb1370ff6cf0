"""The product of decoding on a CPU: torch's own, to rounding, and torch's own itself outside of inference mode."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.linear import Linear, linear

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


class Calls(TorchDispatchMode):
    """The names of the operations that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(str(operation))
        return operation(*args, **kwargs or {})

    def by_onednn(self):
        return any(name.startswith("mkldnn._linear_pointwise") for name in self.names)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 7, 5), (0, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_torchs(shape, biased):
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


@ONEDNN
def test_onednn_is_for_inference_alone():
    layer, x = Linear(5, 4), torch.randn(2, 5)
    with torch.inference_mode(), Calls() as inside:
        layer(x)
    with torch.no_grad(), Calls() as validation:
        layer(x)
    with Calls() as training:
        layer(x).sum().backward()
    assert inside.by_onednn() and not validation.by_onednn() and not training.by_onednn()
    assert layer.weight.grad is not None


def test_other_types_and_autocast_are_torchs():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5), torch.randn(4, 5)
    with torch.inference_mode():
        for dtype in (torch.float64, torch.bfloat16):
            assert torch.equal(linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            linear(x, torch.randn(4, 6))


def test_a_layer_is_torchs_in_name_and_shape():
    ours, theirs = Linear(5, 4), torch.nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(ours(x), theirs(x))
