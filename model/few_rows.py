"""y = x Wᵀ for few rows on a CPU, which is what decoding spends its time on there. No network knows of it.

PyTorch leaves fp32 products to MKL, which is slow for 2 and more rows on processors that aren't Intel's. oneDNN, which
PyTorch brings along for convolutions, is faster there wherever it can use AVX-512: 1.1 times for one row of a large
weight, up to 3 times for three. Elsewhere, and for small weights, nothing changes.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

MOST = 32                              # rows: batch times beams. oneDNN keeps a kernel for each number of rows.
LARGE = 2**19                          # numbers in a weight; for a smaller one the call costs what it saves


@contextmanager
def few_rows(network):
    """Within it, the network's large weights are multiplied with few rows by oneDNN, where that is the faster one.

    A module's attribute `weight` hides its parameter of that name meanwhile; state and gradients are not touched.
    """
    pays = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    modules = [module for module in network.modules() if pays and suits(module._parameters.get("weight"))]
    try:
        for module in modules:
            vars(module)["weight"] = module.weight.as_subclass(Weight)
        yield
    finally:
        for module in modules:
            vars(module).pop("weight", None)


def suits(weight):
    """A shard of a weight is of another type than nn.Parameter, and left alone."""
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32 \
        and weight.dim() == 2 and weight.numel() >= LARGE


class Weight(torch.Tensor):
    """A weight whose product with few rows is oneDNN's; all else is as ever. Without gradients, since that has none."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return (linear if function is F.linear else function)(*args, **kwargs or {})


def linear(input, weight, bias=None):
    few = input.numel() <= MOST * input.shape[-1]
    if few and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return F.linear(input, weight, bias)
