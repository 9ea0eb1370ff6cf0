"""Scores of generated reports. `score` gives the language scores; the other files here define all further scores.

Two protocols, because the literature has two and calls both BLEU:
- "coco": as pycocoevalcap computes scores. Full references, Penn Treebank tokens, punctuation dropped.
- "r2gen": as R2Gen, R2GenCMN and R2GenGPT compute scores. Their cleaning function is applied to hypothesis and
  reference; it writes the full stop as a word of its own (" . "). Tokens are separated by blanks, so the full stop
  counts as a token. References are cut to 60 (IU X-Ray) or 100 (MIMIC-CXR) words. Published results were computed this
  way, so they are comparable with this protocol only.

What "r2gen" does not copy: the original replaces words of the reference that are rare in the training set by <unk>;
R2Gen's limit counts the start token, so that 59 or 99 words remain; R2GenGPT's limit counts LLaMA's sub-word tokens.
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
# Cleaning function, and the number of words to which a reference is cut.
CLEANINGS = {"iu": (clean_r2gen_iu, 60), "mimic": (clean_r2gen_mimic, 100),
             "r2gengpt-mimic": (clean_r2gengpt_mimic, 100)}


def reference_lists(hypotheses, references):
    """References, each a text or a list of texts → one list of texts per hypothesis.

    Raises UserError if the numbers of hypotheses and references differ, are 0, or an item is not text.
    """
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} hypotheses and {len(references)} references; give one reference, or a list "
                        "of references, per hypothesis")
    if not len(hypotheses):
        raise UserError("no pair of texts to score; give at least one hypothesis with its reference")

    lists = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    for i, (hypothesis, texts) in enumerate(zip(hypotheses, lists)):
        if not isinstance(hypothesis, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"pair {i + 1}: has a side without text; give one text as hypothesis, and one text or a "
                            "list of texts as reference")
    return lists


def prepare(hypotheses, references, protocol="coco", cleaning="iu", reference_words=None):
    """Token strings of N hypotheses and references: (N texts, N texts or lists of texts) → (N strings, N lists).

    `cleaning` (iu, mimic, r2gengpt-mimic) and `reference_words` (None: the limit of the cleaning's data set) apply to
    "r2gen" only. Raises UserError as `reference_lists` does, and for an unknown protocol or cleaning.
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
    """`Measured` language scores of the token strings from `prepare`; `lexicon` is the result of read_lexicon."""
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
    """Corpus scores of N texts against N references, each a text or a list of texts.

    Returns {"BLEU-1": …, "BLEU-4", "METEOR" or "METEOR (exact+stem)", "ROUGE-L", "CIDEr"}: fractions in [0, 1], but
    CIDEr from 0 to 10, as in pycocoevalcap.

    `meteor_data`: METEOR's folder; None looks for an installed pycocoevalcap, False does without the data. `models`: a
    ModelScores (metrics/model_based.py), whose scores are added. Raises UserError.
    """
    prepared = prepare(hypotheses, references, protocol, cleaning, reference_words)
    parts = [measure(*prepared, read_lexicon(None if meteor_data is False else find_data(meteor_data)))]
    if models:
        parts.append(measure_scores(models(hypotheses, references, progress=False)))
    return {name: float(value) for part in parts
            for (name,), value in part.values(part.statistics.sum(0)).items()}
