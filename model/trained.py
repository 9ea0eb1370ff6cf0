"""A trained model as one file, which also holds all settings, so that the model is rebuilt without any flags.

    tensors   the weights by name, and the tokenizer's own file as bytes
    header    the configurations as JSON, and which frozen language model the weights belong to ("base")
"""

from dataclasses import asdict
from pathlib import Path

import torch

from data.files import UserError
from model.checkpoint import digest, read_file
from model.mistral import Mistral


def read_trained(path):
    """(tensors, header) of the checkpoint of either stage. Raises UserError for any other file."""
    tensors, header = read_file(path)
    if header.get("stage") not in (1, 2):
        raise UserError(f"{path}: a checkpoint without a stage; give a file that train.py wrote")
    return tensors, header


def as_tensor(data):
    """The bytes of a file as a tensor, which is all that a checkpoint can hold."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def as_bytes(tensor):
    """The bytes in such a tensor."""
    return tensor.numpy().tobytes()


def configuration(config_class, values):
    """A configuration from a header. Lists become tuples again; fields that an older file lacks get their defaults."""
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def configurations(**modules):
    """{name: the module's configuration} for a header."""
    return {name: asdict(module.config) for name, module in modules.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The frozen language model: embedded in the file, or named by its folder and digest


def in_base(name):
    """Whether a name of TRRG's state belongs to the frozen language model as published."""
    return name.startswith("language_model.") and ".lora_" not in name


def base_header(language_model, recorded, embedded):
    """The header's "base". `recorded` holds "folder", and "digest" if the caller knows it already."""
    dtype = str(next(language_model.parameters()).dtype).removeprefix("torch.")
    weights = recorded.get("digest") or digest(language_model)
    return {"digest": weights, **recorded, "dtype": dtype, "embedded": embedded}


def read_base(path, base, weights=None):
    """{name in TRRG's state: tensor} of the language model that the checkpoint `path` was trained on.

    `weights`: the folder that holds mistral/, if it has moved since training. Raises UserError if the language model is
    not found or is another one.
    """
    folder = Path(weights) / "mistral" if weights else nearest(base["folder"], path)
    if not folder.is_dir():
        raise UserError(f"{path}: its language model is not in {folder}; give the folder that holds mistral/ with "
                        "--weights, and the data set's new folder with --data if it has moved too")
    language_model = Mistral.from_pretrained(folder, dtype=getattr(torch, base["dtype"]))
    if digest(language_model) != base["digest"]:
        raise UserError(f"{path}: was trained on another language model (digest {base['digest']}) than {folder} "
                        f"holds ({digest(language_model)}); give the right model's folder with --weights")
    return {f"language_model.{name}": tensor for name, tensor in language_model.state_dict().items()}


def nearest(recorded, checkpoint):
    """A header's path as it is now: relative to the working folder, the checkpoint's folder, or a folder above that.

    A run is usually moved together with its data and weights. A path found nowhere is returned as recorded.
    """
    above = [folder / recorded for folder in Path(checkpoint).absolute().parents]
    return next((path for path in [Path(recorded), *above] if path.exists()), Path(recorded))
