"""y = x Wᵀ + b, the product in which these networks spend most of their time on a CPU.

PyTorch leaves fp32 on a CPU to MKL, which does not use the widest instructions of processors that aren't Intel's.
oneDNN does: the library that PyTorch brings along for convolutions and torch.compile. But it compiles and keeps a
kernel for every number of rows, and training meets a new one with every batch. So rows go to it in pieces of three
sizes, and what is left over to MKL. Elsewhere, on a GPU or in bf16, this is F.linear.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

PIECES = (2048, 256, 64)                 # rows in one product: many, so that all cores have work
SMALL = 2**15                            # a weight of fewer numbers is not worth the pieces
FEW = 32                                 # in inference every number of rows up to this has a kernel: batch and beams


def linear(x, weight, bias=None):
    """x (…, in), weight (out, in), bias (out,) → (…, out)."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available() \
            and not torch.is_autocast_enabled("cpu"):
        rows = x.numel() // x.shape[-1]
        if rows >= PIECES[-1] and weight.numel() >= SMALL:
            return InPieces.apply(x, weight, bias)
        if rows <= FEW and torch.is_inference_mode_enabled():
            return product(x, weight, bias)
    return F.linear(x, weight, bias)


def product(x, weight, bias=None):
    """F.linear by oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class InPieces(torch.autograd.Function):
    """y = x Wᵀ + b; dx = dy W, dW = dyᵀ x, db = Σ dy over the rows. Like F.linear's, it keeps x only for dW."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return by_rows(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (by_rows(dy, weight.T) if need_x else None, over_rows(dy, x) if need_weight else None,
                dy.flatten(0, -2).sum(0) if need_bias else None)


def pieces(x):
    """x (…, width) → its rows, (2048, width) as often as it goes, then the smaller pieces, then what is left."""
    x = x.flatten(0, -2)
    sizes, left = [], len(x)
    for size in PIECES:
        sizes += [size] * (left // size)
        left %= size
    return x.split(sizes + [left] if left else sizes)


def by_rows(x, weight, bias=None):
    """x (…, in), weight (out, in), bias (out,) → x Wᵀ + b (…, out)."""
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    for some_x, some_y in zip(pieces(x), pieces(y)):
        some_y.copy_((product if len(some_x) in PIECES else F.linear)(some_x, weight, bias))
    return y


def over_rows(y, x):
    """y (…, out), x (…, in) → yᵀ x (out, in), the sum over all rows."""
    total = y.new_zeros(y.shape[-1], x.shape[-1])
    for some_y, some_x in zip(pieces(y), pieces(x)):
        if len(some_x) in PIECES:
            total += product(some_y.T, some_x.T)
        else:
            total.addmm_(some_y.T, some_x)
    return total


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight, self.bias)
