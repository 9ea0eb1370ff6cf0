"""--shard: splits the frozen language model over the processes, by torch's FSDP2."""

import inspect

import torch

from data.files import UserError
from model.lora import adapters


def fsdp():
    """torch's two functions for sharding. Raises UserError if this torch cannot exclude the adapters from sharding."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError(f"--shard: torch {torch.__version__} cannot exclude the LoRA adapters from sharding; install a "
                        "newer torch, or leave --shard out")
    return fully_shard, register_fsdp_forward_method


def shard(language_model, processes):
    """Splits the frozen layers over the processes (FSDP2); to compute, each process gathers one layer at a time.

    Every process keeps the whole adapters, whose gradients DDP averages, and the whole embeddings and head, which are
    used outside of `hidden`. Layers are moved from the CPU one by one, so that no GPU ever holds all of them.
    """
    from torch.distributed.device_mesh import init_device_mesh

    fully_shard, register_fsdp_forward_method = fsdp()
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    layers = language_model.layers
    for layer in layers:
        whole = {p for lora in adapters(layer).values() for p in (lora.lora_A, lora.lora_B)}
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    rest = set(language_model.parameters()) - {p for layer in layers for p in layer.parameters()}
    fully_shard(language_model, mesh=mesh, ignored_params=rest)
    register_fsdp_forward_method(language_model, "hidden")
