"""Scores of pairs of texts by networks: SembScore, BERTScore, RadGraph-F1, and RadCliQ, which combines the three.

    models = ModelScores.from_pretrained(chexbert=DIR, bertscore=DIR, radgraph=DIR)      # any of them; read once
    models(hypotheses, references)                                    # {name: (N,)}, pair by pair
    metrics.score(hypotheses, references, models=models)              # their means beside BLEU and the rest

chexbert.py, bertscore.py, radgraph.py and radcliq.py define the scores and name their traps. With several references,
each score is the best over the references.
"""

from pathlib import Path

import numpy as np
import torch

from metrics import reference_lists
from metrics.bertscore import BertScorer
from metrics.chexbert import FILE, Labeler
from metrics.radcliq import radcliq_scores
from metrics.radgraph import ARCHIVES, RadGraph
from model.checkpoint import weight_files

SEMBSCORE = "SembScore (CheXbert vectors)"


class ModelScores:
    """Up to three networks and their scores; with all three networks also RadCliQ."""

    def __init__(self, chexbert=None, bertscore=None, radgraph=None, files=None):
        """A chexbert.Labeler, a BertScorer and a RadGraph, or None. files: {argument: files it was read from}."""
        self.chexbert, self.bertscore, self.radgraph, self.files = chexbert, bertscore, radgraph, files or {}

    @classmethod
    def from_pretrained(cls, chexbert=None, bertscore=None, radgraph=None, device=None):
        """Reads the networks in the given folders; device None: the GPU, if there is one. Raises UserError."""
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        networks, files = {}, {}
        if chexbert:
            networks["chexbert"] = Labeler.from_pretrained(chexbert, device)
            files["chexbert"] = [Path(chexbert) / FILE, Path(chexbert) / "vocab.txt"]
        if bertscore:
            networks["bertscore"] = BertScorer.from_pretrained(bertscore, device)
            files["bertscore"] = weight_files(bertscore)
        if radgraph:
            networks["radgraph"] = RadGraph.from_pretrained(radgraph, device)
            files["radgraph"] = [Path(radgraph) / ARCHIVES[networks["radgraph"].model_name]]
        return cls(**networks, files=files)

    def __call__(self, hypotheses, references, progress=True):
        """N texts and their references, each a text or a list of texts → {name: (N,)}. Equal texts are read once.

        Raises UserError as `metrics.reference_lists` does.
        """
        lists = reference_lists(hypotheses, references)
        pairs = [(text, reference) for text, of_text in zip(hypotheses, lists) for reference in of_text]
        sides = list(zip(*pairs))
        first = np.cumsum([0, *map(len, lists[:-1])])                   # where the pairs of each text begin

        scores, parts = {}, {}
        if self.chexbert:
            parts["similarity"] = scores[SEMBSCORE] = self.chexbert.similarity(*sides, progress=progress)
        if self.bertscore:
            parts["bertscore"] = scores[self.bertscore.name()] = self.bertscore(*sides, progress=progress)[:, 2]
        if self.radgraph:
            levels = self.radgraph.scores(*sides, progress=progress)
            scores |= {f"RadGraph-F1, {level} ({self.radgraph.model_name})": f1 for level, f1 in levels.items()}
            parts["radgraph"] = levels["combined"]
        best = {name: np.maximum.reduceat(values, first) for name, values in scores.items()}

        if len(parts) == 3:
            lower = radcliq_scores(**parts, hypotheses=sides[0], references=sides[1],
                                   models=(self.radgraph.model_name, self.bertscore.name()))
            best |= {name: np.minimum.reduceat(values, first) for name, values in lower.items()}
        return best
