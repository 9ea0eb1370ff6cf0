"""Faster y = x Wᵀ for few rows on a CPU, where decoding spends most of its time. The networks need no change.

PyTorch computes fp32 products with MKL, which is slow for 2 or more rows on processors other than Intel's. oneDNN, part
of PyTorch for convolutions, is faster there if it can use AVX-512: 1.1 times for one row of a large weight, up to 3
times for three rows. On other processors, and for small weights, nothing changes.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

MOST = 32                              # rows: batch times beams. oneDNN keeps a kernel for each number of rows.
LARGE = 2**19                          # least elements of a weight; below, the call costs as much as it saves


@contextmanager
def few_rows(network):
    """A context in which oneDNN multiplies the network's large weights with few rows, on processors where it is faster.

    Meanwhile a module's attribute `weight` hides the parameter of that name; state and gradients do not change.
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
    """Whether oneDNN may multiply this weight. A shard of a weight is no plain nn.Parameter, so it is left alone."""
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32 \
        and weight.dim() == 2 and weight.numel() >= LARGE


class Weight(torch.Tensor):
    """A weight whose product with few rows is computed by oneDNN, without gradients; all else is unchanged."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return (linear if function is F.linear else function)(*args, **kwargs or {})


def linear(input, weight, bias=None):
    few = input.numel() <= MOST * input.shape[-1]
    if few and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return F.linear(input, weight, bias)
