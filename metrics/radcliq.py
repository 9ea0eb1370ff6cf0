"""RadCliQ: a weighted sum of four scores of a report, fitted to predict how many errors a radiologist would count.

Yu et al. 2023, "Evaluating progress in automatic chest X-ray radiology report generation" (Patterns 4); coefficients
and normalisation are those of rajpurkarlab/CXR-Report-Metric 9c9ecad (composite_metric_model.pkl, normalizer.pkl,
radcliq-v1.pkl), read without unpickling. For a pair of texts, with z = (x - mean) / scale,

    RadCliQ = intercept + Σ coefficient · z   over   RadGraph's combined F1, BERTScore's F1, SembScore, BLEU-2

Lower is better. ReXrank prints 1 / (a system's mean RadCliQ), where higher is better; this project prints both.

Traps
- RadCliQ is defined with radgraph.tar.gz and with BERTScore of distilroberta-base, layer 5, no idf, rescaled. With
  other models it is a different number, and its name says so.
- RadCliQ's BLEU-2 is fast_bleu's on one pair, with smoothing, on words split at blanks. It differs from every other
  BLEU-2 of this project. v1 gives it practically no weight.
- RadCliQ's BERTScore reads a run of blanks as one blank.
- RadCliQ can be negative for reports close to their references. The order of 1 / RadCliQ would then be reversed, so it
  is left out; so is its interval if the mean of any draw of the bootstrap is negative.
"""

from collections import Counter
from math import exp, sqrt
from typing import NamedTuple

import numpy as np

from metrics.intervals import Measured, measure_means

STANDARD = ("radgraph", "BERTScore (distilroberta-base, layer 5, no idf, rescaled)")


class Coefficients(NamedTuple):
    """Coefficients of RadGraph, BERTScore, SembScore and BLEU-2, in this order."""

    weights: tuple
    means: tuple
    scales: tuple
    intercept: float


VERSIONS = {
    "RadCliQ-v0": Coefficients(
        weights=(-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535),
        means=(0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605),
        scales=(0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264),
        intercept=1.641666666666666),
    "RadCliQ-v1": Coefficients(
        weights=(-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12),
        means=(0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174),
        scales=(0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838),
        intercept=2.466552561323256e-10),
}


def bleu_2(hypothesis, reference):
    """BLEU-2 of one pair of texts, as fast_bleu's default (NLTK's smoothing 1: no match counts as a tenth of one)."""
    words, reference_words = ([word for word in text.lower().replace(".", " .").split(" ") if word]
                              for text in (hypothesis, reference))
    precisions = []
    for n in (1, 2):
        grams, bound = (Counter(zip(*(side[i:] for i in range(n)))) for side in (words, reference_words))
        matches, possible = (grams & bound).total(), max(1, grams.total())
        if n == 1 and not matches:
            return 0.0
        precisions.append((matches or 0.1) / possible)
    return sqrt(precisions[0] * precisions[1]) * min(1.0, exp(1 - len(reference_words) / len(words)))


def radcliq(version, parts):
    """parts (N, 4), RadGraph's combined F1, BERTScore's F1, SembScore and BLEU-2 of N pairs → RadCliQ (N,)."""
    weights, means, scales, intercept = VERSIONS[version]
    return (np.asarray(parts) - means) / scales @ np.asarray(weights) + intercept


def radcliq_scores(radgraph, bertscore, similarity, hypotheses, references, models=STANDARD):
    """N pairs of texts and their three other scores, (N,) each → {name: (N,)} of both versions.

    models: the names of RadGraph's model and of the BERTScore; the value's name mentions other models than STANDARD.
    """
    bleu = [bleu_2(*pair) for pair in zip(hypotheses, references, strict=True)]
    parts = np.column_stack([radgraph, bertscore, similarity, bleu])
    other = [model for model, standard in zip(models, STANDARD) if model != standard]
    note = f"; not as published: {', '.join(other)}" if other else ""
    return {f"{version} (lower is better{note})": radcliq(version, parts) for version in VERSIONS}


def measure_scores(scores):
    """{name: (N,) scores of pairs} → `Measured`: the mean of each score, and for a RadCliQ also 1 / mean."""
    means = measure_means(scores)

    def values(summed):
        figures = {}
        for (name,), mean in means.values(summed).items():
            figures[name,] = mean
            if name.startswith("RadCliQ"):
                positive = np.all(mean > 0)                 # of all draws at once
                figures["1 / " + name.replace("lower", "higher", 1),] = 1 / mean if positive else mean * np.nan
        return figures

    return Measured(means.statistics, values)
