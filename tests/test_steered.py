"""Ours, beyond the paper: what the language model reads of a clue, what Eq. (4) moves, which clues are injected."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import trrg
from data.prompts import clue_prompts
from tests import runs, tiny

WORDS = {"variant": "dci", "clue_form": "words"}


def part(prompt, name):
    """The embeddings (B, tokens, D) of one named part of a prompt."""
    start = 0
    for label, tokens in prompt.parts:
        if label == name:
            return prompt.embeds[:, start:start + tokens]
        start += tokens
    raise KeyError(name)


# --- what the language model reads of a clue


@pytest.mark.parametrize("sureness", [(), (0.07, 0.08)])
def test_the_words_are_those_of_the_prompt_and_padding_is_zeros(sureness):
    model = tiny.model(**WORDS, clue_sureness=sureness)
    prompt = model.prompt(tiny.batch())
    slots = part(prompt, "words").unflatten(1, (3, -1))                                 # (B, k, S, D)
    for study in range(2):
        for slot in range(3):
            text = model.bank.texts[prompt.clues.prompt[study, slot]].removeprefix("Clue: ")
            weight = prompt.clues.weights[study, prompt.clues.disease[study, slot]].item()
            lead = trrg.SURENESS[sum(weight >= bound for bound in sureness)] + " " if sureness else ""
            ids = torch.tensor(model.tokenizer.encode(lead + text, special=False))
            assert torch.equal(slots[study, slot, :len(ids)], model.language_model.embed(ids))
            assert not slots[study, slot, len(ids):].any()


def test_the_bounds_call_a_clue_possible_likely_or_certain():
    model = tiny.model(**WORDS, clue_sureness=(0.15, 0.4))
    clues = model.recognise(model.encode(tiny.batch(1)))
    weights = torch.zeros(1, 14).scatter(1, clues.disease, torch.tensor([[0.4, 0.15, 0.149]]))
    words = model.clue_words(clues._replace(weights=weights)).unflatten(1, (3, -1))
    for slot, lead in enumerate(("certain", "likely", "possible")):
        ids = model.tokenizer.encode(f"{lead} {model.bank.texts[clues.prompt[0, slot]].removeprefix('Clue: ')}", special=False)
        assert torch.equal(words[0, slot, :len(ids)], model.language_model.embed(torch.tensor(ids)))


def test_a_clue_under_the_threshold_is_read_as_nothing():
    model = tiny.model(**WORDS, clue_threshold=1.0)
    assert not part(model.prompt(tiny.batch()), "words").any()


def test_both_forms_stand_side_by_side_words_first():
    of = {form: tiny.model(variant="trrg", clue_form=form).prompt(tiny.batch()) for form in ("tokens", "words", "both")}
    named = {form: [name for name, _ in prompt.parts if name in ("words", "E^c", "E^v")] for form, prompt in of.items()}
    assert named == {"tokens": ["E^v", "E^c"], "words": ["E^v", "words"], "both": ["E^v", "words", "E^c"]}
    assert torch.equal(part(of["both"], "words"), part(of["words"], "words"))
    assert not hasattr(tiny.model(**WORDS), "clue_projector")                           # what is not used is not built


def test_a_study_alone_reads_the_same_words_as_in_a_batch():
    model, images = tiny.model(**WORDS, clue_sureness=(0.07, 0.08)), tiny.batch(3)
    together = part(model.prompt(images), "words")
    assert torch.equal(together, torch.cat([part(model.prompt(image[None]), "words") for image in images]))


# --- which clues are injected


def test_the_bank_may_hold_the_reports_own_sentences_and_its_file_brings_them_back(tmp_path):
    prompts = [[f"Sentence {i}.", f"Another {i}."] for i in range(14)]
    aligned, tokenizer = tiny.alignment(), tiny.pieces()
    config = trrg.TRRGConfig(**WORDS, lora_rank=2, clue_bank="sentences")
    model = trrg.from_alignment(aligned, tiny.mistral(len(tokenizer)), tokenizer, config, prompts=prompts,
                                pictures=tiny.PICTURES).eval()
    assert model.bank.texts == [text for of_disease in prompts for text in of_disease]
    trrg.save(tmp_path / "ckpt.safetensors", model, {"base": {}}, embed_base=True)
    again = trrg.load(tmp_path / "ckpt.safetensors")
    assert again.bank.texts == model.bank.texts
    assert torch.equal(again.prompt(tiny.batch()).embeds, model.prompt(tiny.batch()).embeds)
    assert again.write(tiny.batch(1), max_new_tokens=2)[0][0].clues[0][0] in model.bank.texts


def test_a_file_of_before_has_the_prompts_of_its_configuration(tmp_path):
    model = tiny.model(prompts_per_disease=1)
    trrg.save(tmp_path / "ckpt.safetensors", model, {"base": {}}, embed_base=True)
    from model.checkpoint import read_file, save_file
    tensors, header = read_file(tmp_path / "ckpt.safetensors")
    del header["prompts"]
    save_file(tmp_path / "old.safetensors", tensors, header)
    assert trrg.load(tmp_path / "old.safetensors").bank.texts == [text for [text] in clue_prompts(1)]


def test_clues_are_hidden_for_a_share_of_the_studies_in_training_alone():
    model = tiny.model(**WORDS, clue_dropout=0.5)
    v_e = model.encode(tiny.batch(1)).expand(400, -1, -1)
    assert model.recognise(v_e).injected.all()
    torch.manual_seed(0)
    shown = model.train().recognise(v_e).injected
    assert torch.equal(shown.any(1), shown.all(1)) and 150 < shown.any(1).sum() < 250   # a study's clues all or none


# --- what Eq. (4) moves


def gradients(pull):
    """The gradients that L_DC alone sends into E^v and E^c."""
    model = tiny.model(variant="trrg", dc_pull=pull)
    prompt = model.prompt(tiny.batch(3))
    e_v, e_c = prompt.e_v.detach().requires_grad_(), prompt.e_c.detach().requires_grad_()
    model.consistency(prompt._replace(e_v=e_v, e_c=e_c), gather=lambda rows: rows).backward()
    return e_v.grad, e_c.grad


def test_where_the_clue_is_the_target_only_the_picture_moves():
    both, picture = gradients("both"), gradients("picture")
    assert both[0].any() and both[1].any()
    assert torch.equal(picture[0], both[0]) and picture[1] is None


def test_the_target_changes_no_value_of_equation_4():
    values = []
    for pull in ("both", "picture"):
        model = tiny.model(variant="trrg", dc_pull=pull)
        values.append(model.consistency(model.prompt(tiny.batch(3)), gather=lambda rows: rows).item())
    assert values[0] == values[1]


def test_the_contrast_is_equation_1_with_equal_clue_sets_as_positives():
    """Two studies along two axes, hand-worked: with different clues ln(1 + e^(-1/τ)) each way; with equal ones, in any
    order, each is the other's positive too, which adds half of 1/τ each way."""
    model = tiny.model(variant="trrg", dc_pull="contrast")
    prompt, tau = model.prompt(tiny.batch(2)), model.tau.item()
    e = torch.zeros(2, 4, 16)
    e[0, :, 0], e[1, :, 1] = 1.0, 1.0
    apart = torch.log1p(torch.exp(torch.tensor(-1 / tau))).item()

    def loss(prompts):
        clues = prompt.clues._replace(prompt=torch.tensor(prompts), mask=torch.ones_like(prompt.clues.mask))
        return model.consistency(prompt._replace(e_v=e, e_c=e, clues=clues), gather=lambda rows: rows).item()

    assert loss([[1, 2, 3], [1, 2, 4]]) == pytest.approx(2 * 2 * apart, rel=1e-3, abs=1e-5)        # summed over 2 studies
    assert loss([[1, 2, 3], [3, 2, 1]]) == pytest.approx(2 * (2 * apart + 1 / tau), rel=1e-4)


def test_the_contrast_asks_for_the_rows_of_all_processes():
    model, asked = tiny.model(variant="trrg", dc_pull="contrast"), []

    def gather(rows):
        asked.append(tuple(rows.shape))
        return rows

    ids, labels, _ = model.supervise(tiny.REPORTS[:2], 50)
    assert model(tiny.batch(2), ids, labels, gather=gather).dc.isfinite() and asked == [(2, 3), (2, 64), (2, 64)]


# --- whole runs, on one process and on several


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Toy data that says it is a phantom's, so that its sentences have a labeler, base weights, and a stage 1."""
    folder = tmp_path_factory.mktemp("steered")
    argv = [*runs.prepare(folder, dropout=0.0, train=16), "--epochs", "1", "--batch-size", "4"]
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    (folder / "data" / "manifest.json").write_text(json.dumps({**manifest, "options": {"source": "phantom"}}))
    code, _, err = runs.run("train", [*argv, "--stage", "1", "--run", folder / "run"], folder / "out")
    assert code == 0, err
    writer = [*runs.WRITER[2:], "--lora-dropout", "0"]
    return folder, [*argv, *writer, "--stage", "2", "--stage1", folder / "run" / "stage1.safetensors"]


def test_the_contrast_on_two_processes_is_that_of_one(toy):
    folder, argv = toy
    argv = [*argv, *runs.WRITER[:2], "--dc-pull", "contrast", "--clue-form", "both"]
    for world, size in ((1, 4), (2, 2)):
        code, _, err = runs.run("train", [*argv, "--batch-size", size, "--run", folder / f"by{world}"], folder / "out", world)
        assert code == 0, err
    one, two = (load_file(folder / f"by{world}" / "ckpt.safetensors") for world in (1, 2))
    for name, value in one.items():
        if not name.endswith("key.bias"):                 # shifts all scores alike: its gradient is nothing but rounding
            torch.testing.assert_close(value, two[name], rtol=1e-4, atol=5e-5)


def test_steered_goes_on_where_it_stopped_and_writes_the_same_from_two_processes(toy):
    folder, argv = toy
    argv = [*argv, "--variant", "steered", "--save-every", "2"]
    code, _, err = runs.run("train", [*argv, "--run", folder / "whole"], folder / "out")
    assert code == 0, err
    code, _, err = runs.run("train", [*argv, "--run", folder / "stopped"], folder / "out", hook=stop_in_the_third_step)
    assert code == 143, err
    code, _, err = runs.run("train", [*argv, "--run", folder / "stopped"], folder / "out")
    assert code == 0, err
    assert runs.same_weights(folder / "whole" / "ckpt.safetensors", folder / "stopped" / "ckpt.safetensors")

    model = trrg.load(folder / "whole" / "ckpt.safetensors", weights=folder / "weights")
    assert model.config.variant == "steered" and "Moderate cardiomegaly." in model.bank.texts
    for world in (1, 2):
        argv = ["--ckpt", folder / "whole" / "ckpt.safetensors", "--out", folder / f"eval{world}", "--draws", "10"]
        code, _, err = runs.run("evaluate", argv, folder / "out", world)
        assert code == 0, err
    assert (folder / "eval1" / "reports.jsonl").read_bytes() == (folder / "eval2" / "reports.jsonl").read_bytes()


def stop_in_the_third_step():
    import train
    original, steps = train.learning_rate, []

    def stopping(*args):
        steps.append(args)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    train.learning_rate = stopping


def test_sentences_that_nobody_labels_are_refused_in_one_line(toy, tmp_path):
    folder, argv = toy
    tiny.write_data(tmp_path / "data")
    code, _, err = runs.run("train", [*argv, "--data", tmp_path / "data", "--variant", "steered", "--run", tmp_path / "run"],
                            tmp_path / "out")
    assert code == 2 and "--chexbert DIR" in err and len(err.strip().splitlines()) == 1
