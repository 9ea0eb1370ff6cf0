"""Reads a published folder's config.json into a network's configuration, or refuses it with a UserError.

Sizes are checked before anything is built, so that a damaged or unsuitable file gives an error line, not a traceback.
"""

from dataclasses import fields
from pathlib import Path

from data.files import UserError, read_json_object


def read_config(config_class, folder):
    """The configuration in a folder's config.json. Raises UserError, naming the file."""
    path = Path(folder) / "config.json"
    json_object = read_json_object(path)
    method = quantisation(json_object)
    if method:
        raise UserError(f"{path}: the weights are quantised ({method}), which is not supported; take the model they "
                        "were made from, whose weights are in bf16, fp16 or fp32")
    try:
        return config_class.from_json(json_object)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def quantisation(json_object):
    """How weights were quantised (awq, gptq, bitsandbytes, fp8 …) as config.json has it, or None."""
    settings = json_object.get("quantization_config") or json_object.get("compression_config")
    if not settings:
        return None
    named = isinstance(settings, dict) and settings.get("quant_method")
    return named if isinstance(named, str) else "by a method that config.json does not name"


def config_values(config_class, json_object, only, optional=()):
    """{field: value} for a configuration class, checked, from a config.json's object; other keys are ignored.

    only: {key: the one supported value}, which an absent key has by default. optional: fields that may be absent, whose
    defaults in the class are Hugging Face's. Raises UserError.
    """
    for key, value in only.items():
        if json_object.get(key, value) != value:
            raise UserError(f"{key} is {json_object[key]!r}, only {value!r} is supported; take another model")
    values = {}
    for field in fields(config_class):
        if field.name not in json_object:
            if field.name in optional:
                continue
            raise UserError(f"{field.name} is missing; take the config.json that belongs to the weights")
        value, kind = json_object[field.name], type(field.default)
        value = tuple(value) if kind is tuple and isinstance(value, list) else value
        value = float(value) if kind is float and type(value) is int and abs(value) < 2**63 else value
        if not plausible(value, kind, rate=field.name.endswith(("_prob", "_rate"))):
            raise UserError(f"{field.name} is {value!r}; take the config.json that belongs to the weights")
        values[field.name] = value
    if sum(values.get("depths", ())) + values.get("num_hidden_layers", 0) > 1000:
        raise UserError("more than 1,000 layers; take the config.json that belongs to the weights")
    return values


def plausible(value, kind, rate):
    """Whether a value is possible: sizes and factors must be positive and bounded, rates in [0, 1), and none NaN."""
    if kind is tuple:
        return isinstance(value, tuple) and value != () and all(plausible(size, int, rate) for size in value)
    if type(value) is not kind or kind is bool:
        return type(value) is kind
    if kind is int:
        return 0 < value <= 2**24
    return 0 <= value < 1 if rate else 0 < value <= 1e9
