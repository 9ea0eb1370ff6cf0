"""What a run remembers, so that it goes on bit for bit: weights, optimiser, step, and every process's generators.

A state is one safetensors file, runs/…/state/STAGE-STEP-DIGEST.safetensors, written whole. The digest of its bytes
stands in its name: a damaged file is noticed by reading it, and the state before it is used. The last two are kept.
"""

import fcntl
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from data.files import UserError, file_digest
from model.checkpoint import digest, open_tensors, read_file, save_file, weight_files
from training.options import OPTIONS, flag, same_again
from training.processes import Stopped


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
    """Writes one state and drops all others of its stage but the one before.

    `parameters` {name: parameter} are those that train, `rngs` one `rng_state` per process, `facts` whatever of JSON
    goes with them. Raises Stopped, and writes nothing, where a weight or moment is not finite.
    """
    tensors = {f"parameter.{name}": value.detach().cpu() for name, value in parameters.items()}
    for name, value in parameters.items():
        for moment, tensor in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = tensor.detach().cpu()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Stopped(f"{name} is not finite after step {step}; no state is written")
    for rank, states in enumerate(rngs):
        for name, tensor in states.items():
            tensors[f"rng.{rank}.{name}"] = tensor.cpu()

    folder = Path(folder)
    draft = folder / f".{stage}-{step:08d}.draft"
    save_file(draft, tensors, {"stage": stage, "step": step, "facts": facts})
    path = draft.rename(folder / f"{stage}-{step:08d}-{file_digest(draft)}.safetensors")
    others = [other for other in saved_states(folder, stage) if other != path]
    # A later one is damaged, or the run would have gone on from it; of one step, this state knows more than another.
    before = [other for other in others if other.name < f"{stage}-{step:08d}"]
    for old in {*others} - {*before[-1:]}:
        old.unlink()


def saved_states(folder, stage):
    """The states of a stage, oldest first."""
    return sorted(Path(folder).glob(f"{stage}-*.safetensors"))


def newest_state(folder, stage, say=print):
    """The newest undamaged state's (path, header), or (None, None).

    Damaged ones are named through `say`, left alone.
    """
    paths = saved_states(folder, stage)
    for path in reversed(paths):
        if file_digest(path) == path.stem.rsplit("-", 1)[1]:
            return path, read_file(path)[1]
        say(f"{path}: damaged, "
            + ("going back to the state before it" if path != paths[0] else "and no state before it is left"))
    return None, None


def restore_state(path, parameters, optimizer, rank, device):
    """Puts back the state in a file that `newest_state` found."""
    tensors, _ = read_file(path)
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


def drop_states(folder, stage):
    """Removes all states of a stage."""
    for path in saved_states(folder, stage):
        path.unlink()


def finished(run, stage, plan, settings, say):
    """The counters of a stage that has nothing left to do; None where it has, or was never begun.

    Raises UserError where it was begun with other settings, or its checkpoint is gone.
    """
    _, header = newest_state(run / "state", stage.name, say)
    if header is None:
        return None
    if changes := differences(header["facts"]["settings"], settings):
        raise UserError(f"{run}: {stage.name} was begun with other settings: {'; '.join(changes)}; "
                        "give the same again, or start over with --fresh")
    if header["step"] < plan.steps or header["facts"]["validated"] < plan.steps:
        return None
    if not (run / stage.checkpoint).is_file():
        raise UserError(f"{run / stage.checkpoint}: is gone, though its run is finished; start over with --fresh")
    return header["facts"]


# ---------------------------------------------------------------------------------------------------------------------
# What must be the same again


def settings_of(stage, args, processes, prepared):
    """What must be the same again when a run of one stage goes on: {option, or what it is built on: value}."""
    return {**same_again(args), "the number of processes": processes.world, "the data set": data_digest(prepared),
            **stage.foundations(args)}


def differences(before, now):
    """What stands in the way of going on, in words: the state's settings against those of this command.

    A state from before an option was made has its default; one that was recorded only later counts as given again.
    """
    was = {flag(option.name): option.default for option in OPTIONS.values()} | before
    later = {flag(option.name) for option in OPTIONS.values() if option.same == "later"} - before.keys()
    return [f"{name} was {was.get(name)}, now {value}" for name, value in now.items()
            if name not in later and was.get(name) != value]


def data_digest(prepared):
    """A short name of a prepared data set: all of studies.jsonl, and 1,024 evenly spaced pixels."""
    sha = hashlib.sha256((prepared.folder / "studies.jsonl").read_bytes())
    sha.update(json.dumps(prepared.images.shape).encode())
    pixels = np.empty(1024, np.uint8)
    for i, position in enumerate(np.linspace(0, math.prod(prepared.images.shape) - 1, len(pixels)).astype(np.int64)):
        prepared.images.read(int(position), pixels[i:i + 1])
    sha.update(pixels.tobytes())
    return sha.hexdigest()[:16]


def weights_digest(*folders_or_files):
    """A short name of weights on the disk, as `model.checkpoint.digest` has it; cheap, for files are memory-mapped."""
    names = []
    for path in map(Path, folders_or_files):
        tensors = {}
        for file in weight_files(path) if path.is_dir() or path.suffix != ".safetensors" else [path]:
            tensors.update(open_tensors(file))
        names.append(digest(tensors))
    return "+".join(names)


class Lock:
    """Two runs into one folder would spoil each other. A process's end releases its lock, whatever ended it."""

    def __init__(self, folder, program="train.py", option="--run"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(folder / ".lock", "w")
        except OSError as error:
            raise UserError(f"--run {folder}: can't be made or written ({error.strerror}); "
                            "name another folder") from None
        try:
            # lockf's lock, unlike flock's, is not shared by loader processes that outlive a killed run for a moment
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another {program} is writing there; "
                            f"wait for it, or give another {option}") from None

    def close(self):
        self.file.close()


def remove_leftovers(run):
    """Half-written files that a killed process could not remove."""
    for path in [*run.glob(".*.tmp"), *run.glob("state/.*.tmp"), *run.glob("state/.*.draft")]:
        path.unlink()
