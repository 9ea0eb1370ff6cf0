"""The dry run: counts are exact, FLOPs and kept activations are those that torch itself counts in a real step."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import train
from model.bert import Bert, BertConfig
from model.lora import LINEAR, TARGETS, adapters, add_lora
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig
from tests import runs
from training import dry_run
from training.options import arguments, of_stage


def attention(q, k, *_, **__):
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


def attention_backward(gradient, q, k, *_, **__):
    return 2.5 * attention(q, k)


def product(x, weight, *_, **__):
    return 2 * x[0] * x[1] * weight[0]


# The CPU's fused attention and oneDNN's product are unknown to the counter of torch 2.14.
FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
         torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward}
if torch.backends.mkldnn.is_available():
    FUSED[torch.ops.mkldnn._linear_pointwise] = product


def measured(model, step):
    """(FLOPs forward, FLOPs of both passes, bytes kept for backward beside parameters) of step() → a scalar."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    with counter as forward, saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
    with FlopCounterMode(display=False, custom_mapping=FUSED) as backward:
        loss.backward()
    flops = forward.get_total_flops()
    return flops, flops + backward.get_total_flops(), sum(size for size, _ in kept.values())


@pytest.mark.parametrize("targets", [TARGETS, LINEAR])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_frozen_language_model_with_adapters(recompute, targets):
    config = MistralConfig(vocab_size=50, hidden_size=128, intermediate_size=352, num_hidden_layers=3,
                           num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    model = add_lora(Mistral(config), targets, rank=2, dropout=0.1).train()
    for name, p in model.named_parameters():
        p.requires_grad_(".lora_" in name)
    model.checkpoint = recompute
    embeds = torch.randn(2, 48, 128, requires_grad=True)
    forward, both, kept = measured(model, lambda: model.hidden(embeds=embeds).sum())
    lora = 2 * sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name) * 2 * 48
    assert dry_run.mistral_flops(config, 2, 48) + lora == pytest.approx(forward, rel=0.01)
    if not recompute:
        # attention's backward pass has five products to the forward pass's two
        attention = config.num_hidden_layers * 2 * 48 * 4 * 48 * 128
        assert 2 * dry_run.mistral_flops(config, 2, 48) + 3 * lora == pytest.approx(both - 1.5 * attention, rel=0.02)
        # dropout's masks, a byte a number on a GPU, are of the activations' type on a CPU
        kept -= 3 * 2 * 48 * sum(adapter.in_features for adapter in adapters(model).values())
        assert dry_run.mistral_activations(config, 2, 48, targets, 4, False) == pytest.approx(kept, rel=0.1)
    else:
        assert dry_run.mistral_activations(config, 2, 48, targets, 4, True) >= kept


def test_swin_and_bert_in_training():
    config = SwinConfig(image_size=56, embed_dim=32, depths=(2, 2), num_heads=(2, 4), drop_path_rate=0.0)
    model, images = Swin(config).train(), torch.randn(2, 3, 56, 56)
    forward, both, kept = measured(model, lambda: model(images).sum())
    assert dry_run.swin_flops(config, 2) == pytest.approx(forward, rel=0.03)
    assert 3 * dry_run.swin_flops(config, 2) == pytest.approx(both, rel=0.1)
    assert dry_run.swin_activations(config, 2, 4, False) == pytest.approx(kept, rel=0.25)

    config = BertConfig(vocab_size=40, hidden_size=64, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=256)
    model, ids = Bert(config).train(), torch.randint(0, 40, (3, 32))
    forward, both, kept = measured(model, lambda: model(ids, ids >= 0).sum())
    assert dry_run.bert_flops(config, 3, 32) == pytest.approx(forward, rel=0.03)
    assert 3 * dry_run.bert_flops(config, 3, 32) == pytest.approx(both, rel=0.1)
    assert dry_run.bert_activations(config, 3, 32, 4) == pytest.approx(kept, rel=0.25)


def test_the_published_models_are_counted_exactly(capsys, tmp_path):
    argv = ["--preset", "mimic_cxr", "--dry-run", "--precision", "bf16", "--weights", str(tmp_path),
            "--data", str(tmp_path), "--run", str(tmp_path / "run")]
    assert train.main(argv) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        rows.setdefault(line.split("  ")[0], []).append(line.split())
    assert rows["swin"][0][1:3] == ["86,743,224", "86,743,224"] and rows["swin"][1][1:3] == ["86,743,224", "0"]
    assert rows["bert"][0][1] == "107,719,680"                                # BERT-base without its pooler
    assert rows["language_model"][0][1:3] == [f"{7_241_732_096 + 6_815_744:,}", "6,815,744"]
    assert rows["v_1..v_n"][0][1:] == "8 × 49 × 1024".split()
    peaks = [float(row[-2]) for row in rows["peak, with 10% for workspaces"]]
    assert 3 < peaks[0] < 8 and 25 < peaks[1] < 40                             # stage 2 at batch 8 stays below 40 GB
    assert not (tmp_path / "run").exists()


def test_every_preset_and_variant(tmp_path, capsys):
    argv = list(map(str, runs.prepare(tmp_path)))
    for variant in ("base", "dci", "cmci", "trrg"):
        assert train.main([*argv, "--dry-run", "--stage", "2", "--variant", variant, "--checkpointing"]) == 0
        assert "h in all" in capsys.readouterr().out
    for preset in ("demo", "iu_xray"):
        assert train.main(["--preset", preset, "--dry-run", "--weights", str(tmp_path), "--data", str(tmp_path)]) == 0


def test_sharding_and_recomputing_need_less(tmp_path):
    def peak(*extra, world=4):
        args = arguments(["--preset", "mimic_cxr", "--precision", "bf16", "--weights", str(tmp_path), *extra])
        return dry_run.memory(dry_run.Stage2Needs(of_stage(args, 2), 2), world)[-1][1] / 2**30
    assert peak("--shard") < peak() - 9 and peak("--checkpointing") < peak() - 12


def test_a_gpu_that_is_too_small_is_warned_of(monkeypatch):
    args = arguments(["--preset", "mimic_cxr"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("GPU", (), {"total_memory": 24 * 2**30}))
    (line,) = dry_run.warning(34 * 2**30, args)
    assert line == ("WARNING: does not fit into this machine's GPU (24 GiB): "
                    "try --checkpointing, --shard, a smaller --batch-size")
    assert dry_run.warning(20 * 2**30, args) == ["fits into this machine's GPU (24 GiB)"]
