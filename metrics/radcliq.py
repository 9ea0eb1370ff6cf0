"""RadCliQ: four scores of a report in one, weighted to predict how many errors a radiologist would count.

Yu et al. 2023, "Evaluating progress in automatic chest X-ray radiology report generation" (Patterns 4); coefficients
and normalisation are those of rajpurkarlab/CXR-Report-Metric 9c9ecad (composite_metric_model.pkl, normalizer.pkl,
radcliq-v1.pkl), read without unpickling. Of a pair of texts, with z = (x - mean) / scale,

    RadCliQ = intercept + Σ coefficient · z   over   RadGraph's combined F1, BERTScore's F1, SembScore, BLEU-2

Lower is better. ReXrank prints 1 / RadCliQ of a system's mean, of which higher is better; both stand side by side here.

Traps
- It is defined with radgraph.tar.gz and with BERTScore of distilroberta-base, layer 5, no idf, rescaled. With other
  models it is another number: its name says so.
- Its BLEU-2 is that of fast_bleu on one pair, with smoothing, on words at blanks: no other BLEU-2 of this project. v1
  gives it no weight.
- Runs of blanks in a text are one blank to its BERTScore.
- Below 0, which only reports close to their references reach, 1 / RadCliQ would say the opposite: there it is left out,
  and so is the interval where a draw of the bootstrap comes there, for 1 / RadCliQ then has no bound.
"""

from collections import Counter
from math import exp, sqrt
from typing import NamedTuple

import numpy as np

from metrics.intervals import Measured, measure_means

STANDARD = ("radgraph", "BERTScore (distilroberta-base, layer 5, no idf, rescaled)")


class Coefficients(NamedTuple):
    """Of RadGraph, BERTScore, SembScore and BLEU-2, in this order."""

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
    """BLEU-2 of one pair of texts, as fast_bleu has it by default (NLTK's smoothing 1: a tenth of a match for none)."""
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
    """(N,) of parts (N, 4): RadGraph's combined F1, BERTScore's F1, SembScore and BLEU-2 of N pairs."""
    weights, means, scales, intercept = VERSIONS[version]
    return (np.asarray(parts) - means) / scales @ np.asarray(weights) + intercept


def radcliq_scores(radgraph, bertscore, similarity, hypotheses, references, models=STANDARD):
    """{name: (N,)} of both versions for N pairs of texts, from their three other scores, (N,) each.

    models: the names of RadGraph's model and of the BERTScore, for the name of the value.
    """
    bleu = [bleu_2(*pair) for pair in zip(hypotheses, references, strict=True)]
    parts = np.column_stack([radgraph, bertscore, similarity, bleu])
    other = [model for model, standard in zip(models, STANDARD) if model != standard]
    note = f"; not as published: {', '.join(other)}" if other else ""
    return {f"{version} (lower is better{note})": radcliq(version, parts) for version in VERSIONS}


def measure_scores(scores):
    """Measured of {name: (N,)}, scores of N pairs: their means, and beside that of a RadCliQ its inverse."""
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
