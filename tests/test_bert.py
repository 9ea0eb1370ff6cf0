"""BERT against transformers on the same random weights."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data.files import UserError
from model import checkpoint
from model.bert import RENAME, Bert, BertConfig
from model.config import read_config

SMALL = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             max_position_embeddings=40)


def reference(folder, kind="BertModel", **changes):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.eval().save_pretrained(folder)
    return getattr(model, "bert", model)


@torch.no_grad()
def difference(ours, theirs, rows=5, tokens=17):
    """Over the tokens that are no padding."""
    torch.manual_seed(1)
    ids = torch.randint(0, 99, (rows, tokens))
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1))
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert expected[mask].std() > 0.1
    return (ours.eval()(ids, mask) - expected)[mask].abs().max().item()


@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining", "BertForMaskedLM",
                                  "BertForSequenceClassification"])
def test_equals_transformers_with_and_without_prefix_pooler_and_heads(tmp_path, kind):
    theirs = reference(tmp_path, kind)
    if kind == "BertForSequenceClassification":            # a head that nobody named is no accident to pass over
        with pytest.raises(UserError, match=r"\+ classifier.bias, \+ classifier.weight"):
            Bert.from_pretrained(tmp_path)
    else:
        assert difference(Bert.from_pretrained(tmp_path), theirs) < 1e-5


@pytest.mark.parametrize("sizes", [
    dict(num_attention_heads=1, num_hidden_layers=1), 
    dict(num_attention_heads=8, num_hidden_layers=5, intermediate_size=20),
    dict(hidden_size=48, num_attention_heads=3, intermediate_size=192, type_vocab_size=1),
    dict(type_vocab_size=4, layer_norm_eps=1e-5)],
    ids=["one head and layer", "deep", "wide", "four types"])
def test_other_shapes(tmp_path, sizes):
    theirs = reference(tmp_path, **sizes)
    assert difference(Bert.from_pretrained(tmp_path), theirs) < 1e-5


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_reads_a_pickle_as_clinicalbert_has_it(tmp_path, zipped):
    theirs = reference(tmp_path, "BertForPreTraining")
    state = load_file(tmp_path / "model.safetensors")
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (tmp_path / "model.safetensors").unlink()
    assert difference(Bert.from_pretrained(tmp_path), theirs) < 1e-5
    assert {weight.dtype for weight in Bert.from_pretrained(tmp_path, torch.float64).parameters()} == {torch.float64}


def test_reads_gamma_and_beta(tmp_path):
    theirs = reference(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
               for name, tensor in state.items()}, tmp_path / "model.safetensors")
    assert difference(Bert.from_pretrained(tmp_path), theirs) < 1e-5


def test_serves_a_chexbert_checkpoint(tmp_path):
    theirs = reference(tmp_path)
    state = {f"module.bert.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    state["module.linear_heads.0.weight"] = torch.zeros(4, 32)
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": optimizer}, tmp_path / "chexbert.pth")
    config = read_config(BertConfig, tmp_path)
    rename = {r"^module\.linear_heads\.": None, **RENAME}
    ours = checkpoint.load_file(lambda: Bert(config), tmp_path / "chexbert.pth", rename)
    assert difference(ours, theirs) < 1e-5


def test_bert_base_at_full_size(tmp_path):
    torch.manual_seed(0)
    ours = Bert(BertConfig())
    ours.save_pretrained(tmp_path)
    theirs = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert difference(ours, theirs, rows=2, tokens=64) < 1e-5
    assert Bert.from_pretrained(tmp_path).config == ours.config
    assert sum(weight.numel() for weight in ours.parameters()) == 107_719_680      # BERT-base cased without its pooler


def test_a_row_alone_equals_the_row_in_a_padded_batch(tmp_path):
    reference(tmp_path)
    ours = Bert.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 99, (3, 20))
    mask = torch.ones(3, 20).long()
    mask[1, 6:] = 0
    alone = ours(ids[1:2, :6], torch.ones(1, 6))
    assert torch.allclose(ours(ids, mask)[1, :6], alone[0], atol=1e-5)


def test_dropout_only_in_training(tmp_path):
    reference(tmp_path)
    ours = Bert.from_pretrained(tmp_path)
    ids, mask = torch.randint(0, 99, (2, 9)), torch.ones(2, 9)
    ours.eval()
    assert torch.equal(ours(ids, mask), ours(ids, mask))
    ours.train()
    assert not torch.equal(ours(ids, mask), ours(ids, mask))


def test_the_defaults_are_clinicalberts_published_config():
    published = {"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
                 "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
                 "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
                 "num_hidden_layers": 12, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 28996}
    assert BertConfig.from_json(published) == BertConfig()


def test_more_tokens_than_positions_is_an_error():
    ours = Bert(BertConfig(**SMALL))
    with pytest.raises(ValueError, match="40 positions"):
        ours(torch.zeros(1, 41).long(), torch.ones(1, 41))


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"position_embedding_type": "relative_key"},
                                    {"is_decoder": True}, {"num_attention_heads": 5}, {"hidden_size": "32"},
                                    {"vocab_size": None}, {"model_type": "roberta"}, {"num_hidden_layers": 10**9}])
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path, change):
    reference(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="config.json"):
        Bert.from_pretrained(tmp_path)
