"""Weights as people have them, from public reports; docs/field-cases.md names the source of each."""

import json

import pytest
import transformers
from safetensors.torch import load_file, save_file

from data.files import UserError
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert
from model.lora import add_lora, load_peft, save_peft
from model.mistral import Mistral, MistralConfig
from tests import tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "1" * 64 + "\nsize 134\n"


@pytest.fixture
def weights(tmp_path):
    tiny.write_weights(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, reader", [
    ("mistral/model.safetensors", Mistral), ("mistral/tokenizer.model", SentencePiece), ("bert/vocab.txt", WordPiece),
    ("bert/pytorch_model.bin", Bert)])
def test_a_git_lfs_pointer_is_called_by_its_name(weights, name, reader):
    path = weights / name
    (path.parent / "model.safetensors").unlink(missing_ok=path.suffix == ".bin")
    path.write_text(POINTER)
    with pytest.raises(UserError) as error:
        reader.from_pretrained(path.parent)
    assert str(path) in str(error.value) and "run git lfs pull" in str(error.value)


def test_llama_3s_tokenizer_model_is_no_sentencepiece(weights):
    (weights / "mistral/tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(UserError, match="tokenizer.model: not a SentencePiece model"):
        SentencePiece.from_pretrained(weights / "mistral")


def test_safetensors_without_metadata_are_read(weights):
    path = weights / "mistral/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path)
    Mistral.from_pretrained(weights / "mistral")


@pytest.mark.parametrize("settings, theta", [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4}, 5e5),
    ({"rope_parameters": None, "rope_theta": 1e6}, 1e6), ({"rope_theta": 1e6, "rope_scaling": None}, 1e6), ({}, 1e4)])
def test_the_rotation_is_that_of_transformers_wherever_it_stands(weights, settings, theta):
    config = json.loads((weights / "mistral/config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("rope")} | settings
    assert MistralConfig.from_json(config).rope_theta == theta
    if int(transformers.__version__.split(".")[0]) >= 5 and settings:
        assert transformers.MistralConfig(**config).rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize("old, new", [("base_model.model.model.", "base_model.model."), (".weight", ".default.weight")])
def test_an_adapter_under_other_names_is_refused_not_passed_over(tmp_path, old, new):
    model = tiny.mistral(340)
    add_lora(model, rank=2)
    save_peft(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name.replace(old, new): tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(UserError, match="the adapter does not fit the model"):
        load_peft(tiny.mistral(340), tmp_path)
