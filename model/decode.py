"""Decoding: greedy, sampling and beam search; gives the same tokens as transformers' `generate`.

All beams share one row of the cache: their tokens are stored side by side, like one longer sequence, and a mask tells
which stored tokens each beam descends from. So the prompt is encoded and stored once for all beams, and when beams
change their order, only the mask changes.

      stored:   prompt | a1 b1 | a2 b2 | a3 b3        beam a now descends from a1 b2, beam b from a1 a2:
      a3 reads: 1 1 1  | 1  0  | 0  1  | 1  0
      b3 reads: 1 1 1  | 1  0  | 1  0  | 0  1

Shapes: B rows still decoding, K beams, V vocabulary, P prompt tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.few_rows import few_rows
from model.steps import FixedSteps, Steps

DEAD = -1e9                            # the score of a beam that must not be chosen; finite, as in transformers


@torch.inference_mode()
def generate(mistral, ids=None, embeds=None, *, max_new_tokens, eos_id, beams=1, min_new_tokens=0,
             repetition_penalty=1.0, length_penalty=1.0, early_stopping=False, temperature=0.0, top_p=1.0, seed=None,
             capture=False):
    """The new tokens of each row, without the end-of-text token: a list of lists.

    All prompts, token ids (B, P) or embeddings (B, P, D), are equally long. The repetition penalty sees the prompt and
    the new tokens if ids are given, and only the new tokens if embeddings are given. temperature 0 takes the likeliest
    token; above 0, tokens are drawn from the top_p part of the distribution, reproducibly if a seed is given.
    early_stopping: a row is done as soon as it has `beams` finished reports; otherwise when no open report can become
    better than these. capture: a GPU records a step once per shape and replays it; the first report of a shape takes
    longer, later ones less (model/steps.py). The model should be in eval mode. Raises ValueError for options that
    exclude each other.
    """
    if (ids is None) == (embeds is None):
        raise ValueError("give either ids or embeds")
    if max_new_tokens < 1:
        return [[] for _ in (ids if embeds is None else embeds)]
    if beams > 1 and temperature > 0:
        raise ValueError("beams are not drawn at random: give beams=1 or temperature=0")
    rules = Rules(eos_id, min_new_tokens, repetition_penalty)
    with few_rows(mistral):
        if beams > 1:
            return beam_search(mistral, ids, embeds, max_new_tokens, beams, rules, length_penalty, early_stopping,
                               capture)[0]
        return one_by_one(mistral, ids, embeds, max_new_tokens, rules, Sampler(temperature, top_p, seed), capture)


class Rules:
    """Changes of the scores before a token is chosen: repetition penalty and minimum length."""

    def __init__(self, eos_id, min_new_tokens=0, repetition_penalty=1.0):
        self.eos_id, self.min_new_tokens, self.penalty = eos_id, min_new_tokens, repetition_penalty

    def apply(self, scores, seen, new):
        """Changes scores (rows, V) after `new` tokens, in place; seen (rows, tokens): the tokens to be penalised."""
        if self.penalty != 1.0 and seen.shape[1]:
            repeated = scores.gather(1, seen)
            scores.scatter_(1, seen, torch.where(repeated < 0, repeated * self.penalty, repeated / self.penalty))
        if new < self.min_new_tokens:
            scores[:, self.eos_id] = -torch.inf
        return scores


class Sampler:
    """Chooses one token per row: the likeliest, or one from the nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""

    def __init__(self, temperature, top_p, seed):
        self.temperature, self.top_p, self.seed, self.generator = temperature, top_p, seed, None

    def choose(self, scores):
        if self.temperature == 0:
            return scores.argmax(dim=-1)
        if self.generator is None and self.seed is not None:
            self.generator = torch.Generator(scores.device).manual_seed(self.seed)
        scores = scores / self.temperature
        if self.top_p < 1:
            ordered, order = scores.sort(dim=-1)
            outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            outside[:, -1] = False
            scores = scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)[:, 0]


def one_by_one(mistral, ids, embeds, max_new_tokens, rules, sampler, capture=False):
    """Greedy decoding or sampling; finished rows are dropped from the batch once they are half of it."""
    step = (FixedSteps if capture else Steps)(mistral, ids, embeds, width=1, steps=max_new_tokens)
    logits, device = step.logits, step.logits.device
    B = len(logits)
    seen = ids if ids is not None else torch.empty(B, 0, dtype=torch.long, device=device)
    prompt = seen.shape[1]
    rows, finished = torch.arange(B, device=device), torch.zeros(B, dtype=torch.bool, device=device)
    results = [[] for _ in range(B)]

    for new in range(1, max_new_tokens + 1):
        # A finished row continues with the others; `hand_over` cuts off the tokens after its end.
        token = sampler.choose(rules.apply(logits, seen, new - 1))
        seen = torch.cat([seen, token[:, None]], dim=1)
        finished = finished | (token == rules.eos_id)
        if new == max_new_tokens:
            break

        if new % step.look_every == 0:
            done = int(finished.sum())
            if done == len(rows):
                break
            if 2 * done >= len(rows) and step.keep(~finished):
                hand_over(seen[finished, prompt:], rows[finished], rules.eos_id, results)
                token, rows, seen, finished = (of_rows[~finished] for of_rows in (token, rows, seen, finished))

        logits = step(token[:, None])[:, -1]
    hand_over(seen[:, prompt:], rows, rules.eos_id, results)
    return results


def hand_over(texts, rows, eos_id, results):
    """Writes the token lists of texts (rows, tokens), cut before the end token, to `results` at the given rows."""
    for row, tokens in zip(rows.tolist(), texts.tolist()):
        results[row] = tokens[:tokens.index(eos_id)] if eos_id in tokens else tokens


class Beams(NamedTuple):
    """The open (unfinished) beams of all rows that are still decoding."""
    rows: torch.Tensor                 # (B,) the index of each row's prompt
    prompt: torch.Tensor               # (B, P) the prompt's tokens that the repetition penalty sees
    tokens: torch.Tensor               # (B, K, new) the texts
    scores: torch.Tensor               # (B, K) sums of log-probabilities
    reads: torch.Tensor                # (B, K, stored) the mask described above

    def keep(self, rows):
        return Beams(*(of_rows[rows] for of_rows in self))

    def seen(self):
        """(B * K, tokens): what the repetition penalty sees."""
        return torch.cat([self.prompt[:, None].expand(-1, self.tokens.shape[1], -1), self.tokens], dim=2).flatten(0, 1)


def beam_search(mistral, ids, embeds, max_new_tokens, beams, rules, length_penalty=1.0, early_stopping=False,
                capture=False):
    """The best of `beams` reports per row: (list of token lists, list of scores).

    A score is the sum of log-probabilities over (tokens with the end) ** length_penalty.
    1. Each open beam is continued by every token, and the best 2 K continuations are kept.
    2. Those that end join the K best finished ones, if they are among the best K.
    3. The best K that do not end stay open.
    4. A row is done when K are finished and the best open one could not beat the worst of them at its present length.
    """
    K, P = beams, (ids if embeds is None else embeds).shape[1]
    step = (FixedSteps if capture else Steps)(mistral, ids, embeds, width=K, steps=max_new_tokens)
    (B, V), device = step.logits.shape, step.logits.device
    if V < 2 * K:
        raise ValueError(f"{K} beams need a vocabulary of at least {2 * K} tokens")
    logits = step.logits[:, None]                          # one open beam at first: (B, 1, V)
    opened = Beams(rows=torch.arange(B, device=device),
                   prompt=ids if ids is not None else torch.empty(B, 0, dtype=torch.long, device=device),
                   tokens=torch.empty(B, 1, 0, dtype=torch.long, device=device),
                   scores=torch.zeros(B, 1, device=device),
                   reads=torch.ones(B, 1, P, dtype=torch.bool, device=device))
    finished = Finished(B, K, max_new_tokens, rules.eos_id, device)
    itself = torch.eye(K, dtype=torch.bool, device=device)
    results, scores = [None] * B, [None] * B

    for new in range(1, max_new_tokens + 1):
        # 1. At most K of the best 2 K end, one per beam, so at least K stay open.
        log_probs = rules.apply(F.log_softmax(logits.flatten(0, 1), dim=-1), opened.seen(), new - 1)
        sums = log_probs.view(logits.shape) + opened.scores[:, :, None]
        best, index = sums.flatten(1).topk(2 * K)                                      # (B, 2 K)
        parent, token = index // V, index % V
        tokens = torch.cat([take(opened.tokens, parent), token[:, :, None]], dim=2)

        # 2. At the limit all of them end.
        ends = (token == rules.eos_id) | (new == max_new_tokens)
        finished.add(tokens, best / new**length_penalty, ends, early_stopping)

        # 3. A beam reads what its parent read.
        best_open, kept = (best + ends * DEAD).topk(K)
        opened = opened._replace(tokens=take(tokens, kept), scores=best_open,
                                 reads=take(opened.reads, parent.gather(1, kept)))

        # 4. Finished rows leave the batch once they are half of it.
        finished.close(best_open[:, 0] / new**length_penalty, early_stopping)
        if new == max_new_tokens:
            break
        if new % step.look_every == 0:
            done = int(finished.closed.sum())
            if done == len(opened.rows):
                break
            if 2 * done >= len(opened.rows) and step.keep(~finished.closed):
                live = ~finished.closed
                finished.hand_over(finished.closed, opened.rows, results, scores)
                opened, finished = opened.keep(live), finished.keep(live)

        # Each beam's last token is stored after all others, and is read by this beam only.
        opened = opened._replace(reads=torch.cat([opened.reads, itself.expand(len(opened.rows), K, K)], dim=2))
        logits = step(opened.tokens[:, :, -1], opened.reads)
    finished.hand_over(torch.ones_like(finished.closed), opened.rows, results, scores)
    return results, scores


def take(x, index):
    """x (B, n, …) and index (B, m) → (B, m, …)."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


class Finished:
    """The best K finished reports of each row, best first, and whether the row is closed to further ones."""

    def __init__(self, rows, beams, length, eos_id, device):
        self.eos_id = eos_id
        self.tokens = torch.full((rows, beams, length), eos_id, device=device)
        self.scores = torch.full((rows, beams), DEAD, device=device)
        self.full = torch.zeros(rows, beams, dtype=torch.bool, device=device)
        self.closed = torch.zeros(rows, dtype=torch.bool, device=device)

    def add(self, tokens, scores, ends, early_stopping):
        """tokens (B, 2 K, new), scores and ends (B, 2 K), best first; the first K are added if they end."""
        (_, K), new = self.scores.shape, tokens.shape[2]
        joins = ends.clone()
        joins[:, K:] = False
        shut = self.closed[:, None] | (early_stopping & self.full.all(dim=1, keepdim=True))
        scores = scores + ~joins * DEAD + shut * DEAD
        padded = F.pad(tokens, (0, self.tokens.shape[2] - new), value=self.eos_id)
        self.scores, kept = torch.cat([self.scores, scores], dim=1).topk(K)
        self.tokens = take(torch.cat([self.tokens, padded], dim=1), kept)
        self.full = torch.cat([self.full, joins], dim=1).gather(1, kept)

    def close(self, best_open, early_stopping):
        """Closes the rows whose best open score, (B,), cannot beat the finished ones."""
        full = self.full.all(dim=1)
        self.closed = self.closed | (full & (best_open <= self.scores.min(dim=1).values)) | (early_stopping & full)

    def hand_over(self, which, rows, results, scores):
        """Writes the best report and score of the rows in `which` to their places in the lists."""
        hand_over(self.tokens[which, 0], rows[which], self.eos_id, results)
        for row, score in zip(rows[which].tolist(), self.scores[which, 0].tolist()):
            scores[row] = score

    def keep(self, rows):
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        self.full, self.closed = self.full[rows], self.closed[rows]
        return self
