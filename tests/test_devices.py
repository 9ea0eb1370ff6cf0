"""Every tensor is where it is needed, on a GPU that is not there; and the host hardly ever waits for it."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import trrg
from data.prompts import clue_prompts
from evaluation import recognition
from model import decode, steps
from tests import fake_gpu, tiny
from training.processes import Share
from training.stages import Stage1, Stage2

ONE = SimpleNamespace(rank=0, world=1)


@pytest.fixture(scope="module")
def models():
    return {variant: tiny.model(variant=variant, lora_dropout=0.1) for variant in trrg.VARIANTS}


@pytest.fixture(scope="module")
def alignments():
    return {equal: tiny.alignment(same_sentence_positives=equal) for equal in (False, True)}


@pytest.fixture(scope="module")
def language_model():
    return tiny.mistral(300)


@pytest.fixture
def gpu():
    with fake_gpu.here():
        yield


def visits(views):
    return {"images": torch.randn(2, views, 3, tiny.CROP, tiny.CROP), "texts": tiny.REPORTS[:2], "ids": ["a", "b"]}


def stage(kind, model, **args):
    """A stage of train.py around a model on the GPU."""
    built = kind.__new__(kind)
    built.args = SimpleNamespace(report_tokens=40, **args)
    built.model, built.device = model, torch.device("cuda")
    return built


# Where a step of stage 2 waits for the GPU, and why that stays: the head's product is for labelled tokens alone, so
# their number must be known, which costs a launch and spares the products of all pads.
LABELLED = {("trrg.py", "report_logits"): 1, ("trrg.py", "forward"): 1}

# What the host sends in a step: the words of the prompt's frame, the bounds of a configuration.
CONSTANTS = {"assemble", "_text", "clue_words"}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_a_step_of_stage_2(models, gpu, variant, views):
    model = fake_gpu.move(models[variant])
    step = stage(Stage2, model)
    for training, checkpointing, autocast in ((True, False, True), (True, True, False), (False, False, True)):
        model.train(training)
        model.language_model.checkpoint = checkpointing
        with fake_gpu.Watch():
            batch = step.read(Share([0, 1], ONE), visits(views))
        with fake_gpu.Watch() as watch, fake_gpu.autocast(autocast), \
                nullcontext() if training else torch.no_grad():
            loss = step.total(step.step(model, batch))
        assert loss.is_cuda and loss.requires_grad == training
        assert watch.asked == LABELLED
        assert {file for file, _ in watch.sent} == {"trrg.py"}
        assert {function for _, function in watch.sent} <= CONSTANTS


@pytest.mark.parametrize("equal_sentences", [False, True])
def test_a_step_of_stage_1(alignments, gpu, equal_sentences):
    model = fake_gpu.move(alignments[equal_sentences])
    step = stage(Stage1, model)
    for training, checkpointing, autocast in ((True, False, True), (True, True, False), (False, False, True)):
        model.train(training)
        model.swin.checkpoint = checkpointing
        with fake_gpu.Watch():
            batch = step.read(Share([0, 1], ONE), {**visits(1), "texts": [["One.", "Two."], ["One.", "Three."]]})
        with fake_gpu.Watch() as watch, fake_gpu.autocast(autocast):
            loss = step.total(step.step(model, batch))
        assert loss.is_cuda and not watch.asked


def test_the_bank_and_the_evaluations_encoders(alignments, gpu):
    model = fake_gpu.move(alignments[False])
    with fake_gpu.Watch() as watch:
        bank = trrg.encode_bank(model, clue_prompts())
    assert all(buffer.is_cuda for buffer in bank.buffers()) and not watch.asked
    assert recognition.embed_sentences(model, ["No pneumothorax.", "The heart is large."]).device.type == "cpu"


def test_the_evaluations_pictures(alignments, gpu, monkeypatch):
    """They end as numpy arrays, which fake tensors can't become."""
    model = fake_gpu.move(alignments[False])
    monkeypatch.setattr(recognition, "over_batches", lambda *args: args[-1](visits(2)))
    with pytest.raises(RuntimeError, match="numpy"):
        recognition.recognise(model, None, None, ONE, 2)


@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_looks_for_finished_rows_every_few_tokens(models, gpu, monkeypatch, beams):
    model = fake_gpu.move(models["trrg"]).eval()
    prompt = model.prompt(visits(views=2)["images"].to("cuda"))
    monkeypatch.setattr(decode, "hand_over", lambda *args: None)                           # lists of real tokens
    monkeypatch.setattr(decode.Finished, "hand_over", lambda *args: None)
    with fake_gpu.Watch() as watch:
        decode.generate(model.language_model, embeds=prompt.embeds, eos_id=2, beams=beams, max_new_tokens=13,
                        repetition_penalty=1.2, min_new_tokens=3)
    function = "beam_search" if beams > 1 else "one_by_one"
    assert watch.asked == {("model/decode.py", function): 3} and not watch.sent


@pytest.mark.parametrize("width", [1, 3])
def test_a_step_that_is_recorded_asks_for_nothing(language_model, gpu, monkeypatch, width):
    """A recording may neither wait for a number nor take a tensor from the host."""
    monkeypatch.setattr(steps, "buffers_for", steps.Buffers)                  # which would ask for weights' addresses
    mistral = fake_gpu.move(language_model).eval()
    ids, tokens = (torch.zeros(2, length, dtype=torch.long, device="cuda") for length in (9, width))
    reads = torch.ones(2, width, 9 + width, device="cuda") > 0 if width > 1 else None
    plain = steps.Steps(mistral, ids, None, width, steps=4)
    fixed = steps.FixedSteps(mistral, ids, None, width, steps=4)
    fixed.buffers.recorded = False                                                         # there is nothing to record
    with fake_gpu.Watch() as watch:
        logits = [kind(tokens, reads) for kind in (plain, fixed)]
    assert logits[0].shape == logits[1].shape == (2, width, 300)
    assert not watch.asked and not watch.sent
