"""A checkpoint over a whole split, on any number of processes: every study exactly once, gathered by id.

Batches are planned before they are dealt out, so one process and four compute the same batches and the same texts.
"""

from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

import trrg
from data.dataset import Visits, collate, plan_epoch
from data.prompts import clue_prompts, zero_shot_pairs
from data.reports import LABELS, clean_report, sentences
from evaluation.explain import clue_maps
from metrics.zero_shot import retrieval, zero_shot_scores
from model.clues import disease_scores


def over_batches(prepared, studies, crop, batch_size, processes, what, work):
    """Runs `work(visits)` on every batch of a split and returns {study number: result} on every process.

    `work` takes collated visits (data/dataset.py) and gives one picklable result a study. A batch's studies have
    equally many views, so their prompts are equally long, and nothing is left to sort; rows that end early leave the
    batch while it is decoded (model/decode.py).
    """
    visits = Visits(prepared, studies, stage=2, crop=crop)
    batches = plan_epoch([len(study["views"]) for study in studies], batch_size)
    mine = batches[processes.rank::processes.world]
    done = {}
    bar = tqdm(total=sum(map(len, mine)), desc=what, unit="study", disable=processes.rank != 0)
    for batch in mine:
        done.update(zip(batch, work(collate([visits[0, number] for number in batch]))))
        bar.update(len(batch))
    bar.close()
    return {number: result for part in processes.gather_objects(done) for number, result in part.items()}


def write_reports(model, prepared, studies, processes, batch_size=16, others=None, what="reports", maps=False,
                  **decoding):
    """[(`trrg.Report`, heat maps as explain.clue_maps gives them, or None)] for the studies of a split, in their order.

    `others` (a list of study numbers) gives study i the pictures of study others[i]: the floor that a model which
    ignores the picture cannot rise above.
    """
    shown = studies if others is None else [studies[number] for number in others]
    device = model.mapper.weight.device

    def work(visits):
        reports, prompt = model.write(visits["images"].to(device), **{**model.decoding, **decoding})
        return list(zip(reports, clue_maps(model, prompt) if maps else [None] * len(reports)))

    done = over_batches(prepared, shown, model.pictures["crop"], batch_size, processes, what, work)
    return [done[number] for number in range(len(studies))]


def another_study(studies, seed=0):
    """For every study the number of another one with as many views: a shuffled circle in each group of equal views.

    A study whose number of views nobody shares keeps its own pictures.
    """
    others = list(range(len(studies)))
    groups = {}
    for number in np.random.default_rng(seed).permutation(len(studies)).tolist():
        groups.setdefault(len(studies[number]["views"]), []).append(number)
    for group in groups.values():
        for number, other in zip(group, group[1:] + group[:1]):
            others[number] = other
    return others


def most_frequent_report(studies):
    """The report that stands most often in these (training) studies; the first of them among equals."""
    counts = Counter(clean_report(study["report"]) for study in studies)
    return max(counts, key=counts.get)


def recognise(alignment, prepared, studies, processes, batch_size=32):
    """v_cls of every study, the mean over its views: (N, d) float32 on the CPU."""
    device = alignment.log_scale.device

    @torch.no_grad()
    def work(visits):
        images = visits["images"].to(device)
        tokens = alignment.image_tokens(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return list(tokens.mean((1, 2)).float().cpu().numpy())

    done = over_batches(prepared, studies, alignment.pictures["crop"], batch_size, processes, "pictures", work)
    return torch.from_numpy(np.stack([done[number] for number in range(len(studies))]))


@torch.no_grad()
def embed_sentences(alignment, texts, batch_size=256):
    """t_cls of sentences or prompts: (len(texts), d) float32 on the CPU."""
    device, rows = alignment.log_scale.device, []
    for start in range(0, len(texts), batch_size):
        ids, mask = trrg.encode_words(alignment.words, texts[start:start + batch_size],
                                      alignment.config.sentence_tokens)
        rows.append(alignment.text_tokens(ids.to(device), mask.to(device))[:, 0].float().cpu())
    return torch.cat(rows)


def zero_shot(alignment, prepared, studies, processes, prompts_per_disease=None):
    """The evaluation of stage 1: {"zero_shot": …, "retrieval": …} for metrics.json, and what the page draws.

    auroc        a disease's score from its clue prompts, the very score that picks the clues
    auroc_pairs  softmax over "{disease}" and "no {disease}"
    retrieval    picture → sentence: one of its own among the K best of all distinct sentences of the split;
                 sentence → picture: a study that holds it among the K best
    """
    v = recognise(alignment, prepared, studies, processes)
    bank = clue_prompts(prompts_per_disease)
    of = torch.tensor([i for i, prompts in enumerate(bank) for _ in prompts])
    tau = alignment.tau.item()
    cosines = trrg.cosine(v, embed_sentences(alignment, [text for texts in bank for text in texts]))
    clue = disease_scores(cosines, of, tau)[0].numpy()

    positive, negative = (embed_sentences(alignment, list(texts)) for texts in zip(*zero_shot_pairs()))
    pair = torch.sigmoid((trrg.cosine(v, positive) - trrg.cosine(v, negative)) / tau).numpy()

    result = {"zero_shot": {"auroc": None, "auroc_pairs": None}}
    if all("labels" in study for study in studies):
        labels = np.array([study["labels"] for study in studies])
        result["zero_shot"] = {"auroc": zero_shot_scores(clue, labels, LABELS),
                               "auroc_pairs": zero_shot_scores(pair, labels, LABELS)}

    own = [set(sentences(study["report"])) for study in studies]
    gallery = sorted(set().union(*own))
    right = np.array([[text in mine for text in gallery] for mine in own])
    similarity = trrg.cosine(v, embed_sentences(alignment, gallery)).numpy()
    result["retrieval"] = {"image_to_text": retrieval(similarity, right),
                           "text_to_image": retrieval(similarity.T, right.T)}
    return result, clue


def as_row(study, text, clues=()):
    """A row to score (evaluation/results.py), its truth taken from the data set where that knows it."""
    row = {"id": study["id"], "hypothesis": text, "reference": clean_report(study["report"]),
           "clues": [{"prompt": prompt, "weight": round(weight, 6)} for prompt, weight in clues]}
    return {**row, **{key: {"reference": study[key]} for key in ("labels", "findings") if key in study}}
