"""Swaps: other pictures or clues for a study, and the model's output with them.

    pictures    another study's, a blank one, noise
    clues       another study's, of absent diseases, the true ones, none

Used by swap.py for one checkpoint, and by the experiments (tests/experiments) for many.
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
# Clues of a whole split, recognised or chosen by a swap


class Chosen(NamedTuple):
    """The clues of N studies in compact form; `ClueBank.inject` turns them into `Clues`."""

    weights: torch.Tensor   # (N, m)  of each disease
    best: torch.Tensor      # (N, m)  number of each disease's prompt in the bank
    disease: torch.Tensor   # (N, k)  numbers of the chosen diseases
    threshold: float        # clues with a lower weight are masked out

    def of(self, numbers):
        return self._replace(weights=self.weights[numbers], best=self.best[numbers], disease=self.disease[numbers])

    def diseases(self):
        """Per study the list of its clues' diseases (numbers), without masked-out clues."""
        there = self.weights.gather(1, self.disease) >= self.threshold
        return [disease[injected].tolist() for disease, injected in zip(self.disease, there)]


def chosen_of(clues, threshold):
    """The `Chosen` of a model's own `Clues`."""
    best = torch.zeros(clues.weights.shape, dtype=torch.long, device=clues.prompt.device)
    return Chosen(clues.weights, best.scatter(1, clues.disease, clues.prompt), clues.disease, threshold)


def injected(own, present, best):
    """`Chosen` of the diseases marked in `present` (N, m), at most k, with the prompts `best` (N, m); unused slots are
    masked out.

    Of more than k diseases the k with the highest weights in the model's `own` clues are taken.
    """
    disease = (2 * present + own.weights).topk(own.disease.shape[1]).indices
    return Chosen(present.float(), best, disease, threshold=0.5)


def swapped(model, own, studies, kind, labels=None):
    """`Chosen` on the CPU, of the `kind` in verdicts.CLUES, to replace the model's `own` clues.

    labels: the true ones (N, 14), in CheXbert's coding. Without labels "another" takes any other study's clues, and
    "absent" and "true" are impossible. Raises UserError if all studies have the same labels.
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

    # The true clues; if side and severity are known, each with the prompt that states most of them.
    for number, study in enumerate(studies):
        for finding in study.get("findings", ()):
            disease = LABELS.index(finding["finding"])
            texts = [model.bank.texts[prompt] for prompt in prompts[disease]]
            best[number, disease] = prompts[disease][fitting(texts, finding, study["report"])]
    return injected(own, torch.tensor(np.asarray(labels) == 1).float(), best)


def of_other_findings(labels):
    """For each study the number of a random study with other positive labels, whose clues are therefore wrong."""
    dice, positive = np.random.default_rng(0), np.asarray(labels) == 1
    others = [np.flatnonzero((positive != own).any(1)) for own in positive]
    if not all(map(len, others)):
        raise UserError("all studies have the same labels, so clues cannot be swapped between studies with different "
                        "findings; evaluate more studies (--limit)")
    return [int(dice.choice(numbers)) for numbers in others]


def of_absent_diseases(own, prompts, labels):
    """Clues of k random diseases per study that its report does not state, each with a random prompt."""
    labels, dice = torch.as_tensor(np.asarray(labels)), torch.Generator().manual_seed(0)
    best = torch.stack([numbers[torch.randint(len(numbers), (len(labels),), generator=dice)] for numbers in prompts], 1)
    stated = (labels == 1) | (labels == 3)
    lots = torch.rand(labels.shape, generator=dice).masked_fill(stated, -1)
    lots[:, LABELS.index("No Finding")] = -1                            # "No Finding" is no wrong finding
    drawn = torch.zeros(lots.shape).scatter(1, lots.topk(own.disease.shape[1]).indices, 1.0)
    return injected(own, drawn * (lots >= 0), best)


def fitting(prompts, finding, report):
    """The number of the prompt that best fits a true finding: a point per right severity, side and zone, minus a point
    per wrong one.

    On a tie, the prompt with the most further words wins, if all of them are in the report ("pacemaker", "displaced");
    then the first prompt, which is the most general.
    """
    true, words = aspects(finding), re.findall("[a-z]+", report.lower())

    def points(prompt):
        right = sum((1 if said == actual else -1) for said, actual in zip(said_of(prompt), true) if said)
        further = set(prompt.split()) - set(prompts[0].split())
        return right, len(further) if further <= set(words) else -1

    scores = [points(prompt) for prompt in prompts]
    return scores.index(max(scores))


def aspects(finding):
    """(severity, side, zone) of a finding; "" for what it does not state."""
    return finding["severity"], side(finding["location"]), finding["location"].partition(" ")[2]


@lru_cache(maxsize=None)
def said_of(prompt):
    """(severity, side, zone) that a prompt states, as the phantom's labeler reads it."""
    from data.phantom import label  # only a phantom's findings have a side and a severity

    findings = label(prompt)[1]
    return aspects(findings[0]) if findings else ("", "", "")


# ---------------------------------------------------------------------------------------------------------------------
# The model's output with swapped pictures or clues


class Outcome(NamedTuple):
    """The model's output for one study under a swap."""

    report: trrg.Report | None     # None if only the surprise was asked for
    clues: Chosen | None           # this study's injected clues; None if the variant has no clues
    surprise: tuple                # (cross-entropy of the true report, summed over its tokens; number of tokens)


def outcomes(model, prepared, studies, processes, batch_size, pictures="own", clues=None, write=True, what="reports",
             **decoding):
    """[`Outcome`] of the studies, in their order, on every process.

    pictures: "own", or a kind in verdicts.PICTURES. clues: a `Chosen` that replaces the recognised clues. write:
    whether to generate reports, which takes most of the time. what: title of the progress bar.
    """
    texts = [clean_report(study["report"]) for study in studies]
    # A study keeps its number when its pictures are swapped, so its clues and its true report stay its own.
    shown = [studies[number] for number in another_study(studies)] if pictures == "another" else studies
    device = model.mapper.weight.device

    @torch.no_grad()
    def work(visits):
        # The swapped input: empty pictures, or given clues.
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

        # The clues in use, to be injected again in other runs, and the cross-entropy of the true report.
        chosen = [None] * len(numbers)
        if prompt.clues is not None:
            *fields, _ = chosen_of(prompt.clues, threshold)
            chosen = [Chosen(*of_study, threshold) for of_study in zip(*(field.cpu() for field in fields))]
        return list(map(Outcome, reports, chosen, surprises(model, prompt, [texts[number] for number in numbers])))

    return over_batches(prepared, shown, model.pictures["crop"], batch_size, processes, what, work)


def no_pictures(kind, numbers, views, sizes):
    """Empty pictures (B, V, 3, crop, crop): black, or random noise, which depends only on the study's number.

    `numbers`: the studies'; `views`: V; `sizes`: a checkpoint's picture sizes, {"size", "crop"} in pixels.
    """
    shape = (views, sizes["size"], sizes["size"])
    pixels = [np.random.default_rng(number).integers(0, 256, shape, np.uint8) if kind == "noise"
              else np.zeros(shape, np.uint8) for number in numbers]
    return torch.stack([augment(torch.from_numpy(of_study), sizes["crop"]) for of_study in pixels])


def surprises(model, prompt, texts):
    """[(cross-entropy summed over the report's tokens, number of tokens)] of the true reports `texts`, given the
    `prompt`."""
    ids, labels, _ = model.supervise(texts, max_tokens=10**6)                           # no report is cut
    ids, labels = ids.to(prompt.embeds.device), labels.to(prompt.embeds.device)
    supervised = labels != -100
    losses = cross_entropy(model.report_logits(prompt, ids, labels), labels[supervised], reduction="none").double()
    return [(of_study.sum().item(), len(of_study)) for of_study in losses.split(supervised.sum(1).tolist())]


def own_clues(written):
    """The `Chosen` of all studies from their `Outcome`s; None if the variant has no clues."""
    if written[0].clues is None:
        return None
    fields = zip(*(outcome.clues[:3] for outcome in written))
    return Chosen(*map(torch.stack, fields), written[0].clues.threshold)
