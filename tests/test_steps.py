"""Steps of one fixed shape: their buffers and when they are made anew. Their tokens are held by test_decode.py.

A GPU's recording can't be made here. What can: fake tensors "on" a GPU, which fail where two devices meet or where a
step asks for a number.
"""

import gc
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.decode import generate
from model.lora import add_lora, merge_lora
from model.mistral import Mistral, MistralConfig
from model.steps import KEPT, RECORDINGS, Buffers, FixedSteps

SIZES = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8)


def language_model(**sizes):
    torch.manual_seed(0)
    model = Mistral(MistralConfig(**{**SIZES, **sizes})).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def texts(model, ids, beams=1, new=6, **settings):
    """The texts of fixed steps, and that they are the plain ones."""
    fixed = generate(model, ids=ids, max_new_tokens=new, eos_id=1, beams=beams, capture=True, **settings)
    assert fixed == generate(model, ids=ids, max_new_tokens=new, eos_id=1, beams=beams, **settings)
    return fixed


def shapes(model):
    return list(KEPT[model][1])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("window", [None, 4, 30])
def test_prompts_of_several_lengths_share_the_buffers_of_one_shape(beams, window):
    """What an earlier and longer text left in them is not read."""
    model = language_model(sliding_window=window)
    for length in (40, 3, 17, 1):
        texts(model, torch.randint(2, 40, (2, length)), beams)
    assert shapes(model) == [(2, beams, 64)]


def test_buffers_are_made_anew_when_weights_lie_elsewhere():
    model, ids = language_model(), torch.randint(2, 40, (2, 5))
    texts(model, ids)
    (first,) = KEPT[model][1].values()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)                               # in place, as an optimizer's step: the recording holds
    texts(model, ids)
    assert list(KEPT[model][1].values()) == [first]
    add_lora(model, rank=2)
    texts(model, ids)
    (second,) = KEPT[model][1].values()
    merge_lora(model)
    texts(model, ids)
    (third,) = KEPT[model][1].values()
    model.load_state_dict({name: weight.clone() for name, weight in model.state_dict().items()}, assign=True)
    texts(model, ids)
    (fourth,) = KEPT[model][1].values()
    assert len({id(buffers) for buffers in (first, second, third, fourth)}) == 4


def test_few_shapes_are_kept_and_none_outlives_its_model():
    model = language_model()
    for batch in range(1, RECORDINGS + 3):
        texts(model, torch.randint(2, 40, (batch, 5)))
    assert shapes(model) == [(RECORDINGS + 1, 1, 64), (RECORDINGS + 2, 1, 64)]
    before = len(KEPT)
    del model
    gc.collect()
    assert len(KEPT) == before - 1


def test_not_under_autocast():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        generate(language_model(), ids=torch.tensor([[2, 3]]), max_new_tokens=3, eos_id=1, capture=True)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("window", [None, 16])
def test_a_step_on_a_gpu_stays_on_it_and_asks_for_no_number(beams, window, monkeypatch):
    monkeypatch.setattr("model.mistral.init_weights", lambda module: None)         # it asks its random numbers
    with FakeTensorMode(), torch.inference_mode():
        with torch.device("cuda"):
            model = add_lora(Mistral(MistralConfig(**SIZES, sliding_window=window)), rank=2).eval()
        buffers = Buffers(model, 2, beams, 64)
        buffers.cache.slots = buffers.slots
        logits = buffers.run(model)
        assert logits.shape == (2, beams, 40) and logits.device.type == "cuda"


def test_a_recording_is_made_once_and_replayed_for_every_step():
    """CUDA's calls are counted by stand-ins: what they do is not tried here."""
    model, ids = language_model(), torch.randint(2, 40, (2, 5))
    calls = []

    def record(self, mistral):
        calls.append("record")
        self.recording = mock.Mock(replay=lambda: calls.append("replay"))

    step = FixedSteps(model, ids, None, width=1, steps=4)
    step.buffers.recorded = True
    with mock.patch.object(Buffers, "record", record):
        for token in (3, 4, 5):
            step(torch.full((2, 1), token))
    assert calls == ["record", "replay", "replay", "replay"] and step.buffers.slots.tolist() == [5 + 2]
