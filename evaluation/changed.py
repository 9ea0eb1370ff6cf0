"""Reports under changed pictures and clues: what is put in their place, and what the model makes of it.

    pictures    another study's, a blank one, noise
    clues       another study's, of absent diseases, the true ones, none

swap.py asks this of a checkpoint; the experiments (tests/experiments) ask it of many.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import trrg
from data.files import UserError
from data.images import augment
from data.reports import LABELS, clean_report
from evaluation.writing import another_study, over_batches
from metrics.truth import side

# ---------------------------------------------------------------------------------------------------------------------
# Clues for a whole split, whoever chose them


class Chosen(NamedTuple):
    """The clues of N studies, as small as they can be kept: `ClueBank.inject` makes `Clues` of them again."""

    weights: torch.Tensor   # (N, m)
    best: torch.Tensor      # (N, m)  the prompt of each disease
    disease: torch.Tensor   # (N, k)
    threshold: float        # clues lighter than this are masked out

    def of(self, numbers):
        return self._replace(weights=self.weights[numbers], best=self.best[numbers], disease=self.disease[numbers])

    def diseases(self):
        """The numbers of the diseases of each study's clues, without those that are masked out."""
        there = self.weights.gather(1, self.disease) >= self.threshold
        return [disease[injected].tolist() for disease, injected in zip(self.disease, there)]


def chosen_of(clues, threshold):
    """The `Chosen` of a model's own `Clues`."""
    best = torch.zeros(clues.weights.shape, dtype=torch.long, device=clues.prompt.device)
    return Chosen(clues.weights, best.scatter(1, clues.disease, clues.prompt), clues.disease, threshold)


def injected(own, present, best):
    """`Chosen` of the diseases that are marked `present` (N, m), at most k, with their prompts; empty slots are masked.

    Of more than k those are taken that the model itself finds likeliest: `own` are its clues.
    """
    disease = (2 * present + own.weights).topk(own.disease.shape[1]).indices
    return Chosen(present.float(), best, disease, threshold=0.5)


def swapped(model, own, studies, kind, labels=None):
    """Other clues than the model's `own`, by `kind` of CLUES, on the CPU.

    labels (N, 14), in CheXbert's coding, say what is present; without them "another" is any other study's, and "absent"
    and "true" cannot be had. Raises UserError where all studies have the same labels.
    """
    if kind == "another":
        others = another_study(studies, any_views=True) if labels is None else of_other_findings(labels)
        return own.of(torch.tensor(others))

    bank = model.bank.disease.cpu()
    prompts = [(bank == disease).nonzero()[:, 0] for disease in range(len(LABELS))]
    best = torch.stack([numbers[0] for numbers in prompts]).repeat(len(studies), 1)
    if kind == "none":
        return injected(own, torch.zeros(best.shape), best)
    if kind == "absent":
        return of_absent_diseases(own, prompts, labels)

    # The true ones, each by the prompt that says most of what is true, where side and severity are known.
    for number, study in enumerate(studies):
        for finding in study.get("findings", ()):
            disease = LABELS.index(finding["finding"])
            texts = [model.bank.texts[prompt] for prompt in prompts[disease]]
            best[number, disease] = prompts[disease][fitting(texts, finding, study["report"])]
    return injected(own, torch.tensor(np.asarray(labels) == 1).float(), best)


def of_other_findings(labels):
    """For each study the number of one whose positive labels are not the same: its clues are wrong."""
    dice, positive = np.random.default_rng(0), np.asarray(labels) == 1
    others = [np.flatnonzero((positive != own).any(1)) for own in positive]
    if not all(map(len, others)):
        raise UserError("all studies have the same labels, so no clues can be another study's; measure on more of them")
    return [int(dice.choice(numbers)) for numbers in others]


def of_absent_diseases(own, prompts, labels):
    """k diseases per study that nobody states, drawn evenly, each with any of its prompts."""
    labels, dice = torch.as_tensor(np.asarray(labels)), torch.Generator().manual_seed(0)
    best = torch.stack([numbers[torch.randint(len(numbers), (len(labels),), generator=dice)] for numbers in prompts], 1)
    stated = (labels == 1) | (labels == 3)
    lots = torch.rand(labels.shape, generator=dice).masked_fill(stated, -1)
    lots[:, LABELS.index("No Finding")] = -1                            # a clue that nothing is there invents nothing
    drawn = torch.zeros(lots.shape).scatter(1, lots.topk(own.disease.shape[1]).indices, 1.0)
    return injected(own, drawn * (lots >= 0), best)


def fitting(prompts, finding, report):
    """The number of the prompt that says most of what is true of a finding: its severity, side and zone.

    Saying nothing is better than saying what is wrong. Among equals, the prompt with the most further words, if all of
    them stand in the report ("pacemaker", "displaced"), then the first, which is the most general.
    """
    true, words = aspects(finding), re.findall("[a-z]+", report.lower())

    def points(prompt):
        right = sum((1 if said == actual else -1) for said, actual in zip(said_of(prompt), true) if said)
        further = set(prompt.split()) - set(prompts[0].split())
        return right, len(further) if further <= set(words) else -1

    scores = [points(prompt) for prompt in prompts]
    return scores.index(max(scores))


def aspects(finding):
    return finding["severity"], side(finding["location"]), finding["location"].partition(" ")[2]


@lru_cache(maxsize=None)
def said_of(prompt):
    """Severity, side and zone that a prompt names, as the phantom's labeler reads it."""
    from data.phantom import label  # only a phantom's findings have a side and a severity

    findings = label(prompt)[1]
    return aspects(findings[0]) if findings else ("", "", "")


# ---------------------------------------------------------------------------------------------------------------------
# What the model makes of it


class Outcome(NamedTuple):
    """What the model made of one study under a change."""

    report: trrg.Report | None     # None where only the surprise was asked for
    clues: Chosen | None           # what was injected, of this one study; None where the variant has no clues
    surprise: tuple                # (cross-entropy of the true report, summed over its tokens; how many they are)


def outcomes(model, prepared, studies, processes, batch_size, pictures="own", clues=None, write=True, what="reports",
             **decoding):
    """[`Outcome`] of the studies, in their order, on every process.

    pictures: "own", or a kind of PICTURES. clues: `Chosen` in place of the recognised ones. write: whether to write
    reports, which takes most of the time.
    """
    texts = [clean_report(study["report"]) for study in studies]
    # A study keeps its number whatever pictures it is shown, so its clues and its true report stay its own.
    shown = [studies[number] for number in another_study(studies)] if pictures == "another" else studies
    device = model.mapper.weight.device

    @torch.no_grad()
    def work(visits):
        # What is changed: pictures in which nothing is to be seen, and clues that somebody else chose.
        numbers, images = visits["numbers"], visits["images"]
        if pictures in ("blank", "noise"):
            images = no_pictures(pictures, numbers, images.shape[1], model.pictures)
        given, threshold = None, model.config.clue_threshold
        if clues is not None:
            *fields, threshold = clues.of(numbers)
            given = model.bank.inject(*(field.to(device) for field in fields), threshold)

        if write:
            reports, prompt = model.write(images.to(device), given, **{**model.decoding, **decoding})
        else:
            reports, prompt = [None] * len(numbers), model.prompt(images.to(device), given)

        # What it had, to put back later, and how it took the true report.
        chosen = [None] * len(numbers)
        if prompt.clues is not None:
            *fields, _ = chosen_of(prompt.clues, threshold)
            chosen = [Chosen(*of_study, threshold) for of_study in zip(*(field.cpu() for field in fields))]
        return list(map(Outcome, reports, chosen, surprises(model, prompt, [texts[number] for number in numbers])))

    return over_batches(prepared, shown, model.pictures["crop"], batch_size, processes, what, work)


def no_pictures(kind, numbers, views, sizes):
    """Pictures in which there is nothing to see, (B, V, 3, crop, crop): black, or noise that depends on the study's
    number alone."""
    shape = (views, sizes["size"], sizes["size"])
    pixels = [np.random.default_rng(number).integers(0, 256, shape, np.uint8) if kind == "noise"
              else np.zeros(shape, np.uint8) for number in numbers]
    return torch.stack([augment(torch.from_numpy(of_study), sizes["crop"]) for of_study in pixels])


def surprises(model, prompt, texts):
    """[(cross-entropy summed over the report's tokens, how many)] of the true reports, given what the model reads."""
    ids, labels, _ = model.supervise(texts, max_tokens=10**6)                           # none is cut
    ids, labels = ids.to(prompt.embeds.device), labels.to(prompt.embeds.device)
    supervised = labels != -100
    losses = cross_entropy(model.report_logits(prompt, ids, labels), labels[supervised], reduction="none").double()
    return [(of_study.sum().item(), len(of_study)) for of_study in losses.split(supervised.sum(1).tolist())]


def own_clues(written):
    """The `Chosen` of all studies from their outcomes, or None where the variant has no clues."""
    if written[0].clues is None:
        return None
    fields = zip(*(outcome.clues[:3] for outcome in written))
    return Chosen(*map(torch.stack, fields), written[0].clues.threshold)
