"""Disease clues (§2.2): m diseases as prompts, recognised zero-shot; the k most likely are injected.

    bank     every prompt of every disease, through the frozen text encoder, once; it never changes during a run
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


def clue_weights(v_cls, c_cls, tau):
    """w = softmax_i(v_cls · c^i_cls) of §2.2, item 4: (B, d), (m, d) → (B, m).

    Choice: the product is the cosine over the learned τ, as in stage 1; top-k would otherwise depend on norms.
    """
    return torch.softmax(cosine(v_cls, c_cls) / tau, dim=-1)


def cosine(a, b):
    """(A, d), (B, d) → (A, B), in fp32 under autocast too:
    over a τ of 0.01 bfloat16's rounding would choose the clues."""
    with torch.autocast(a.device.type, enabled=False):
        return nn.functional.normalize(a.float(), dim=-1) @ nn.functional.normalize(b.float(), dim=-1).T


def disease_scores(prompt_scores, disease, tau):
    """Cosines with P prompts (B, P), the disease of each (P,) → the m diseases' scores and best prompts, (B, m) both.

    s_i = τ log mean_p exp(cos_p / τ) over the prompts p of disease i. With one prompt a disease this is its cosine, so
    that w is the paper's. Choice: the mean, under the softmax, not the maximum: a disease with many prompts would win
    by their number, and one prompt's noise would decide.
    """
    m = int(disease.max()) + 1
    of_disease = disease == torch.arange(m, device=disease.device)[:, None]              # (m, P)
    scores = prompt_scores[:, None].masked_fill(~of_disease, -torch.inf)                 # (B, m, P)
    return tau * ((scores / tau).logsumexp(-1) - of_disease.sum(-1).log()), scores.argmax(-1)


class ClueBank(nn.Module):
    """The encoded prompts, as buffers: P prompts of m diseases, at most r tokens each beside the cls token.

    `tokens` (P, r, d), `cls` (P, d), `mask` (P, r) bool, `disease` (P,) the disease each prompt asks for.
    """

    def __init__(self, tokens, cls, mask, disease):
        super().__init__()
        for name, value in (("tokens", tokens), ("cls", cls), ("mask", mask), ("disease", disease)):
            self.register_buffer(name, value)

    @torch.no_grad()
    def forward(self, v_cls, tau, k, threshold=0.0):
        """Recognises the diseases in v_cls (B, d) and returns the k `Clues`.

        1. A disease's score, from those of its prompts (`disease_scores`).
        2. w, the softmax over the m diseases.
        3. The k heaviest; the best prompt's tokens of each, so that the clue carries this picture's severity and side.
        4. Clues lighter than `threshold` are masked out (0: none is; the paper's form).
        """
        scores, best = disease_scores(cosine(v_cls, self.cls), self.disease, tau)
        weights = torch.softmax(scores / tau, dim=-1)
        return self.inject(weights, best, weights.topk(k).indices, threshold)

    def inject(self, weights, best, disease, threshold=0.0):
        """The `Clues` for the diseases (B, k) that are given, whoever chose them, with the prompts `best` (B, m)."""
        prompt = best.gather(1, disease)
        heavy = weights.gather(1, disease) >= threshold
        mask = self.mask[prompt] & heavy[..., None]                                          # (B, k, r)
        return Clues(weights, disease, prompt, self.tokens[prompt].flatten(1, 2), mask.flatten(1))
