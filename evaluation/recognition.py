"""Evaluation of stage 1 on a split: zero-shot recognition of diseases, and retrieval of sentences and pictures."""

import numpy as np
import torch

import trrg
from data.prompts import clue_prompts, flattened, zero_shot_pairs
from data.reports import LABELS, sentences
from evaluation.writing import over_batches
from metrics.intervals import DRAWS, SEED
from metrics.zero_shot import retrieval, zero_shot_scores
from model.clues import cosine, disease_scores


def zero_shot(alignment, prepared, studies, processes, batch_size=16, draws=DRAWS, seed=SEED):
    """({"zero_shot": …, "retrieval": …} for metrics.json, the scores (N, 14) for the page's ROC curves).

    auroc        by each disease's score from its clue prompts, the same score that chooses the clues in stage 2
    auroc_pairs  by a softmax over the prompts "{disease}" and "no {disease}"
    retrieval    picture → sentence: one of the study's own sentences is among the K best of the split's sentences;
                 sentence → picture: a study whose report holds the sentence is among the K best

    The clue prompts are those of the training run (--prompts-per-disease). Without labels both AUROCs are None.
    """
    v = recognise(alignment, prepared, studies, processes, batch_size)
    scores, tau = clue_scores(alignment, v), alignment.tau.item()

    # A pair of prompts per disease, as in CheXzero; the softmax over two values is the sigmoid of their difference.
    positive, negative = (embed_sentences(alignment, list(texts)) for texts in zip(*zero_shot_pairs()))
    pair = torch.sigmoid((cosine(v, positive) - cosine(v, negative)) / tau).numpy()

    result = {"zero_shot": {"auroc": None, "auroc_pairs": None}}
    if all("labels" in study for study in studies):
        labels = np.array([study["labels"] for study in studies])
        result["zero_shot"] = {"auroc": zero_shot_scores(scores, labels, LABELS, draws, seed),
                               "auroc_pairs": zero_shot_scores(pair, labels, LABELS, draws, seed)}

    # A sentence of several studies is in the gallery once, and is a right answer for each of these studies.
    of_study = [set(sentences(study["report"])) for study in studies]
    gallery = sorted(set().union(*of_study))
    right = np.array([[text in texts for text in gallery] for texts in of_study])
    similarity = cosine(v, embed_sentences(alignment, gallery)).numpy()
    result["retrieval"] = {"image_to_text": retrieval(similarity, right, draws, seed),
                           "text_to_image": retrieval(similarity.T, right.T, draws, seed)}
    return result, scores


def auroc_so_far(alignment, prepared, studies, processes, batch_size=64):
    """The macro AUROC of the clue prompts, as in `zero_shot` but without an interval: for validations during training.

    None if no disease has both positive and negative studies.
    """
    scores = clue_scores(alignment, recognise(alignment, prepared, studies, processes, batch_size, what=None))
    return zero_shot_scores(scores, [study["labels"] for study in studies], LABELS, draws=1)["macro"]["value"]


def clue_scores(alignment, v):
    """v_cls (N, d) → the diseases' scores (N, m) by the clue prompts, as in the choice of clues in stage 2."""
    texts, diseases = flattened(clue_prompts(alignment.config.prompts_per_disease))
    cosines = cosine(v, embed_sentences(alignment, texts))
    return disease_scores(cosines, torch.tensor(diseases), len(LABELS), alignment.tau.item())[0].numpy()


def recognise(alignment, prepared, studies, processes, batch_size, what="pictures"):
    """v_cls of every study, the mean over its views: (N, d) float32 on the CPU."""
    device = alignment.log_scale.device

    @torch.no_grad()
    def work(visits):
        images = visits["images"].to(device)
        tokens = alignment.image_tokens(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return list(tokens.mean((1, 2)).float().cpu().numpy())

    done = over_batches(prepared, studies, alignment.pictures["crop"], batch_size, processes, what, work)
    return torch.from_numpy(np.stack(done))


@torch.no_grad()
def embed_sentences(alignment, texts):
    """t_cls of sentences or prompts: (len(texts), d) float32 on the CPU."""
    device, rows = alignment.log_scale.device, []
    for start in range(0, len(texts), 256):
        ids, mask = trrg.encode_words(alignment.wordpiece, texts[start:start + 256], alignment.config.sentence_tokens)
        rows.append(alignment.text_tokens(ids.to(device), mask.to(device))[:, 0].float().cpu())
    return torch.cat(rows)
