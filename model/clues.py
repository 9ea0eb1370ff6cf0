"""Disease clues (§2.2): m diseases as prompts, recognised zero-shot; the k most likely are injected.

    bank     every prompt of every disease, encoded once by the frozen text encoder; it does not change during a run
    weights  w = softmax_i(v_cls · c^i_cls / τ) over the m diseases
    top-k    the k heaviest diseases; their prompts' tokens, without the cls token, are the clue c_s
"""

from typing import NamedTuple

import torch
from torch import nn


class Clues(NamedTuple):
    """The clues of B studies, heaviest first."""

    weights: torch.Tensor   # (B, m)        w, of all diseases
    disease: torch.Tensor   # (B, k)        the chosen diseases' indices
    prompt: torch.Tensor    # (B, k)        the winning prompt of each, an index into the bank
    tokens: torch.Tensor    # (B, k*r, d)   c_s, flattened
    mask: torch.Tensor      # (B, k*r)      True where there is a token (False: padding, or a clue under the threshold)

    @property
    def injected(self):
        """(B, k), True where a clue is not masked out."""
        return self.mask.unflatten(1, (self.disease.shape[1], -1)).any(-1)


def clue_weights(v_cls, c_cls, disease, m, tau):
    """w = softmax_i(v_cls · c^i_cls) of §2.2: (B, d), (P, d), (P,) → w and each disease's best prompt, (B, m) both.

    Choice: the product is the cosine, divided by the learned τ, as in stage 1; otherwise top-k would depend on norms.
    The paper has one prompt per disease; with several, `disease_scores` gives a disease's score.
    """
    scores, best = disease_scores(cosine(v_cls, c_cls), disease, m, tau)
    return torch.softmax(scores / tau, dim=-1), best


def disease_scores(cosines, disease, m, tau):
    """Cosines with P prompts (B, P), the disease of each (P,) → the m diseases' scores and best prompts, (B, m) both.

    s_i = τ log mean_p exp(cos_p / τ) over the prompts p of disease i. With one prompt per disease s_i is its cosine, so
    w is the paper's. Choice: the mean of the exponentials, not the maximum, which favours diseases with many prompts
    and depends on the noise of a single prompt.
    """
    of_disease = disease == torch.arange(m, device=disease.device)[:, None]              # (m, P)
    scores = cosines[:, None].masked_fill(~of_disease, -torch.inf)                       # (B, m, P)
    return tau * ((scores / tau).logsumexp(-1) - of_disease.sum(-1).log()), scores.argmax(-1)


def cosine(a, b):
    """(A, d), (B, d) → (A, B), in fp32 even under autocast: divided by τ = 0.01, bfloat16's rounding would decide."""
    with torch.autocast(a.device.type, enabled=False):
        return nn.functional.normalize(a.float(), dim=-1) @ nn.functional.normalize(b.float(), dim=-1).T


class ClueBank(nn.Module):
    """The encoded prompts, as buffers: P prompts of m diseases, with at most r tokens each besides the cls token.

    `tokens` (P, r, d), `cls` (P, d), `mask` (P, r) bool, `disease` (P,): the index of each prompt's disease; `texts`:
    the P prompts as text.
    """

    def __init__(self, tokens, cls, mask, disease, m, texts=()):
        super().__init__()
        self.m, self.texts = m, texts
        for name, value in (("tokens", tokens), ("cls", cls), ("mask", mask), ("disease", disease)):
            self.register_buffer(name, value)

    @classmethod
    def empty(cls, P, r, d, m, texts=()):
        """A bank of these sizes, to be filled from a checkpoint."""
        return cls(tokens=torch.empty(P, r, d), cls=torch.empty(P, d), mask=torch.empty(P, r, dtype=torch.bool),
                   disease=torch.empty(P, dtype=torch.long), m=m, texts=texts)

    @torch.no_grad()
    def forward(self, v_cls, tau, k, threshold=0.0):
        """Recognises the diseases in v_cls (B, d) and returns the k `Clues`.

        1. w over the m diseases, and the best prompt of each (`clue_weights`).
        2. The k heaviest diseases, each with its best prompt's tokens, which name this picture's severity and side.
        3. Clues with a weight below `threshold` are masked out (0: no clue is; the paper's form).
        """
        weights, best = clue_weights(v_cls, self.cls, self.disease, self.m, tau)
        return self.inject(weights, best, weights.topk(k).indices, threshold)

    def inject(self, weights, best, disease, threshold=0.0):
        """The `Clues` for the given diseases (B, k), with each disease's prompt from `best` (B, m)."""
        prompt = best.gather(1, disease)
        heavy = weights.gather(1, disease) >= threshold
        mask = self.mask[prompt] & heavy[..., None]                                          # (B, k, r)
        return Clues(weights, disease, prompt, self.tokens[prompt].flatten(1, 2), mask.flatten(1))
