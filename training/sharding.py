"""--shard: the frozen language model spread over the processes, by torch's FSDP2."""

import inspect

import torch

from data.files import UserError
from model.lora import adapters


def fsdp():
    """torch's functions to shard with. Raises UserError where torch is too old to leave the adapters whole."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError(f"--shard: torch {torch.__version__} can't leave the adapters whole; take a newer torch, or "
                        "leave --shard out")
    return fully_shard, register_fsdp_forward_method


def shard(language_model, processes):
    """Spreads the frozen layers over the processes (FSDP2); each gathers one layer at a time while it computes.

    Adapters, which train, stay whole on every process, and DDP averages their gradients; so do the embeddings and
    the head, which are used outside of `hidden`. Layers come from the CPU one by one, so that no GPU ever holds all.
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
