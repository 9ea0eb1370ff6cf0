"""The dry run's memory against the bytes that a step at the paper's shapes keeps for its backward pass.

The step runs on a GPU that is not there (tests/fake_gpu.py), in bf16, with the attention kernels that a GPU takes.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

import model.interaction
import trrg
from data.tokenizers import SentencePiece
from model.mistral import MistralConfig
from tests import fake_gpu, runs, tiny
from training import dry_run
from training.options import arguments, of_stage


def fused(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False):
    """scaled_dot_product_attention by flash, or with a mask by the memory-efficient kernel; fakes would take neither.

    A mask is in the type of q, each row of it a multiple of eight numbers long, and not repeated for batch and heads.
    """
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
    S = attn_mask.shape[-1]
    attn_mask = F.pad(attn_mask.to(q.dtype), (0, -S % 8))[..., :S].expand(*q.shape[:3], S)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, True, dropout_p, is_causal)[0]


def kept(module, step):
    """Bytes that a forward pass keeps for the backward pass, beside parameters and buffers, each storage once."""
    seen, total = {tensor.untyped_storage()._cdata for tensor in [*module.parameters(), *module.buffers()]}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total.append((storage.nbytes(), tensor))                     # alive, or its number might be given again
        return tensor

    with fake_gpu.autocast(), fake_gpu.Watch(), saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(size for size, _ in total)


def stage_2(monkeypatch, *extra):
    """(the dry run's needs, bytes kept by a step) at batch 8 with two views and full reports."""
    args = of_stage(arguments(["--preset", "mimic_cxr", "--precision", "bf16", "--weights", "none", *extra]), 2)
    needs = dry_run.Stage2Needs(args, views=2)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    monkeypatch.setattr(model.interaction, "scaled_dot_product_attention", fused)
    count = dry_run.tokenizer_of(args.weights, SentencePiece)
    with fake_gpu.here():
        writer = fake_gpu.move(needs.model).train()
        writer.language_model.checkpoint = args.checkpointing
        writer.tokenizer = SimpleNamespace(bos_id=1, encode=lambda text, special: [1] * len(count(text)))
        images = torch.empty(8, 2, 3, 224, 224, device="cuda")
        ids = torch.zeros(8, args.report_tokens + 1, dtype=torch.long, device="cuda")
        return needs, kept(writer, lambda: writer(images, ids, ids))


def estimated(needs):
    """(bytes of all, of activations, of the logits' gradients, which come later): without the margin."""
    rows = dict(needs.activations())
    logits = rows.get("logits and their gradient", 0)
    return dry_run.memory(needs, 1)[-1][1] / dry_run.MARGIN, sum(rows.values()), logits * 6 / 10


def test_stage_2_at_batch_8(monkeypatch):
    needs, plain = stage_2(monkeypatch)
    total, activations, later = estimated(needs)
    assert activations == pytest.approx(plain + later, rel=0.1)
    assert total == pytest.approx(total - activations + plain + later, rel=0.05)
    assert dry_run.memory(needs, 1)[-1][1] < 44 * 2**30                  # a card of 48 GB, whose driver takes some

    needs, checkpointed = stage_2(monkeypatch, "--checkpointing")
    layers, (total, activations, later) = MistralConfig().num_hidden_layers, estimated(needs)
    a_layer = (plain - checkpointed) / layers                            # beside its input: what is recomputed at once
    assert activations == pytest.approx(checkpointed + a_layer + later, rel=0.1)


@pytest.mark.parametrize("batch, extra", [("8", []), ("32", []), ("8", ["--checkpointing"])])
def test_stage_1(monkeypatch, batch, extra):
    args = of_stage(arguments(["--preset", "mimic_cxr", "--precision", "bf16", "--weights", "none", "--batch-size", batch,
                               *extra]), 1)
    needs, B = dry_run.Stage1Needs(args), args.batch_size
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    with fake_gpu.here():
        alignment = fake_gpu.move(needs.model).train()
        alignment.swin.checkpoint = args.checkpointing
        images, ids = torch.empty(B, 3, 224, 224, device="cuda"), torch.zeros(B, 64, dtype=torch.long, device="cuda")

        def step():
            v, t, tau = alignment(images, ids, ids == 0)
            trrg.contrastive_loss(v.float(), t.float(), tau)

        bytes_kept = kept(alignment, step)
    total, activations, _ = estimated(needs)
    if args.checkpointing:                                               # what is recomputed comes later
        assert bytes_kept < activations < bytes_kept + 0.4 * 2**30
    else:
        assert activations == pytest.approx(bytes_kept, rel=0.1)


def bytes_of_a_share():
    """On two processes: the bytes of a sharded language model that this one holds."""
    from training.processes import Processes
    from training.sharding import shard
    processes = Processes()
    language_model = tiny.mistral(300).requires_grad_(False)
    shard(language_model, processes)
    print(sum(getattr(p, "_local_tensor", p).nbytes for p in language_model.parameters()), flush=True)
    processes.close()
    sys.exit(0)


def test_sharding(tmp_path):
    started = runs.Started("train", [], tmp_path, world=2, hook=bytes_of_a_share)
    if started.wait() != [0, 0]:
        assert "cannot exclude the LoRA adapters" in started.text("err")
        pytest.skip("torch is too old to shard")
    language_model = tiny.mistral(300).requires_grad_(False)
    needs = SimpleNamespace(args=SimpleNamespace(shard=True), model=SimpleNamespace(language_model=language_model))
    ((_, change),) = dry_run.Stage2Needs.frozen(needs, 2)
    layer = sum(p.nbytes for p in language_model.layers[0].parameters())
    whole = sum(p.nbytes for p in language_model.parameters())
    held = [int(line) for line in started.text("out").splitlines()]
    assert len(held) == 2 and all(size == pytest.approx(whole + change - 2 * layer, rel=0.01) for size in held)
