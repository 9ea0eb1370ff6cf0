"""--deterministic, the default on a GPU, would end a run at the first operation that has no deterministic kernel there.

So every operation of a step of either stage, forward, backward and update, is looked up in torch's own list of those.
They are those of a step on the CPU, whose names a GPU shares, but for attention: its kernels there, flash and memory
efficient, are not on the list, for they switch to a fixed order of additions.
"""

import re

import pytest
import torch

import trrg
from tests import fake_gpu, tiny
from training.optimizer import optimizer_for

# {a name in the documentation of torch.use_deterministic_algorithms: the operations that it stands for}
ALERTS = {
    "torch.nn.AvgPool3d": {"avg_pool3d_backward"},
    "torch.nn.AdaptiveAvgPool2d": {"_adaptive_avg_pool2d_backward"},
    "torch.nn.AdaptiveAvgPool3d": {"_adaptive_avg_pool3d_backward"},
    "torch.nn.AdaptiveMaxPool2d": {"adaptive_max_pool2d_backward"},
    "torch.nn.FractionalMaxPool2d": {"fractional_max_pool2d_backward"},
    "torch.nn.FractionalMaxPool3d": {"fractional_max_pool3d_backward"},
    "torch.nn.MaxUnpool1d": {"max_unpool2d"},
    "torch.nn.MaxUnpool2d": {"max_unpool2d"},
    "torch.nn.MaxUnpool3d": {"max_unpool3d"},
    "torch.nn.functional.interpolate": {f"upsample_{kind}_backward" for kind in (
        "linear1d", "bilinear2d", "bicubic2d", "trilinear3d", "_bilinear2d_aa", "_bicubic2d_aa")},
    "torch.nn.ReflectionPad1d": {"reflection_pad1d_backward"},
    "torch.nn.ReflectionPad2d": {"reflection_pad2d_backward"},
    "torch.nn.ReflectionPad3d": {"reflection_pad3d_backward"},
    "torch.nn.ReplicationPad1d": {"replication_pad1d_backward"},
    "torch.nn.ReplicationPad2d": {"replication_pad2d_backward"},
    "torch.nn.ReplicationPad3d": {"replication_pad3d_backward"},
    # of pictures alone: the loss of rows of logits, aten.nll_loss_forward, adds in a fixed order
    "torch.nn.NLLLoss": {"nll_loss2d_forward", "nll_loss2d_backward"},
    "torch.nn.CTCLoss": {"_ctc_loss_backward"},
    "torch.nn.EmbeddingBag": {"_embedding_bag_dense_backward", "_embedding_bag_backward"},
    "torch.Tensor.put_": {"put_"},
    "torch.histc": {"histc"},
    "torch.bincount": {"bincount"},
    "torch.kthvalue": {"kthvalue"},
    "torch.median": {"median"},
    "torch.cumsum": {"cumsum"},
    "torch.nn.functional.grid_sample": {"grid_sampler_2d_backward", "grid_sampler_3d_backward"},
    "torch.Tensor.scatter_reduce": {"scatter_reduce", "scatter_reduce_"},
    "torch.Tensor.resize_": set()}                                     # of quantised tensors


def alerts_of_this_torch():
    """The names that this torch's documentation lists as without a deterministic kernel."""
    _, _, listed = torch.use_deterministic_algorithms.__doc__.rpartition("operations will throw a\n")
    listed = listed.partition("In addition, several operations")[0]
    return set(re.findall(r"\* :\w+:`~?([\w.]+)`", listed))


def test_every_name_of_torchs_list_is_known():
    assert len(alerts_of_this_torch()) > 15
    unknown = alerts_of_this_torch() - ALERTS.keys()
    assert not unknown, f"this torch lists more operations: say in ALERTS which they are: {unknown}"


def test_the_list_finds_what_it_is_for():
    assert found(lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear").sum().backward())
    assert found(lambda x: torch.cumsum(x, 0).sum())


def found(work):
    with fake_gpu.Watch() as watch:
        work(torch.randn(1, 1, 4, 4, requires_grad=True))
    return set(watch.operations) & set().union(*ALERTS.values())


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("variant", ["stage 1", *trrg.VARIANTS])
def test_a_step_has_none_of_them(variant, muon):
    if variant == "stage 1":
        model = tiny.alignment(same_sentence_positives=True)
        ids, mask = trrg.encode_words(model.wordpiece, ["The heart is normal.", "No pneumothorax."], 64)
    else:
        model = tiny.model(variant=variant, lora_dropout=0.1)
        ids, labels, _ = model.supervise(tiny.REPORTS[:2], 40)
    model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizer_for(parameters, 1e-3, 0.05, muon=muon)

    with fake_gpu.Watch() as watch:
        if variant == "stage 1":
            v, t, tau = model(tiny.batch()[:, 0], ids, mask)
            loss = trrg.contrastive_loss(v, t.index_select(0, torch.tensor([1, 0])), tau, torch.eye(2).bool())
        else:
            loss = model.total(model(tiny.batch(views=2), ids, labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()

    assert len(watch.operations) > 50
    assert not set(watch.operations) & set().union(*ALERTS.values())
