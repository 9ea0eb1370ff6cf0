"""A GPU that is not there: torch's fake tensors have a device, a type and a shape, but no numbers.

An operation whose inputs lie on two devices fails on them as it would on a GPU. Only the forward pass: a backward pass
asks the driver for a stream. Used by tests, never by the program.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model import swin

ROOT = Path(__file__).resolve().parents[1]
ASKS = {"_local_scalar_dense", "item", "nonzero", "equal"}
COPIES = {"_to_copy", "to", "copy_"}


@contextmanager
def here():
    """In this context new tensors are fake, and may say device="cuda". None of them outlives it in a cache."""
    tables = swin.relative_position_index, swin.shift_mask
    try:
        for table in tables:
            table.cache_clear()
        with FakeTensorMode():
            yield
    finally:
        for table in tables:
            table.cache_clear()


def move(module):
    """Every parameter and buffer becomes a fake one on the GPU, in place. Returns the module. Only within `here`."""
    for child in module.modules():
        for table in (child._parameters, child._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = like(tensor)
    return module


def like(tensor):
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


@contextmanager
def autocast(enabled=True):
    """bf16 on the GPU; torch.autocast itself switches off where there is none."""
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


class Watch(TorchDispatchMode):
    """Notes the operations within it, and the places of the program where the host waits for the GPU.

    operations: {name: how often}; asked, sent: {(file, function): how often a number is asked for, or a tensor comes
    from the host}. Whoever asks is told 0, or that a boolean index means all rows, so what follows is watched too.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.asked, self.sent = Counter(), Counter(), Counter()

    def __exit__(self, *error):
        self.asked = +self.asked                        # without those that asked the host itself
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        self.operations[name] += 1
        fake = args and isinstance(args[0], FakeTensor)
        if fake and name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.asked[place()] += 1
            (mask,) = args[1]
            return args[0].flatten(0, mask.ndim - 1).clone()
        if fake and name in ASKS:
            self.asked[place()] += args[0].is_cuda
            return 0

        result = operation(*args, **kwargs)
        if name in COPIES and result.is_cuda and not args[name == "copy_"].is_cuda:
            self.sent[place()] += 1
        return result


def place():
    """(file, function) of the program's innermost frame."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests"):
            return str(path.relative_to(ROOT)), frame.f_code.co_name
        frame = frame.f_back
    return "tests", ""
