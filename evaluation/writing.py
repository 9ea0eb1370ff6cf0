"""The reports of a whole split, on any number of processes: every study exactly once, gathered by its number.

Batches are planned before they are dealt out, so one process and four compute the same batches and the same texts.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import trrg
from data.dataset import Visits, collate, plan_epoch
from data.reports import clean_report
from model.clues import cosine


class Written(NamedTuple):
    """What the model wrote of one study."""

    report: trrg.Report
    maps: dict | None                  # what the page draws over its pictures (`clue_maps`), where that was asked for


def over_batches(prepared, studies, crop, batch_size, processes, what, work):
    """Runs `work(visits)` on every batch of a split → its results in the order of the studies, on every process.

    `work` takes collated visits (data/dataset.py) and gives one picklable result per study; `what` names the bar, None
    for none. A batch's studies have equally many views, so their prompts are equally long, and nothing is left to
    sort; rows that end early leave the batch while it is decoded (model/decode.py).
    """
    visits = Visits(prepared, studies, stage=2, crop=crop)
    batches = plan_epoch([len(study["views"]) for study in studies], batch_size)
    mine = batches[processes.rank::processes.world]

    done = {}
    bar = tqdm(total=sum(map(len, mine)), desc=what, unit="study", disable=processes.rank != 0 or what is None)
    for batch in mine:
        done.update(zip(batch, work(collate([visits[0, number] for number in batch])), strict=True))
        bar.update(len(batch))
    bar.close()

    every = {number: result for part in processes.gather_objects(done) for number, result in part.items()}
    return [every[number] for number in range(len(studies))]


def write_reports(model, prepared, studies, processes, batch_size=16, others=None, what="reports", maps=False,
                  **decoding):
    """[`Written`] for the studies of a split, in their order.

    `others` (a list of study numbers) gives study i the pictures of study others[i]: the floor that a model which
    ignores the picture cannot rise above.
    """
    shown = studies if others is None else [studies[number] for number in others]
    device = model.mapper.weight.device

    def work(visits):
        reports, prompt = model.write(visits["images"].to(device), **{**model.decoding, **decoding})
        return list(map(Written, reports, clue_maps(model, prompt) if maps else [None] * len(reports)))

    return over_batches(prepared, shown, model.pictures["crop"], batch_size, processes, what, work)


def another_study(studies, any_views=False):
    """For every study the number of another one with as many views: a shuffled circle in each group of equal views.

    A study whose number of views nobody shares keeps its own pictures. `any_views`: one circle of all, for what does
    not depend on the number of views.
    """
    others = list(range(len(studies)))
    groups = {}
    for number in np.random.default_rng(0).permutation(len(studies)).tolist():
        groups.setdefault(0 if any_views else len(studies[number]["views"]), []).append(number)
    for group in groups.values():
        for number, other in zip(group, group[1:] + group[:1]):
            others[number] = other
    return others


def most_frequent_report(studies):
    """The report that stands most often in these (training) studies; the first of them among equals."""
    counts = Counter(clean_report(study["report"]) for study in studies)
    return max(counts, key=counts.get)


def as_row(study, text, clues=()):
    """A row to score (evaluation/labels.py), its truth taken from the data set where that knows it."""
    row = {"id": study["id"], "hypothesis": text, "reference": clean_report(study["report"]),
           "clues": [{"prompt": prompt, "weight": round(weight, 6)} for prompt, weight in clues]}
    return {**row, **{key: {"reference": study[key]} for key in ("labels", "findings") if key in study}}


@torch.no_grad()
def clue_maps(model, prompt):
    """What the page draws for the B studies of a `trrg.Prompt`: a list of dicts of float32 arrays on the CPU.

    "clues": [(prompt text, weight, (V, g, g))], heaviest first: the cosine of every patch token with the clue's cls
    token, whose mean over the tokens is nearly what recognises it. "queries": (V, g, g), attention summed over the L
    queries of Eq. (3), mean 1; None for a variant without queries. "cover": the part of the stored picture's side that
    the g × g grid lies over. V is 1 where the views were averaged.
    """
    swin = model.swin.config
    g = swin.image_size // swin.patch_size // 2 ** (len(swin.depths) - 1)
    cover = model.pictures["crop"] / model.pictures["size"]

    def grids(values):
        """(…, N) → (…, V, g, g)."""
        return values.float().unflatten(-1, (-1, g, g)).cpu().numpy()

    maps = [{"clues": [], "queries": None, "cover": cover} for _ in prompt.v_e]

    # Where the picture answers each clue.
    for i, of_study in enumerate(maps):
        if prompt.clues is not None:
            cosines = cosine(model.bank.cls[prompt.clues.prompt[i]].float(), prompt.v_e[i].float())         # (k, N)
            named = model.named_clues(prompt.clues, i)
            of_study["clues"] = [(*clue, grid) for clue, grid in zip(named, grids(cosines))]

    # Where the queries look.
    if model.config.interaction:
        attention = model.interaction.visual_attention(model.mapper(prompt.v_e)).mean(1)                  # (B, N)
        for of_study, grid in zip(maps, grids(attention * attention.shape[-1])):
            of_study["queries"] = grid
    return maps
