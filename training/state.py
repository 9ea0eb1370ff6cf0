"""Saved states, from which a run resumes bit for bit: weights, optimiser, step, and every process's random generators.

A state is one safetensors file, runs/…/state/STAGE-STEP-DIGEST.safetensors, written in one go. The file's name holds
the digest of its bytes, so a damaged file is noticed, and the state before it is used. The last two states are kept.
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
    """States of this process's random generators, {name: uint8 tensor}. Data loading uses none (data/dataset.py)."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states, device):
    """Restores what `rng_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def save_state(folder, stage, step, parameters, optimizer, rngs, facts):
    """Writes one state, and deletes all states of its stage but this one and the one before.

    `parameters` {name: parameter}: the trainable ones; `rngs`: one `rng_state` per process; `facts`: any JSON value,
    stored in the header. Raises Stopped, and writes nothing, if a weight or an optimiser moment is not finite.
    """
    tensors = {f"parameter.{name}": value.detach().cpu() for name, value in parameters.items()}
    for name, value in parameters.items():
        for moment, tensor in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = tensor.detach().cpu()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Stopped(f"{stage}: {name} is not finite after step {step}, so no state is written; start over with "
                          "--fresh and a lower --lr")
    for rank, states in enumerate(rngs):
        for name, tensor in states.items():
            tensors[f"rng.{rank}.{name}"] = tensor.cpu()

    folder = Path(folder)
    draft = folder / f".{stage}-{step:08d}.draft"
    save_file(draft, tensors, {"stage": stage, "step": step, "facts": facts})
    path = draft.rename(folder / f"{stage}-{step:08d}-{file_digest(draft)}.safetensors")
    others = [other for other in saved_states(folder, stage) if other != path]
    # A later state is damaged, else the run had resumed from it; an older state of the same step lacks its validation.
    before = [other for other in others if other.name < f"{stage}-{step:08d}"]
    for old in {*others} - {*before[-1:]}:
        old.unlink()


def saved_states(folder, stage):
    """The states of a stage, oldest first."""
    return sorted(Path(folder).glob(f"{stage}-*.safetensors"))


def newest_state(folder, stage, say=print):
    """(path, header) of the newest undamaged state, or (None, None).

    Damaged states are reported through `say`, and not deleted.
    """
    paths = saved_states(folder, stage)
    for path in reversed(paths):
        if file_digest(path) == path.stem.rsplit("-", 1)[1]:
            return path, read_file(path)[1]
        say(f"{path}: damaged, "
            + ("going back to the state before it" if path != paths[0] else "and there is no older state"))
    return None, None


def restore_state(path, parameters, optimizer, rank, device):
    """Restores parameters, optimiser and random generators from a file that `newest_state` found."""
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
    """Deletes all states of a stage."""
    for path in saved_states(folder, stage):
        path.unlink()


def finished(run, stage, plan, settings, say):
    """The counters of a finished stage; None if the stage is unfinished or was never begun.

    Raises UserError if the stage was begun with other settings, or its checkpoint is missing.
    """
    _, header = newest_state(run / "state", stage.name, say)
    if header is None:
        return None
    if changes := differences(header["facts"]["settings"], settings):
        raise UserError(f"{run}: {stage.name} was begun with other settings: {'; '.join(changes)}; "
                        "give the same settings again, or start over with --fresh")
    if header["step"] < plan.steps or header["facts"]["validated"] < plan.steps:
        return None
    if not (run / stage.checkpoint).is_file():
        raise UserError(f"{run / stage.checkpoint}: is missing, though its run is finished; start over with --fresh")
    return header["facts"]


# ---------------------------------------------------------------------------------------------------------------------
# Settings that a resumed run must share with its saved states


def settings_of(stage, args, processes, prepared):
    """{option, or name of what the stage is built on: value}: all that must be the same when a stage is resumed."""
    return {**same_again(args), "the number of processes": processes.world, "the data set": data_digest(prepared),
            **stage.foundations(args)}


def differences(before, now):
    """["--k was 3, now 5", …]: the settings of a state that differ from this command's.

    An option that the state does not record counts as its default, or, if marked "later" in the table, as unchanged.
    """
    was = {flag(option.name): option.default for option in OPTIONS.values()} | before
    later = {flag(option.name) for option in OPTIONS.values() if option.same == "later"} - before.keys()
    return [f"{name} was {was.get(name)}, now {value}" for name, value in now.items()
            if name not in later and was.get(name) != value]


def data_digest(prepared):
    """A digest of a prepared data set: of all of studies.jsonl, and of 1,024 evenly spaced pixels."""
    sha = hashlib.sha256((prepared.folder / "studies.jsonl").read_bytes())
    sha.update(json.dumps(prepared.images.shape).encode())
    pixels = np.empty(1024, np.uint8)
    for i, position in enumerate(np.linspace(0, math.prod(prepared.images.shape) - 1, len(pixels)).astype(np.int64)):
        prepared.images.read(int(position), pixels[i:i + 1])
    sha.update(pixels.tobytes())
    return sha.hexdigest()[:16]


def weights_digest(*folders_or_files):
    """The `model.checkpoint.digest` of weights on the disk; cheap, since the files are memory-mapped."""
    names = []
    for path in map(Path, folders_or_files):
        tensors = {}
        for file in weight_files(path) if path.is_dir() or path.suffix != ".safetensors" else [path]:
            tensors.update(open_tensors(file))
        names.append(digest(tensors))
    return "+".join(names)


class Lock:
    """A lock on a folder, since two runs that write into one folder would damage each other's files.

    The end of the process releases the lock, however the process ends. Raises UserError.
    """

    def __init__(self, folder, program="train.py", option="--run"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(folder / ".lock", "w")
        except OSError as error:
            raise UserError(f"{option} {folder}: the folder cannot be created or written ({error.strerror}); "
                            "give another folder") from None
        try:
            # Unlike flock's, lockf's lock is not inherited by loader processes, which may outlive a killed run shortly
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{option} {folder}: another {program} is writing into this folder; "
                            "wait until it ends, or give another folder") from None

    def close(self):
        self.file.close()


def remove_leftovers(run):
    """Deletes half-written files that a killed process left behind."""
    for path in [*run.glob(".*.tmp"), *run.glob("state/.*.tmp"), *run.glob("state/.*.draft")]:
        path.unlink()
