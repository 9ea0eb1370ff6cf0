"""LoRA, low-rank adapters: Hu et al. 2021, arXiv:2106.09685; files as PEFT writes and reads them.

An adapted linear map is W x + scale · B A x, with A drawn at random and B zero, so that training starts at the base
model. The attention code needs no change: `add_lora` replaces linear layers. Nothing here freezes a weight; training
selects the trainable weights.
"""

import json
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from data.files import UserError, read_json_object, whole_file
from model import checkpoint

TARGETS = ("q_proj", "v_proj")           # as in the LoRA paper
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")     # all of a Mistral layer


class LoRALinear(nn.Linear):
    """A linear layer with an adapter.

    It keeps the base layer's parameters under their names, so loading and digest of the base's weights do not change.
    `lora_A` (rank, in) and `lora_B` (out, rank) are fp32, whatever the base's type.
    """

    def __init__(self, base, rank, alpha, dropout, rank_stabilised=False):
        nn.Module.__init__(self)                           # not nn.Linear's, which would allocate a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha, self.rank_stabilised = rank, alpha, rank_stabilised
        self.scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)
        self.dropout = nn.Dropout(dropout)
        where = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **where))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **where))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(base.training)

    def forward(self, x):
        # Computed in the activations' type: casting the adapter's small matrices is cheaper than casting x.
        low = F.linear(self.dropout(x), self.lora_A.to(x.dtype))
        return super().forward(x) + F.linear(low, (self.lora_B * self.scale).to(x.dtype))

    def extra_repr(self):
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


def adapters(module):
    """{name: LoRALinear} of a module."""
    return {name: child for name, child in module.named_modules() if isinstance(child, LoRALinear)}


def add_lora(module, targets=TARGETS, rank=16, alpha=16, dropout=0.0, rank_stabilised=False):
    """Replaces each linear layer whose name ends in a target by an adapted one, in place; rank 0 changes nothing.

    targets: names, or one pattern that must match a layer's whole name (PEFT's two forms). No weight is frozen. Returns
    the module. Raises ValueError if a target matches no linear layer, or the module has adapters already.
    """
    if rank == 0:
        return module
    if adapters(module):
        raise ValueError("the module has adapters already; merge them first")

    # Each target must match a layer: a mistyped target would silently train nothing.
    patterns = {targets: targets} if isinstance(targets, str) \
        else {target: rf"(.*\.)?{re.escape(target)}" for target in targets}
    linear = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    matches = {target: [name for name in linear if re.fullmatch(pattern, name)]
               for target, pattern in patterns.items()}
    unmatched = [target for target, names in matches.items() if not names]
    if unmatched or not matches:
        raise ValueError(f"no linear layer is called {', '.join(unmatched) or 'nothing'}")

    # In the module's order, so that a seed gives the same adapters whatever the order of the targets.
    adapted = {name for names in matches.values() for name in names}
    for name, base in linear.items():
        if name in adapted:
            replace(module, name, LoRALinear(base, rank, alpha, dropout, rank_stabilised))
    return module


@torch.no_grad()
def merge_lora(module):
    """Adds each adapter to its base weight and restores the plain linear layer, in place. Returns the module."""
    for name, lora in adapters(module).items():
        update = lora.scale * (lora.lora_B @ lora.lora_A)
        merged = (lora.weight.float() + update).to(lora.weight.dtype)
        replace(module, name, plain(lora, nn.Parameter(merged, requires_grad=lora.weight.requires_grad)))
    return module


def plain(lora, weight):
    with torch.device("meta"):
        layer = nn.Linear(lora.in_features, lora.out_features, bias=False)
    layer.weight, layer.bias = weight, lora.bias
    return layer.train(lora.training)


def replace(module, name, child):
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)


def lora_state(module):
    """{name: tensor} of the adapters' matrices only."""
    return {f"{name}.{matrix}": getattr(lora, matrix).detach()
            for name, lora in adapters(module).items() for matrix in ("lora_A", "lora_B")}


@torch.no_grad()
def load_lora_state(module, state, source="state"):
    """Copies matrices from `lora_state` into a module with the same adapters. source: their file, for error messages.

    Raises UserError, before anything is changed, if names or shapes differ.
    """
    matrices = lora_state(module)
    missing, unexpected = sorted(matrices.keys() - state.keys()), sorted(state.keys() - matrices.keys())
    if missing or unexpected:
        raise UserError(f"{source}: the adapter does not fit the model; - {missing[:3]} only in the model, "
                        f"+ {unexpected[:3]} only in the file; check rank and targets")
    for name, tensor in state.items():
        if tensor.shape != matrices[name].shape:
            raise UserError(f"{source}: {name} has shape {list(tensor.shape)}, the model needs "
                            f"{list(matrices[name].shape)}; check rank and targets")
    for name, tensor in state.items():
        matrices[name].copy_(tensor)


# --- PEFT's files -----------------------------------------------------------------------------------------------------

PREFIX = "base_model.model."           # PEFT's name for the model it wraps
# Supported settings of adapter_config.json: {field: values that mean plain LoRA}. A field that is in none of the three
# lists must be off (null, false, empty), including fields of future versions of PEFT.
PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}
READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}
# Fields that do not change what a finished adapter computes.
NOTES = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
         "megatron_core", "qalora_group_size", "eva_config", "runtime_config"}


def save_peft(module, folder):
    """Writes the adapters as PEFT does: adapter_config.json and adapter_model.safetensors. Raises ValueError."""
    adapted = adapters(module)
    if not adapted:
        raise ValueError("the module has no adapters")
    first = next(iter(adapted.values()))
    last_names = {name.rpartition(".")[2] for name in adapted}
    # PEFT writes last names; full names are needed if a layer with the same last name has no adapter.
    enough = all(name in adapted for name, child in module.named_modules()
                 if isinstance(child, nn.Linear) and name.rpartition(".")[2] in last_names)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
              "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout.p, "bias": "none",
              "use_rslora": first.rank_stabilised, "fan_in_fan_out": False,
              "target_modules": sorted(last_names if enough else adapted)}
    tensors = {f"{PREFIX}{name}.weight": tensor for name, tensor in lora_state(module).items()}
    checkpoint.write_safetensors(Path(folder) / "adapter_model.safetensors", tensors, {"format": "pt"})
    with whole_file(Path(folder) / "adapter_config.json") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


def load_peft(module, folder):
    """Adds the adapters in a folder written by PEFT or `save_peft`. Returns the module.

    Raises UserError, and leaves the module unchanged, if the adapter does not fit or is not plain LoRA.
    """
    folder = Path(folder)
    path = folder / "adapter_config.json"
    config = read_json_object(path)
    refuse_all_but_plain(config, path)

    # The file may come from anywhere, so its values are checked before the module is changed.
    rank, alpha = config.get("r"), config.get("lora_alpha")
    dropout, targets = config.get("lora_dropout", 0.0), config.get("target_modules")
    numbers = type(rank) is int and rank > 0 and type(alpha) in (int, float) and type(dropout) in (int, float)
    names = isinstance(targets, (list, str)) and targets and all(isinstance(target, str) for target in targets)
    if not numbers or not names or not abs(alpha) < 2**31 or not 0 <= dropout < 1:
        raise UserError(f"{path}: r, lora_alpha, lora_dropout or target_modules is unusable; write the adapter again")

    file = next((folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")
                 if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: holds no adapter_model.safetensors and no adapter_model.bin")
    state = checkpoint.open_tensors(file)
    matrices = {name.removeprefix(PREFIX).removesuffix(".weight"): tensor for name, tensor in state.items()}

    # All or nothing: if the matrices do not fit, the adapters are removed again.
    try:
        add_lora(module, targets, rank, alpha, dropout, bool(config.get("use_rslora")))
    except (ValueError, re.error) as error:
        raise UserError(f"{path}: {error}; the adapter belongs to another model") from None
    try:
        load_lora_state(module, matrices, source=file)
    except UserError:
        drop_lora(module)
        raise
    return module


def refuse_all_but_plain(config, path):
    """Raises UserError for settings that change the base, apply to some positions or layers only, or are unknown."""
    if "peft_type" not in config:
        raise UserError(f"{path}: has no peft_type; give a folder that PEFT wrote")
    for field, value in config.items():
        plain = value in PLAIN[field] if field in PLAIN else field in READ | NOTES or value in (None, False, [], {}, "")
        if not plain:
            raise UserError(f"{path}: {field} is {value!r}, which is not known to be plain LoRA; train a plain "
                            "adapter, or merge this one into its base with PEFT's merge_and_unload, and give that")


def drop_lora(module):
    """Restores the plain linear layers, without their adapters, in place."""
    for name, lora in adapters(module).items():
        replace(module, name, plain(lora, lora.weight))
