"""y = x Wᵀ + b, the product in which decoding spends nearly all its time.

PyTorch leaves fp32 on a CPU to MKL, which does not use the widest instructions of processors that aren't Intel's.
oneDNN does: the library that PyTorch brings along for convolutions and torch.compile. But it compiles and keeps a
kernel for every shape. Decoding has a few shapes, training and validation a new one with every batch, so they stay with
MKL.
"""

import torch
import torch.nn.functional as F
from torch import nn


def linear(x, weight, bias=None):
    """x (…, in), weight (out, in), bias (out,) → (…, out): F.linear; fp32 on a CPU, in inference mode, by oneDNN."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and torch.is_inference_mode_enabled() \
            and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu"):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight, self.bias)
