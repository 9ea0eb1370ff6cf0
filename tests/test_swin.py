"""Swin against transformers, timm and torchvision on the same random weights."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torchvision.models.swin_transformer import SwinTransformer

from data.files import UserError
from model import swin
from model.checkpoint import Source, by_new_name
from model.swin import TIMM_SIZES, Swin, SwinConfig, rename_table

SMALL = dict(embed_dim=12, depths=[2, 2], num_heads=[1, 2], window_size=7, image_size=56)
SHAPES = {"window 7": SMALL,
          "window 12": dict(embed_dim=16, depths=[2, 2, 2], num_heads=[2, 4, 8], window_size=12, image_size=192),
          "four stages": dict(embed_dim=8, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8], window_size=7, image_size=224),
          "one stage, no qkv bias": dict(embed_dim=8, depths=[3], num_heads=[2], window_size=4, qkv_bias=False,
                                         mlp_ratio=2.0, image_size=32)}


def small_config(**changes):
    return SwinConfig(**{**SMALL, "depths": (2, 2), "num_heads": (1, 2), **changes})


def randomise(module, seed=0):
    """Weights large enough that every part of the network shows in the output, biases and tables too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * 0.3 if weight.dim() != 2 else noise / weight.shape[1] ** 0.5)
    return module.eval()


def reference(folder, **sizes):
    model = randomise(transformers.SwinModel(transformers.SwinConfig(**sizes), add_pooling_layer=False))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def difference(ours, theirs, *size, batch=2):
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = theirs(images)
    expected = getattr(expected, "last_hidden_state", expected)
    if expected.dim() == 4:
        expected = expected.flatten(1, 2)
    assert expected.std() > 0.1
    return (ours(images) - expected).abs().max().item()


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_equals_transformers_in_many_shapes(tmp_path, sizes):
    theirs = reference(tmp_path, **sizes)
    ours = Swin.from_pretrained(tmp_path).eval()
    side = sizes["image_size"]
    assert difference(ours, theirs, side, side) < 2e-5
    assert ours.config.width == theirs.num_features


@pytest.mark.parametrize("size", [(60, 60), (100, 61), (57, 113), (56, 97), (75, 75)])
def test_any_size_is_padded_as_transformers_pads_it(tmp_path, size):
    reference(tmp_path, **SMALL)
    # The reference remembers the smallest grid it has met and shifts no more, so each size meets a fresh one.
    theirs = transformers.SwinModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert difference(Swin.from_pretrained(tmp_path).eval(), theirs, *size) < 2e-5


@pytest.mark.parametrize("size", [(20, 20), (28, 28), (44, 36)])
def test_grids_smaller_than_a_window_as_in_torchvision(size):
    theirs = randomise(SwinTransformer([4, 4], 12, [2, 2], [1, 2], [7, 7]))
    ours = from_torchvision(theirs, small_config())
    assert difference(ours, lambda x: theirs.norm(theirs.features(x)), *size) < 2e-5


def from_torchvision(theirs, config):
    """torchvision names its parts by place: features.0 embeds, odd ones are stages, even ones merge."""
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.0": "intermediate.dense",
             "mlp.3": "output.dense", "attn.proj": "attention.output.dense"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        part = name.split(".")
        if name.startswith("norm."):
            state[f"layernorm.{part[-1]}"] = tensor
        elif name.startswith("features.0"):
            state[f"embeddings.{'patch_embeddings.projection' if part[2] == '0' else 'norm'}.{part[-1]}"] = tensor
        elif part[0] == "features" and int(part[1]) % 2:
            block, inner = f"encoder.layers.{int(part[1]) // 2}.blocks.{part[2]}", ".".join(part[3:])
            if "qkv" in inner:
                for piece, key in zip(tensor.chunk(3), ("query", "key", "value")):
                    state[f"{block}.attention.self.{key}.{part[-1]}"] = piece
            elif "bias_table" in inner:
                state[f"{block}.attention.self.relative_position_bias_table"] = tensor
            elif "index" not in inner:
                state[f"{block}.{names[inner.rpartition('.')[0]]}.{part[-1]}"] = tensor
        elif part[0] == "features":
            state[f"encoder.layers.{int(part[1]) // 2 - 1}.downsample.{'.'.join(part[2:])}"] = tensor
    ours = Swin(config)
    ours.load_state_dict(state)
    return ours.eval()


def test_swin_b_at_full_size_equals_both_witnesses(tmp_path):
    theirs = randomise(SwinTransformer([4, 4], 128, [2, 2, 18, 2], [4, 8, 16, 32], [7, 7], stochastic_depth_prob=0.5))
    ours = from_torchvision(theirs, SwinConfig())
    assert difference(ours, lambda x: theirs.norm(theirs.features(x)), 224, 224, batch=1) < 1e-4
    ours.save_pretrained(tmp_path)
    witness = transformers.SwinModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert difference(ours, witness, 224, 224, batch=1) < 1e-4


def test_384_pixels_with_windows_of_12(tmp_path):
    sizes = dict(embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=12, image_size=384)
    theirs = reference(tmp_path, **sizes)
    ours = Swin.from_pretrained(tmp_path).eval()
    assert difference(ours, theirs, 384, 384) < 2e-5
    assert ours(torch.zeros(1, 3, 384, 384)).shape == (1, 144, 128)


@pytest.mark.parametrize("early", [False, True], ids=["timm", "official"])
def test_the_names_of_timm_and_of_the_papers_repository(tmp_path, early):
    theirs = randomise(timm.models.SwinTransformer(img_size=112, window_size=7, embed_dim=12, depths=(2, 2, 1),
                                                   num_heads=(1, 2, 4), num_classes=5))
    state = dict(theirs.state_dict())
    if early:                          # the paper's files hold buffers, a plain head, and merge at a stage's end
        state = {(name.replace("layers.1.down", "layers.0.down") if "layers.1.down" in name else
                  name.replace("layers.2.down", "layers.1.down")).replace("head.fc.", "head."): tensor
                 for name, tensor in state.items()}
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
        state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49).long()
    config = SwinConfig(image_size=112, embed_dim=12, depths=(2, 2, 1), num_heads=(1, 2, 4))
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    ours = Swin.from_pretrained(tmp_path).eval()
    assert difference(ours, theirs.forward_features, 112, 112) < 2e-5
    halved = Swin.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, weight in ours.state_dict().items():         # the fused q, k, v are cut the same way while converted
        assert torch.equal(weight.to(torch.bfloat16), halved.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["SwinForImageClassification", "SwinForMaskedImageModeling"])
def test_heads_and_mask_tokens_in_the_file_are_dropped_by_name(tmp_path, kind):
    theirs = randomise(getattr(transformers, kind)(transformers.SwinConfig(**SMALL)))
    theirs.save_pretrained(tmp_path)
    assert difference(Swin.from_pretrained(tmp_path).eval(), theirs.swin, 56, 56) < 2e-5


def test_what_is_saved_is_read_by_transformers(tmp_path):
    ours = randomise(Swin(small_config()))
    ours.save_pretrained(tmp_path)
    theirs = transformers.SwinModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert difference(ours, theirs, 56, 56) < 2e-5
    assert Swin.from_pretrained(tmp_path).config == ours.config


def test_a_fresh_network_starts_as_the_paper_says():
    torch.manual_seed(0)
    model = Swin(SwinConfig(image_size=56, embed_dim=48, depths=(2, 2), num_heads=(1, 2)))
    weight = model.encoder["layers"][0].blocks[0].intermediate["dense"].weight
    assert abs(weight.std() - 0.02) < 0.002
    assert not model.encoder["layers"][0].blocks[0].attention.self.relative_position_bias_table.any()


def test_stochastic_depth_drops_branches_in_training_only():
    torch.manual_seed(0)
    model = randomise(Swin(small_config(drop_path_rate=0.5)))
    images = torch.randn(64, 3, 56, 56)
    assert torch.equal(model(images), model(images))
    block = model.train().encoder["layers"][1].blocks[1]
    assert block.drop_path == 0.5
    ones = torch.ones(4000, 1, 1, 1)
    branch = block.stochastic_depth(ones)
    assert set(branch.flatten().tolist()) == {0.0, 2.0} and abs(branch.mean() - 1) < 0.07
    assert model.encoder["layers"][0].blocks[0].drop_path == 0


def test_recomputing_gives_the_same_gradients():
    model = randomise(Swin(small_config(drop_path_rate=0.0)))
    model.train()
    images, gradients = torch.randn(2, 3, 56, 56), []
    for model.checkpoint in (False, True):
        model.zero_grad()
        model(images).square().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert gradients[0].abs().max() > 0 and torch.allclose(*gradients, atol=1e-6)


def test_masks_made_without_gradients_serve_training():
    swin.shift_mask.cache_clear()
    swin.relative_position_index.cache_clear()
    model = Swin(small_config())
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"use_absolute_embeddings": True}, {"model_type": "swinv2"},
                                    {"depths": [2, "2"]}, {"depths": 4}, {"num_heads": [5, 2]}, {"embed_dim": -12},
                                    {"window_size": None}, {"depths": [10**6, 2]}, {"num_heads": [1]}])
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path, change):
    reference(tmp_path, **SMALL)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="config.json"):
        Swin.from_pretrained(tmp_path)


def test_gradients_reach_every_weight_of_a_shifted_and_padded_network():
    model = randomise(Swin(small_config(drop_path_rate=0.0)))
    model.train()(torch.randn(2, 3, 60, 60)).square().sum().backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@pytest.mark.parametrize("size", TIMM_SIZES)
@pytest.mark.parametrize("window, pixels", [(7, 224), (12, 384)])
def test_timms_names_stand_for_timms_sizes(size, window, pixels):
    """Every tensor of timm's network has its place in ours, with the same shape."""
    name = f"swin_{size}_patch4_window{window}_{pixels}"
    if not timm.is_model(name):
        pytest.skip("timm has no such network")
    config = SwinConfig.from_json({"architecture": name, "num_classes": 1000, "model_args": {}})
    assert config.image_size == pixels
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, num_classes=0), Swin(config)
    stored = [Source(None, name, weight) for name, weight in theirs.state_dict().items()]
    places = by_new_name(stored, rename_table([source.name for source in stored]))
    assert {name: source.tensor.shape for name, source in places.items()} == \
        {name: weight.shape for name, weight in ours.state_dict().items()}


def test_timms_hub_folder_is_read_as_it_is(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, embed_dim=12, depths=(1, 2), num_heads=(2, 3), num_classes=5).eval()
    timm.models.save_for_hf(theirs, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["in_chans"] == 3   # it always writes some
    ours, images = Swin.from_pretrained(tmp_path).eval(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs.forward_features(images).flatten(1, 2), atol=1e-5)


@pytest.mark.parametrize("change", [{"architecture": "swin_s3_base_224"}, {"architecture": "vit_base_patch16_224"},
                                    {"architecture": None}, {"model_args": {"ape": True}}, {"model_args": 3}])
def test_other_folders_of_timm_are_refused_with_the_one_that_goes(tmp_path, change):
    config = {"architecture": "swin_base_patch4_window7_224", "num_classes": 1000, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json: this is timm's config.json.*microsoft/swin-base-patch4-window7"):
        Swin.from_pretrained(tmp_path)
