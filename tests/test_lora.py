"""LoRA against PEFT, in both directions."""

import json

import peft
import pytest
import torch
import transformers
from torch import nn

from data.files import UserError
from model import checkpoint
from model.lora import LoRALinear, adapters, add_lora, load_lora_state, load_peft, lora_state, merge_lora, save_peft
from model.mistral import Mistral

IDS = torch.randint(0, 97, (2, 11), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    config = transformers.MistralConfig(vocab_size=97, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def ours(base, dtype=None):
    return Mistral.from_pretrained(base, dtype=dtype).eval()


def theirs(base):
    return transformers.MistralForCausalLM.from_pretrained(base).eval()


def shake(module):
    """Gives the adapters an effect."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return module


@torch.no_grad()
@pytest.mark.parametrize("settings", [
    dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    dict(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=True),
    dict(r=3, lora_alpha=5, target_modules=[f"{part}_proj" for part in "q k v o gate up down".split()]),
    dict(r=4, lora_alpha=8, target_modules=r".*layers\.1\.self_attn\.(q|o)_proj"),
    dict(r=4, lora_alpha=8, target_modules=["self_attn.q_proj"], lora_dropout=0.25)],
    ids=["q and v", "rank-stabilised", "all", "a pattern", "a longer name"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_an_adapter_made_by_peft_gives_the_same_logits(base, tmp_path, settings, safe):
    reference = shake(peft.get_peft_model(theirs(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))).eval()
    reference.save_pretrained(tmp_path / "adapter", safe_serialization=safe)
    adapted = load_peft(ours(base), tmp_path / "adapter").eval()
    expected = reference(IDS).logits
    assert (expected - ours(base)(ids=IDS)).abs().max() > 0.01
    assert (adapted(ids=IDS) - expected).abs().max() < 2e-5
    assert all(lora.dropout.p == settings.get("lora_dropout", 0.0) for lora in adapters(adapted).values())
    merged = merge_lora(adapted)
    assert (merged(ids=IDS) - expected).abs().max() < 1e-4 and not adapters(merged)
    assert merged.state_dict().keys() == ours(base).state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_of_ours_loads_in_peft(base, tmp_path, stabilised):
    adapted = shake(add_lora(ours(base), rank=4, alpha=12, dropout=0.1, rank_stabilised=stabilised)).eval()
    save_peft(adapted, tmp_path / "adapter")
    reference = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    assert (reference(IDS).logits - adapted(ids=IDS)).abs().max() < 2e-5
    again = load_peft(ours(base), tmp_path / "adapter").eval()
    assert torch.equal(again(ids=IDS), adapted(ids=IDS))
    assert reference.peft_config["default"].use_rslora == stabilised


@torch.no_grad()
@pytest.mark.parametrize("targets", [r".*layers\.1\.self_attn\.(q|v)_proj", ["layers.0.mlp.up_proj", "k_proj"]])
def test_an_adapter_of_some_layers_comes_back_and_loads_in_peft(base, tmp_path, targets):
    adapted = shake(add_lora(ours(base), targets, rank=4)).eval()
    save_peft(adapted, tmp_path / "adapter")
    assert torch.equal(load_peft(ours(base), tmp_path / "adapter").eval()(ids=IDS), adapted(ids=IDS))
    reference = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    assert (reference(IDS).logits - adapted(ids=IDS)).abs().max() < 2e-5


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_and_rank_0_is_none(base):
    plain = ours(base)(ids=IDS)
    adapted = add_lora(ours(base), rank=4)
    assert torch.equal(adapted.eval()(ids=IDS), plain) and len(adapters(adapted)) == 4
    assert all(lora.lora_A.any() and not lora.lora_B.any() for lora in adapters(adapted).values())
    untouched = ours(base)
    assert add_lora(untouched, rank=0) is untouched and not adapters(untouched)
    assert checkpoint.digest(adapted) == checkpoint.digest(untouched)


def test_dropout_acts_in_training_only_and_on_the_adapter_only(base):
    adapted = shake(add_lora(ours(base), rank=4, dropout=0.5))
    with torch.no_grad():
        adapted.eval()
        assert torch.equal(adapted(ids=IDS), adapted(ids=IDS))
        adapted.train()
        assert not torch.equal(adapted(ids=IDS), adapted(ids=IDS))
        for lora in adapters(adapted).values():
            lora.lora_B.zero_()
        assert torch.equal(adapted(ids=IDS), ours(base)(ids=IDS))


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_adapters_are_fp32_on_a_bf16_base(base, autocast):
    adapted = shake(add_lora(ours(base, torch.bfloat16), rank=4)).eval()
    exact = add_lora(ours(base), rank=4).eval()
    load_lora_state(exact, lora_state(adapted))
    for lora in adapters(adapted).values():
        assert (lora.weight.dtype, lora.lora_A.dtype, lora.lora_B.dtype) == (torch.bfloat16, *[torch.float32] * 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = adapted(ids=IDS)
    assert logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits.float().flatten(), exact(ids=IDS).flatten(), dim=0) > 0.99


def test_gradients_equal_pefts(base):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    reference = shake(peft.get_peft_model(theirs(base), config))
    adapted = add_lora(ours(base), rank=4, alpha=8).train()
    names = {name: name.replace("base_model.model.", "").replace(".default.weight", "")
             for name, weight in reference.named_parameters() if weight.requires_grad}
    state = {names[name]: weight.detach() for name, weight in reference.named_parameters() if name in names}
    load_lora_state(adapted, state)
    reference.train()(IDS).logits.square().mean().backward()
    adapted(ids=IDS).square().mean().backward()
    own = dict(adapted.named_parameters())
    for name, weight in reference.named_parameters():
        if name in names:
            assert weight.grad.any() and torch.allclose(own[names[name]].grad, weight.grad, rtol=1e-3, atol=1e-5), name


def test_the_state_holds_the_adapters_alone_and_goes_back(base):
    adapted, other = shake(add_lora(ours(base), rank=4)), add_lora(ours(base), rank=4)
    state = {name: tensor.clone() for name, tensor in lora_state(adapted).items()}
    assert len(state) == 8 and all(".lora_" in name for name in state)
    load_lora_state(other, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in lora_state(other).items())
    with pytest.raises(UserError, match="rank and targets"):
        load_lora_state(add_lora(ours(base), rank=3), state)
    with pytest.raises(UserError, match="lora_A"):
        load_lora_state(other, dict(list(state.items())[1:]))
    assert all(torch.equal(tensor, state[name]) for name, tensor in lora_state(other).items())


def test_base_weights_keep_their_names_and_are_shared_not_copied():
    linear = nn.Linear(8, 6)
    lora = LoRALinear(linear, rank=2, alpha=2, dropout=0.0)
    assert lora.weight is linear.weight and lora.bias is linear.bias
    assert set(lora.state_dict()) == {"weight", "bias", "lora_A", "lora_B"}
    assert linear.weight.requires_grad                     # freezing is the caller's


def test_it_says_when_a_target_is_not_there(base):
    with pytest.raises(ValueError, match="z_proj"):
        add_lora(ours(base), targets=("q_proj", "z_proj"))
    with pytest.raises(ValueError, match="nothing"):
        add_lora(ours(base), targets=())
    with pytest.raises(ValueError, match="already"):
        add_lora(add_lora(ours(base)))


@pytest.mark.parametrize("change", [
    {"peft_type": "LOHA"}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"r": 3},
    {"r": "4"}, {"r": 0}, {"target_modules": ["q_proj"]}, {"target_modules": ["zz"]}, {"target_modules": [5]},
    {"target_modules": "(("},
    {"rank_pattern": {"q_proj": 8}}, {"lora_dropout": 2}, {"layers_to_transform": [0]}, {"lora_alpha": None},
    {"lora_alpha": float("nan")}, {"lora_alpha": 10**400}])
def test_an_adapter_that_does_not_fit_is_refused_and_the_model_left_alone(base, tmp_path, change):
    folder = tmp_path / "adapter"
    save_peft(shake(add_lora(ours(base), rank=4)), folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    model = ours(base)
    with pytest.raises(UserError, match="adapter"):
        load_peft(model, folder)
    assert not adapters(model)
    with torch.no_grad():
        assert torch.equal(model(ids=IDS), ours(base)(ids=IDS))


@pytest.mark.parametrize("field, value", [
    ("init_lora_weights", "pissa"), ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"),
    ("init_lora_weights", "corda"), ("init_lora_weights", "lora_ga"), ("init_lora_weights", "loftq"),
    ("init_lora_weights", "mica"), ("init_lora_weights", "what PEFT adds next"), ("alora_invocation_tokens", [3, 4]),
    ("use_dora", True), ("use_qalora", True), ("lora_bias", True), ("rank_pattern", {"q_proj": 8}),
    ("fan_in_fan_out", True), ("alpha_pattern", {"q_proj": 8}), ("exclude_modules", ["k_proj"]),
    ("layer_replication", [[0, 1]]), ("trainable_token_indices", [1]),
    ("target_parameters", ["w"]), ("arrow_config", {"top_k": 3}), ("novelty", 1)])
def test_what_is_not_known_to_be_plain_lora_is_refused_by_name(base, tmp_path, field, value):
    save_peft(add_lora(ours(base), rank=4), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    model = ours(base)
    with pytest.raises(UserError, match=f"adapter_config.json: {field} is "):
        load_peft(model, tmp_path)
    assert not adapters(model)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_all_that_peft_writes_for_plain_lora_is_read(base, tmp_path, init):
    """Also by a Windows editor's hand. A new PEFT whose default is not off would be seen here."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init, revision="main")
    theirs = peft.get_peft_model(transformers.MistralForCausalLM.from_pretrained(base), config)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    with torch.no_grad():
        expected = theirs.eval()(input_ids=IDS).logits
        assert torch.allclose(load_peft(ours(base), tmp_path).eval()(ids=IDS), expected, atol=1e-5)


def test_a_missing_adapter_file_is_named(base, tmp_path):
    save_peft(add_lora(ours(base), rank=4), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model"):
        load_peft(ours(base), tmp_path / "adapter")


def test_a_seed_gives_the_same_adapters_whatever_the_order_of_the_targets(base):
    def made(targets):
        torch.manual_seed(1)
        return lora_state(add_lora(ours(base), targets))
    one, two = made(("q_proj", "v_proj")), made(("v_proj", "q_proj"))
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
