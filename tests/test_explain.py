"""What --explain tells is what happened: the model's own clues and report, and probabilities that add up."""

import numpy as np
import pytest
import torch
from PIL import Image

import trrg
from evaluation.explain import explain, recorded, token_probabilities
from evaluation.writing import clue_maps
from model.decode import Rules, beam_search
from tests import tiny


def pictures(views=2):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 40), dtype=np.uint8)) for _ in range(views)]


@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_it_tells_what_the_model_does(variant):
    model = tiny.model(variant=variant)
    text, report = explain(model, pictures()), model.report(pictures())
    assert f"  {report.text or '(empty)'}\n" in text
    assert ("E^v" in text) == model.config.interaction and ("Clues: " in text) == model.config.clues
    assert ("‹words›" in text) == model.config.words
    for prompt, weight in report.clues:
        line = next(line for line in text.splitlines() if line.endswith(f"{prompt.removeprefix('Clue: ')}  ← injected"))
        assert f"{weight:.2%}" in line
    assert text.count("← injected") == len(report.clues)


def test_every_disease_is_ranked_and_every_prompt_token_has_its_place():
    model = tiny.model()
    text = explain(model, pictures(1))
    ranked = [float(line.split()[1].rstrip("%")) for line in text.splitlines()
              if line[:4].strip().isdigit() and "%" in line]
    assert len(ranked) == 14 and ranked == sorted(ranked, reverse=True) and sum(ranked) == pytest.approx(100, abs=0.1)
    prompt = model.prompt(tiny.batch(1, 1))
    assert f"Prompt: {sum(length for _, length in prompt.parts)} tokens" in text
    for name, length in prompt.parts:
        assert any(name in line and f" {length} token" in line for line in text.splitlines())


def test_token_probabilities_are_the_beam_scores():
    """The mean log-probability of the winning beam is the score that beam search gave it."""
    model = tiny.model()
    prompt = model.prompt(tiny.batch(1, 2))
    tokens, scores = beam_search(model.language_model, None, prompt.embeds, 6, 3, Rules(model.tokenizer.eos_id))
    known = token_probabilities(model, prompt, tokens[0] + [model.tokenizer.eos_id] * (len(tokens[0]) < 6))
    assert np.mean([np.log(probability) for _, probability, _ in known]) == pytest.approx(scores[0], abs=1e-5)
    assert all(best[0][1] >= probability - 1e-6 for _, probability, best in known)


def test_the_hooks_are_gone_afterwards():
    model = tiny.model()
    with recorded(model) as steps:
        model.prompt(tiny.batch(1))
    seen = len(steps)
    model.prompt(tiny.batch(1))
    assert len(steps) == seen > 8 and not any(module._forward_hooks for module in model.modules())


def test_maps_are_the_cosines_that_recognition_averages():
    model = tiny.model(clue_threshold=0.0)
    prompt = model.prompt(tiny.batch(3, 2))
    maps = clue_maps(model, prompt)
    assert len(maps) == 3
    for i, of_study in enumerate(maps):
        assert [pair[:2] for pair in of_study["clues"]] == model.named_clues(prompt.clues, i)
        assert of_study["queries"].shape == (2, 7, 7) and of_study["queries"].mean() == pytest.approx(1, abs=1e-5)
        for number, (_, _, grid) in zip(prompt.clues.prompt[i].tolist(), of_study["clues"]):
            token = prompt.v_e[i, 49 + 10]                                  # second view, second row, fourth patch
            similar = torch.cosine_similarity(token, model.bank.cls[number], dim=0).item()
            assert grid[1, 1, 3] == pytest.approx(similar, abs=1e-5)
    assert maps[0]["cover"] == tiny.CROP / tiny.SIZE


def test_maps_without_clues_queries_or_single_views():
    base = tiny.model(variant="base")
    (only,) = clue_maps(base, base.prompt(tiny.batch(1, 2)))
    assert only["clues"] == [] and only["queries"] is None
    mean = tiny.model(views="mean")
    (only,) = clue_maps(mean, mean.prompt(tiny.batch(1, 2)))
    assert only["queries"].shape == (1, 7, 7)
