"""Mistral against transformers on the same random weights, cached against uncached, and the 7B shape without memory."""

import json
import random

import pytest
import torch
import transformers
from safetensors.torch import load_file

from data.files import UserError
from model import checkpoint
from model.mistral import Mistral, MistralConfig

SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, rms_norm_eps=1e-5, sliding_window=None)
SHAPES = {"two queries a key": {}, "as many keys as queries": dict(num_key_value_heads=4),
          "one key": dict(num_key_value_heads=1),
          "theta 1e6": dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
          "explicit head width": dict(head_dim=24), "tied": dict(tie_word_embeddings=True),
          "window of 7": dict(sliding_window=7), "window of 1": dict(sliding_window=1),
          "window as long as the text": dict(sliding_window=19), "window longer": dict(sliding_window=64)}


def reference(folder, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = transformers.MistralConfig(**{**SMALL, **changes})
    model = transformers.MistralForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=1.0 if weight.dim() == 1 else 0.0, std=0.3)
    model.to(dtype).save_pretrained(folder)
    # Read again: .to(bfloat16) also rounded the rotary frequencies, which stay fp32 in a model that was loaded.
    return transformers.MistralForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_equals_transformers_in_many_shapes(tmp_path, changes):
    theirs = reference(tmp_path, **changes)
    ours = Mistral.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (3, 19))
    expected = theirs(ids).logits
    assert expected.std() > 0.5
    assert (ours(ids=ids) - expected).abs().max() < 5e-5
    embeds = torch.randn(2, 19, 32)
    assert (ours(embeds=embeds) - theirs(inputs_embeds=embeds).logits).abs().max() < 5e-5
    assert torch.equal(ours(embeds=ours.embed(ids)), ours(ids=ids))

    cache, chunks, start = ours.new_cache(3, 19), [], 0
    for size in (5, 1, 4, 1, 1, 7):                        # the prompt, tokens one by one, and several at once
        chunks.append(ours(ids=ids[:, start:start + size], cache=cache))
        start += size
    assert (torch.cat(chunks, dim=1) - expected).abs().max() < 5e-5
    assert cache.used == 19


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [False, True])
def test_one_file_or_shards_in_either_type(tmp_path, dtype, shards):
    theirs = reference(tmp_path / "whole", dtype)
    folder = tmp_path / "whole"
    if shards:
        folder = tmp_path / "shards"
        theirs.save_pretrained(folder, max_shard_size="9KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    ids = torch.randint(0, 97, (2, 9))
    kept = Mistral.from_pretrained(folder)
    assert {weight.dtype for weight in kept.parameters()} == {dtype}
    theirs = transformers.MistralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = Mistral.from_pretrained(folder, dtype=torch.float32).eval()
    assert (ours(ids=ids) - theirs(ids).logits).abs().max() < 5e-5
    assert checkpoint.digest(kept) == checkpoint.digest(ours)


@torch.no_grad()
def test_bf16_is_as_near_as_bf16_allows(tmp_path):
    theirs = reference(tmp_path, torch.bfloat16)
    ids = torch.randint(0, 97, (2, 9))
    ours = Mistral.from_pretrained(tmp_path).eval()(ids=ids)
    exact = Mistral.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids=ids)
    assert ours.dtype == torch.bfloat16
    # Two roundings of one computation: ours may err at most about as much as theirs.
    assert (ours - exact).norm() < 1.5 * (theirs(ids).logits - exact).norm() + 1e-3


@torch.no_grad()
def test_a_tied_head_in_the_file_is_dropped_and_an_absent_one_missed(tmp_path):
    theirs = reference(tmp_path, tie_word_embeddings=True)
    state = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in state
    head = state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    checkpoint.write_safetensors(tmp_path / "model.safetensors", state, {"format": "pt"})
    ids = torch.randint(0, 97, (2, 9))
    assert (Mistral.from_pretrained(tmp_path).eval()(ids=ids) - theirs(ids).logits).abs().max() < 5e-5
    del state["lm_head.weight"], head
    checkpoint.write_safetensors(tmp_path / "model.safetensors", state, {"format": "pt"})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(UserError, match="- lm_head.weight"):
        Mistral.from_pretrained(tmp_path)


def test_what_is_saved_is_read_by_transformers(tmp_path):
    torch.manual_seed(0)
    for changes in ({}, {"tie_word_embeddings": True, "sliding_window": None, "rope_theta": 1e6, "head_dim": 10}):
        config = MistralConfig(**{**SMALL, "head_dim": 8, "sliding_window": 5, **changes})
        ours = Mistral(config).eval()
        with torch.no_grad():
            for weight in ours.parameters():
                weight.normal_(std=0.4)
        ours.save_pretrained(tmp_path)
        theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path).eval()
        ids = torch.randint(0, 97, (2, 9))
        with torch.no_grad():
            assert (ours(ids=ids) - theirs(ids).logits).abs().max() < 5e-5
        assert Mistral.from_pretrained(tmp_path).config == config


def test_the_published_configs_and_the_7b_shape():
    v01 = {"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
           "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
           "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
           "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
           "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000}
    assert MistralConfig.from_json(v01) == MistralConfig()
    v02 = MistralConfig.from_json({**v01, "rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0})
    assert v02.sliding_window is None and v02.rope_theta == 1e6
    with torch.device("meta"):
        ours, theirs = Mistral(v02), transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL_7B))
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(weight.numel() for weight in ours.parameters()) == 7_241_732_096
    logits = ours(ids=torch.zeros(1, 5, dtype=torch.long, device="meta"))
    assert logits.shape == (1, 5, 32000)


SMALL_7B = dict(vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8)


@torch.no_grad()
def test_a_row_alone_equals_the_row_in_a_batch(tmp_path):
    reference(tmp_path)
    ours = Mistral.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (4, 12))
    assert torch.allclose(ours(ids=ids)[2:3], ours(ids=ids[2:3]), atol=2e-5)


def test_recomputing_gives_the_same_gradients_also_under_autocast(tmp_path):
    reference(tmp_path)
    ours = Mistral.from_pretrained(tmp_path).train()
    ids = torch.randint(0, 97, (2, 9))
    for autocast, tolerance in ((False, 1e-5), (True, 1e-5)):
        gradients = []
        for ours.checkpoint in (False, True):
            ours.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = ours.logits(ours.hidden(ids=ids)[:, 3:])
            torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 3:].flatten()).backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in ours.parameters()]))
        assert gradients[0].abs().max() > 0 and torch.allclose(*gradients, atol=tolerance)


@torch.no_grad()
def test_the_cache_says_when_it_is_full(tmp_path):
    reference(tmp_path)
    ours = Mistral.from_pretrained(tmp_path).eval()
    cache = ours.new_cache(2, 4)
    ours(ids=torch.zeros(2, 3).long(), cache=cache)
    with pytest.raises(ValueError, match="room for 4"):
        ours(ids=torch.zeros(2, 2).long(), cache=cache)
    with pytest.raises(ValueError, match="either"):
        ours()


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"num_key_value_heads": 3}, {"head_dim": 7},
                                    {"rope_scaling": {"type": "linear", "factor": 2}}, {"sliding_window": -1},
                                    {"rope_parameters": {"rope_type": "yarn"}}, {"sliding_window": "no"},
                                    {"model_type": "llama"}, {"hidden_size": 2**40}, {"num_attention_heads": 0}])
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path, change):
    reference(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="config.json"):
        Mistral.from_pretrained(tmp_path)


def test_random_configs_agree_about_shapes(tmp_path):
    rng = random.Random(0)
    for _ in range(8):
        heads = rng.choice([1, 2, 4, 6])
        groups = rng.choice([g for g in (1, 2, 3, 6) if heads % g == 0])
        changes = dict(num_attention_heads=heads, num_key_value_heads=groups,
                       head_dim=rng.choice([None, 4, 10]), hidden_size=heads * rng.choice([4, 8]),
                       num_hidden_layers=rng.choice([1, 2]), sliding_window=rng.choice([None, 2, 5, 30]),
                       tie_word_embeddings=rng.random() < 0.5)
        theirs = reference(tmp_path, **changes)
        ours, ids = Mistral.from_pretrained(tmp_path).eval(), torch.randint(0, 97, (2, 8))
        with torch.no_grad():
            assert (ours(ids=ids) - theirs(ids).logits).abs().max() < 5e-5, changes


def test_positions_and_mask_are_given_together(tmp_path):
    reference(tmp_path)
    with pytest.raises(ValueError, match="positions and mask"):
        Mistral.from_pretrained(tmp_path).hidden(ids=torch.zeros(1, 3, dtype=torch.long), positions=torch.arange(3))
