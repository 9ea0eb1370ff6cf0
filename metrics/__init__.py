"""Scores of generated reports, each under its full name: `score` for language; the folder's files define the rest.

Two protocols, because the literature has two and calls both BLEU:
- "coco": pycocoevalcap's practice. Full references, Penn Treebank tokens, punctuation dropped.
- "r2gen": what R2Gen, R2GenCMN and R2GenGPT do. Both sides go through their cleaning function, which writes the
  sentence dot as a word of its own (" . "), tokens are what blanks separate, so that the dot counts, and references are
  cut to 60 (IU X-Ray) or 100 (MIMIC-CXR) words. Published rows were computed this way and compare with this protocol
  only.

What "r2gen" does not copy: rare words of the reference become <unk> there, after the training set's vocabulary; R2Gen's
limit counts the start token, so that 59 or 99 words remain; R2GenGPT's counts LLaMA's sub-word tokens.
"""

import numpy as np

from data.files import UserError
from data.reports import clean_r2gen_iu, clean_r2gen_mimic, clean_r2gengpt_mimic
from metrics.bleu import bleu_from, bleu_statistics
from metrics.cider import cider
from metrics.intervals import Measured
from metrics.meteor import meteor_from, meteor_statistics
from metrics.meteor_data import find_data, read_lexicon
from metrics.ptb import tokenize
from metrics.radcliq import measure_scores
from metrics.rouge import rouge_l

PROTOCOLS = ("coco", "r2gen")
# Cleaning function and number of words left of a reference.
CLEANINGS = {"iu": (clean_r2gen_iu, 60), "mimic": (clean_r2gen_mimic, 100),
             "r2gengpt-mimic": (clean_r2gengpt_mimic, 100)}


def reference_lists(hypotheses, references):
    """Texts or lists of texts → a list of texts per hypothesis. Raises UserError for sides that do not match."""
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} hypotheses and {len(references)} references; give a reference, or a list "
                        "of them, per hypothesis")
    if not len(hypotheses):
        raise UserError("no pair of texts to score; give at least one hypothesis with its reference")

    lists = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    for i, (hypothesis, texts) in enumerate(zip(hypotheses, lists)):
        if not isinstance(hypothesis, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"pair {i + 1}: a hypothesis is one text and a reference a text or a list of texts")
    return lists


def prepare(hypotheses, references, protocol="coco", cleaning="iu", reference_words=None):
    """Token strings of both sides: (list of texts, list of texts or lists of texts) → (list, list of lists).

    `cleaning` (iu, mimic, r2gengpt-mimic) and `reference_words` (None: as the cleaning's data set has it) belong to
    "r2gen". Raises UserError for sides that do not match.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is not known; take one of {', '.join(PROTOCOLS)}")
    if cleaning not in CLEANINGS:
        raise UserError(f"cleaning {cleaning!r} is not known; take one of {', '.join(CLEANINGS)}")
    lists = reference_lists(hypotheses, references)

    if protocol == "coco":
        return list(map(tokenize, hypotheses)), [list(map(tokenize, texts)) for texts in lists]
    clean, limit = CLEANINGS[cleaning]
    limit = reference_words or limit
    return ([" ".join(clean(text).split()) for text in hypotheses],
            [[" ".join(clean(text).split()[:limit]) for text in texts] for texts in lists])


def measure(hypotheses, references, lexicon):
    """Measured of token strings as `prepare` gives them; `lexicon` as read_lexicon gives it."""
    means = [rouge_l(hypotheses, references)[1], cider(hypotheses, references)[1], np.ones(len(hypotheses))]
    blocks = [bleu_statistics(hypotheses, references), meteor_statistics(hypotheses, references, lexicon),
              np.stack(means, axis=1)]
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]

    def values(summed):
        for_bleu, for_meteor, for_means = np.split(summed, ends, axis=-1)
        bleu = bleu_from(for_bleu)
        rouge, consensus, items = np.moveaxis(for_means, -1, 0)
        return {**{(f"BLEU-{k + 1}",): bleu[..., k] for k in range(4)},
                ("METEOR" if lexicon else "METEOR (exact+stem)",): meteor_from(for_meteor),
                ("ROUGE-L",): rouge / items, ("CIDEr",): consensus / items}

    return Measured(np.concatenate(blocks, axis=1), values)


def score(hypotheses, references, protocol="coco", meteor_data=None, cleaning="iu", reference_words=None, models=None):
    """Corpus scores of texts against texts or lists of texts.

    {"BLEU-1": …, "BLEU-4", "METEOR" or "METEOR (exact+stem)", "ROUGE-L", "CIDEr"}.

    Fractions, CIDEr as pycocoevalcap gives it. `meteor_data` is METEOR's folder; None looks for an installed
    pycocoevalcap, False uses none. `models` (metrics/model_based.py: ModelScores) adds the scores that networks give.
    Raises UserError.
    """
    prepared = prepare(hypotheses, references, protocol, cleaning, reference_words)
    parts = [measure(*prepared, read_lexicon(None if meteor_data is False else find_data(meteor_data)))]
    if models:
        parts.append(measure_scores(models(hypotheses, references, progress=False)))
    return {name: float(value) for part in parts
            for (name,), value in part.values(part.statistics.sum(0)).items()}
