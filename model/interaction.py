"""Cross-modal clue interaction (§2.2): two streams meet in the learnable queries E.

    Eq. (2)   V' = SelfAttn(W_V v_d),   C' = SelfAttn(W_C c_s)
    Eq. (3)   E^v = FFN(Attn(E, V', V')),   E^c = FFN(Attn(E, C', C')),   E ∈ R^{L×d} shared, weights not
    Eq. (4)   L_DC = -(1/K) Σ_i cos(E^v_i, E^c_i)

Masks are bool, True where there is a token:   tokens  right lung base [pad] [pad]
                                               mask      1    1    1     0     0
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention


class Attention(nn.Module):
    """softmax(Q K^T / √(d/h)) V with h heads, as Attn(queries, keys, values) in Eq. (2) and (3)."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, queries, context, mask=None):
        """(B, Q, d), (B, S, d), (B, S) → (B, Q, d).

        A row whose mask is all False (every clue under the threshold) attends to nothing and gives zeros.
        """
        q, k = self.queries_and_keys(queries, context)
        v = split_heads(self.value(context), self.heads)
        if mask is None:
            return self.out(join_heads(scaled_dot_product_attention(q, k, v)))

        # Softmax over nothing is NaN, so an empty row attends to everything, and its result is set to zero
        filled = mask.any(-1)[:, None, None]                                                 # (B, 1, 1)
        allowed = (mask[:, None] | ~filled)[:, None]                                         # (B, 1, 1, S)
        return self.out(join_heads(scaled_dot_product_attention(q, k, v, attn_mask=allowed))) * filled

    def weights(self, queries, context):
        """Where the queries look, the mean over the heads: (B, Q, d), (B, S, d) → (B, Q, S), each row summing to 1."""
        q, k = self.queries_and_keys(queries, context)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)

    def queries_and_keys(self, queries, context):
        return split_heads(self.query(queries), self.heads), split_heads(self.key(context), self.heads)


def split_heads(x, heads):
    """(B, S, d) → (B, heads, S, d / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x):
    """(B, heads, S, d / heads) → (B, S, d)."""
    return x.transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """Eq. (2): linear projection, then one layer of self-attention. Choice: pre-norm with residual."""

    def __init__(self, d, heads):
        super().__init__()
        self.project, self.norm, self.attention = nn.Linear(d, d), nn.LayerNorm(d), Attention(d, heads)

    def forward(self, x, mask=None):
        x = self.project(x)
        y = self.norm(x)
        return x + self.attention(y, y, mask)


class Extract(nn.Module):
    """Eq. (3): the queries read one stream. Choice: residual around both parts, pre-norm, FFN of 4d with GELU."""

    def __init__(self, d, heads):
        super().__init__()
        self.norm_queries, self.norm_context, self.attention = nn.LayerNorm(d), nn.LayerNorm(d), Attention(d, heads)
        self.ffn = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, queries, context, mask=None):
        x = queries + self.attention(self.norm_queries(queries), self.norm_context(context), mask)
        return x + self.ffn(x)

    def weights(self, queries, context):
        """Where the queries look in the stream: (B, L, d), (B, S, d) → (B, L, S)."""
        return self.attention.weights(self.norm_queries(queries), self.norm_context(context))


class Interacted(NamedTuple):
    """The queries' output for picture and clues, which Eq. (4) compares."""

    v: torch.Tensor   # (B, L, d)   E^v, what the queries found in the picture
    c: torch.Tensor   # (B, L, d)   E^c, what the queries found in the clues


class Interaction(nn.Module):
    """Eq. (2) and (3) together: one set of queries, "a common feature space", and a stream of its own for each side."""

    def __init__(self, d, heads, queries):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, d) * d ** -0.5)
        self.visual_stream, self.clue_stream = Stream(d, heads), Stream(d, heads)
        self.visual_extract, self.clue_extract = Extract(d, heads), Extract(d, heads)

    def forward(self, v_d, c_s, clue_mask):
        """v_d (B, N, d), c_s (B, S, d), clue_mask (B, S) → `Interacted`."""
        queries = self.queries.expand(len(v_d), -1, -1)
        return Interacted(v=self.visual_extract(queries, self.visual_stream(v_d)),
                          c=self.clue_extract(queries, self.clue_stream(c_s, clue_mask), clue_mask))

    @torch.no_grad()
    def visual_attention(self, v_d):
        """Where the queries look in the picture: (B, N, d) → (B, L, N), each row summing to 1."""
        queries = self.queries.expand(len(v_d), -1, -1)
        return self.visual_extract.weights(queries, self.visual_stream(v_d))


def disease_consistency(e_v, e_c):
    """Eq. (4): L_DC = -(1/K) Σ_i cos(E^v_i, E^c_i), for every study: (B, K, d) twice → (B,), between -1 and 1.

    Choice: K is the number of query tokens.
    """
    return -cosine_similarity(e_v, e_c, dim=-1).mean(-1)
