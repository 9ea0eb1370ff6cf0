"""config.json of a published folder, read into a network's configuration, or refused in one line.

Sizes are checked before anything is built: a damaged or foreign file must end in its name, not in a traceback.
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
    """The fields of a configuration class out of a config.json's object, checked; other keys are ignored.

    only: {key: the one value that this program honours}; a key that is absent has it. optional: fields that may be
    absent, their defaults being Hugging Face's. Raises UserError.
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
    """Whether a config.json can mean this: sizes and factors are positive and bounded, rates in [0, 1); NaN is none."""
    if kind is tuple:
        return isinstance(value, tuple) and value != () and all(plausible(size, int, rate) for size in value)
    if type(value) is not kind or kind is bool:
        return type(value) is kind
    if kind is int:
        return 0 < value <= 2**24
    return 0 <= value < 1 if rate else 0 < value <= 1e9
