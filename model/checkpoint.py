"""Weights on disk: reads published folders strictly, reads and writes this program's checkpoints as single files.

A published folder holds `config.json` and either `model.safetensors`, shards with `model.safetensors.index.json`, or
`pytorch_model.bin` (alone or with an index). Tensors are memory-mapped, so loading costs no memory until a weight is
used. A change of type is done piece by piece, so that a tensor is never in memory twice.
"""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data.files import UserError, read_json_object, refuse_pointer, whole_file

WINDOW = 4 * 2**20                     # bytes of the file that are resident at once while a tensor changes its type
HEADER_KEY = "trrg"                    # the metadata key under which our own files hold their JSON header
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int8, torch.uint8)          # of packed weights; other published files hold int64 only
QUANTISED = "quantised weights are not supported; take the model they were made from, in bf16, fp16 or fp32"


@dataclass(frozen=True)
class Source:
    """Where a weight comes from: the file, the tensor's name in it, and for a part of a tensor its first row."""
    file: Path
    name: str
    tensor: torch.Tensor
    first_row: int = 0


def load(build, folder, rename, dtype=None):
    """Builds a module and loads the weights in a folder; every tensor must be there exactly once.

    build() returns the module. It runs on the meta device, without memory for weights, so all its buffers must be in
    the file. rename: a table as in `new_names`, or a function from the names in the files to such a table. dtype: the
    floating type of the loaded weights; None: the type in the file. Raises UserError, which names the tensors only in
    the model (-) and only in the file (+), or the tensor whose shape is wrong.
    """
    files = weight_files(folder)
    stored = [Source(file, name, tensor) for file in files for name, tensor in open_tensors(file).items()]
    return assign(build, stored, files[0] if len(files) == 1 else Path(folder), rename, dtype)


def load_file(build, path, rename, dtype=None):
    """`load` for a single weights file of any name, such as CheXbert's."""
    path = Path(path)
    stored = [Source(path, name, tensor) for name, tensor in open_tensors(path).items()]
    return assign(build, stored, path, rename, dtype)


def load_state(build, state, path, rename=None, dtype=None):
    """`load` for tensors that are read already, {name: tensor}; path: their file, for error messages."""
    stored = [Source(Path(path), name, tensor) for name, tensor in state.items()]
    return assign(build, stored, path, rename or {}, dtype)


def assign(build, stored, origin, rename, dtype):
    """Checks every name, shape and type, then puts all tensors into the module."""
    try:
        with torch.device("meta"):
            module = build()
    except (RuntimeError, TypeError) as error:              # sizes whose product is beyond 64 bits
        raise UserError(f"{origin}: no such network can be built ({one_line(error)}); check its config.json") from error
    expected = module.state_dict()
    table = rename([source.name for source in stored]) if callable(rename) else rename
    sources = by_new_name(stored, table)

    # Names first: a wrong file differs in hundreds of names, and the listed names show which file it is.
    if expected.keys() != sources.keys():
        differences = [listing("-", expected.keys() - sources.keys(), "only in the model"),
                       listing("+", sources.keys() - expected.keys(), "only in the file")]
        remedy = QUANTISED if any(source.tensor.dtype in INTEGERS for source in stored) \
            else "check that config.json belongs to these weights"
        raise UserError(f"{origin}: does not fit {type(module).__name__}; {'; '.join(filter(None, differences))}; "
                        f"{remedy}")
    for name, source in sources.items():
        if source.tensor.shape != expected[name].shape:
            raise UserError(f"{source.file}: {source.name} has shape {list(source.tensor.shape)}, the model needs "
                            f"{list(expected[name].shape)}; check that config.json belongs to these weights")
        if expected[name].is_floating_point() and source.tensor.dtype not in FLOATS:
            raise UserError(f"{source.file}: {source.name} holds {source.tensor.dtype}; {QUANTISED}")

    state = {name: converted(source, dtype) for name, source in sources.items()}
    module.load_state_dict(state, assign=True)
    return module


def by_new_name(stored, table):
    """{the module's name: Source}, with fused tensors split. Raises UserError for a weight that is there twice."""
    sources = {}
    for source in stored:
        names = new_names(source.name, table)
        if len(names) > 1 and (not source.tensor.shape or len(source.tensor) % len(names)):
            raise UserError(f"{source.file}: {source.name} cannot be split into {len(names)} equal parts; download the "
                            "file again")
        rows = len(source.tensor) // len(names) if len(names) > 1 else 0
        for index, name in enumerate(names):
            if name in sources:
                raise UserError(f"{source.file}: {source.name} is there twice, also as {sources[name].name} in "
                                f"{sources[name].file}; download the folder again")
            part = source.tensor[index * rows:(index + 1) * rows] if rows else source.tensor
            sources[name] = Source(source.file, source.name, part, index * rows)
    return sources


def converted(source, dtype):
    """A weight in type `dtype`; if it has this type already, the memory-mapped tensor itself.

    Pages of a mapped file, once read, stay in memory until the mapping is closed, so the file is opened again for each
    window. A file in torch.save's format before 1.6 cannot be mapped, and is in memory already.
    """
    tensor, safe = source.tensor, source.file.suffix == ".safetensors"
    if dtype is None or tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    if not tensor.numel() or not tensor.shape or not (safe or zipfile.is_zipfile(source.file)):
        return tensor.to(dtype)
    result = torch.empty(tensor.shape, dtype=dtype)
    rows = max(1, WINDOW * len(tensor) // tensor.nbytes)
    for start in range(0, len(tensor), rows):
        end = min(start + rows, len(tensor))
        if safe:
            with safe_open(source.file, "pt") as file:
                whole = file.get_tensor(source.name)
        else:
            whole = open_pickle(source.file)[source.name]
        result[start:end] = whole[source.first_row + start:source.first_row + end]
    return result


def new_names(name, rename):
    """The module's names for a name in the file: usually one, none if it is dropped, several if the tensor is fused.

    rename: {pattern: replacement}, applied in order. The replacement None drops the tensor on purpose; a tuple of names
    splits it into equal parts along the first dimension.
    """
    for pattern, replacement in rename.items():
        if re.search(pattern, name):
            if replacement is None:
                return []
            if isinstance(replacement, tuple):
                return [re.sub(pattern, part, name) for part in replacement]
            name = re.sub(pattern, replacement, name)
    return [name]


def embedding(rows, width):
    """An nn.Embedding that the model initialises: nn.Embedding's own way imports 150 MB of code on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def listing(sign, names, what, most=5):
    if not names:
        return ""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: " + ", ".join(f"{sign} {name}" for name in sorted(names)[:most]) + rest


def one_line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- reading ----------------------------------------------------------------------------------------------------------

def weight_files(folder):
    """The files that hold a folder's weights, safetensors before pickles. Raises UserError when a shard is missing."""
    folder = Path(folder)
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            weight_map = read_json_object(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map or \
                    not all(isinstance(file, str) and file == Path(file).name for file in weight_map.values()):
                raise UserError(f"{index}: has no usable weight_map; download it again")
            shards = [folder / name for name in sorted(set(weight_map.values()))]
            for shard in shards:
                if not shard.is_file():
                    raise UserError(f"{shard}: this shard is missing; download it, {index.name} names it")
            return shards
    raise UserError(f"{folder}: holds no model.safetensors and no pytorch_model.bin (nor their indexes); "
                    "give a folder in Hugging Face's layout")


def open_tensors(path):
    """{name: tensor} of one weights file, memory-mapped where the format allows. Raises UserError."""
    path = Path(path)
    return open_safetensors(path)[0] if path.suffix == ".safetensors" else open_pickle(path)


def open_safetensors(path):
    """({name: tensor}, metadata) of a safetensors file, memory-mapped; writing to a tensor never changes the file.

    Raises UserError.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not a whole safetensors file ({one_line(error)}); "
                        "download or write it again") from None


def open_pickle(path):
    """{name: tensor} of a file written by torch.save: a model's state, or a training checkpoint that contains one.

    Only tensors and plain containers are unpickled. Raises UserError for anything else, which is never run.
    """
    try:
        # torch.save's format before 1.6 is no zip archive and can't be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # the unpickler may raise almost any class for a damaged file
        refuse_pointer(path)
        raise UserError(f"{path}: refused, for it is damaged or holds more than tensors ({one_line(error)}); "
                        "download it again, or take the .safetensors file") from None
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or \
            not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise UserError(f"{path}: holds no dictionary of tensors; give a model's state, saved by torch.save")
    return {name: tensor.detach() for name, tensor in state.items()}


def read_file(path):
    """(tensors, header) of a file written by `save_file`; the tensors are memory-mapped. Raises UserError."""
    tensors, metadata = open_safetensors(Path(path))
    try:
        header = json.loads(metadata[HEADER_KEY])
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path}: not a checkpoint of this program; give a file that train.py wrote") from None
    return tensors, header


# --- writing ----------------------------------------------------------------------------------------------------------

def save_file(path, tensors, header):
    """Writes {name: tensor} and a JSON header as one safetensors file, whole or not at all."""
    write_safetensors(path, tensors, {HEADER_KEY: json.dumps(header)})


def save_folder(folder, module, config):
    """Writes a module in Hugging Face's layout: config.json, then model.safetensors, whose presence marks the end."""
    with whole_file(Path(folder) / "config.json") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    write_safetensors(Path(folder) / "model.safetensors", module.state_dict(), {"format": "pt"})


def write_safetensors(path, tensors, metadata):
    """Writes a safetensors file tensor by tensor; the library's own writer would need all bytes in memory twice."""
    # Larger elements first, as the library orders them, so that every tensor starts aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout, end = {"__metadata__": metadata}, 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        layout[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(layout).encode()
    head += b" " * (-len(head) % 8)
    with whole_file(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            flat = tensors[name].detach().contiguous().reshape(-1).cpu()
            file.write(flat.view(torch.uint8).numpy().data)


def digest(module):
    """A short fingerprint of a module's weights, the same for bf16 or fp32, any sharding and any file format.

    The first 16 hexadecimal digits of a SHA-256 over each tensor's name, shape and up to 1,024 evenly spaced values,
    rounded to bfloat16. LoRA's tensors are left out, so an adapted model has the digest of its base model.
    """
    sha = hashlib.sha256()
    state = module.state_dict() if isinstance(module, nn.Module) else module
    for name in sorted(name for name in state if ".lora_" not in name):
        tensor = state[name]
        sha.update(f"{name} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        picks = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), 1024), dtype=torch.float64).long()
        values = flat[picks.to(flat.device)].to("cpu", torch.bfloat16)
        sha.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
