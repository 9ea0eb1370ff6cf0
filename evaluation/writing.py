"""The reports of a whole split, on any number of processes: every study exactly once, in the studies' order.

Batches are planned first and then distributed, so the batches and texts do not depend on the number of processes.
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
    """The model's output for one study."""

    report: trrg.Report
    maps: dict | None                  # `clue_maps`, the heat maps of the page; None where none were asked for


def over_batches(prepared, studies, crop, batch_size, processes, what, work):
    """Runs `work(visits)` on every batch of a split → all results in the order of the studies, on every process.

    `work` takes collated visits (data/dataset.py) and returns one picklable result per study; `what` is the title of
    the progress bar, None for no bar. All studies of a batch have the same number of views, so their prompts have the
    same length and need no padding; finished rows leave the batch during decoding (model/decode.py).
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

    `others` (a list of study numbers) shows study i the pictures of study others[i]; the scores of such reports are a
    floor, which a model that ignores the picture does not exceed.
    """
    shown = studies if others is None else [studies[number] for number in others]
    device = model.mapper.weight.device

    def work(visits):
        reports, prompt = model.write(visits["images"].to(device), **{**model.decoding, **decoding})
        return list(map(Written, reports, clue_maps(model, prompt) if maps else [None] * len(reports)))

    return over_batches(prepared, shown, model.pictures["crop"], batch_size, processes, what, work)


def another_study(studies, any_views=False):
    """For every study the number of another study with as many views, by a shuffled cycle per number of views.

    A study whose number of views is unique keeps its own number. `any_views`: one cycle through all studies, whatever
    their views.
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
    """The most frequent report of these (training) studies; of equally frequent ones the first."""
    counts = Counter(clean_report(study["report"]) for study in studies)
    return max(counts, key=counts.get)


def as_row(study, text, clues=()):
    """A row to score (evaluation/labels.py), with the reference's labels and findings if the data set has them."""
    row = {"id": study["id"], "hypothesis": text, "reference": clean_report(study["report"]),
           "clues": [{"prompt": prompt, "weight": round(weight, 6)} for prompt, weight in clues]}
    return {**row, **{key: {"reference": study[key]} for key in ("labels", "findings") if key in study}}


@torch.no_grad()
def clue_maps(model, prompt):
    """The heat maps of the B studies of a `trrg.Prompt`: a list of dicts of float32 arrays on the CPU.

    "clues": [(prompt text, weight, (V, g, g))], heaviest first: the cosine of every patch token with the clue's cls
    token; recognition uses nearly the mean of this map. "queries": (V, g, g), the attention of the L queries of Eq.
    (3), summed and scaled to mean 1; None for a variant without queries. "cover": the share of the stored picture's
    side that the g × g grid covers. V is 1 if the views were averaged.
    """
    swin = model.swin.config
    g = swin.image_size // swin.patch_size // 2 ** (len(swin.depths) - 1)
    cover = model.pictures["crop"] / model.pictures["size"]

    def grids(values):
        """(…, N) → (…, V, g, g)."""
        return values.float().unflatten(-1, (-1, g, g)).cpu().numpy()

    maps = [{"clues": [], "queries": None, "cover": cover} for _ in prompt.v_e]

    # Where the picture matches each clue.
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
