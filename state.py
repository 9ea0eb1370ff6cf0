"""What a run remembers, so that it goes on bit for bit: weights, optimiser, step, and every process's generators.

One safetensors file a state, runs/…/state/STAGE-STEP-DIGEST.safetensors, written whole. The digest of its bytes stands
in its name: a damaged file is noticed by reading it, and the state before it is used. The last two are kept.
"""

import hashlib
from pathlib import Path

import torch

from data.files import UserError
from model.checkpoint import read_file, save_file


def rng_state(device):
    """The generators of this process as {name: uint8 tensor}. Data needs none of them: see data/dataset.py."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states, device):
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def save_state(folder, stage, step, parameters, optimizer, rngs, facts):
    """Writes one state and drops all but the last two of its stage.

    `parameters` {name: parameter} are those that train, `rngs` one `rng_state` a process, `facts` whatever of JSON
    must be the same again (and is compared by `load_state`'s caller).
    """
    tensors = {f"parameter.{name}": value.detach().cpu() for name, value in parameters.items()}
    for name, value in parameters.items():
        for moment, tensor in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = tensor.detach().cpu()
    for rank, states in enumerate(rngs):
        for name, tensor in states.items():
            tensors[f"rng.{rank}.{name}"] = tensor.cpu()

    folder = Path(folder)
    draft = folder / f".{stage}-{step:08d}.draft"
    save_file(draft, tensors, {"stage": stage, "step": step, "processes": len(rngs), "facts": facts})
    draft.rename(folder / f"{stage}-{step:08d}-{file_digest(draft)}.safetensors")
    for old in saved_states(folder, stage)[:-2]:
        old.unlink()


def saved_states(folder, stage):
    """The states of a stage, oldest first."""
    return sorted(Path(folder).glob(f"{stage}-*.safetensors"))


def file_digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16] if hasattr(hashlib, "file_digest") \
            else hashlib.sha256(file.read()).hexdigest()[:16]


def newest_state(folder, stage, say=print):
    """The newest undamaged state → (tensors, header), or None. Damaged ones are named through `say` and left alone."""
    for path in reversed(saved_states(folder, stage)):
        if file_digest(path) == path.stem.rsplit("-", 1)[1]:
            return read_file(path)
        say(f"{path}: damaged, going back to the state before it")
    return None


def load_state(state, parameters, optimizer, rank, device):
    """Puts a state from `newest_state` back in place; the number of processes must be the one it was saved with."""
    tensors, _ = state
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"parameter.{name}"])
    moments = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, moment, name = key.split(".", 2)
            # AdamW counts its steps on the CPU
            place = "cpu" if moment == "step" else parameters[name].device
            moments.setdefault(name, {})[moment] = tensor.clone().to(place)
    for name, of_parameter in moments.items():
        optimizer.state[parameters[name]] = of_parameter
    set_rng_state({name.split(".")[2]: tensor for name, tensor in tensors.items()
                   if name.startswith(f"rng.{rank}.")}, device)
