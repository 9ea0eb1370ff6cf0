"""Decoding: greedy, sampling and beam search, token for token what transformers' `generate` gives.

Beams share one row of the cache: they lie side by side in it as if they were one longer sequence, and a mask says which
of the stored tokens each beam descends from. The prompt is encoded and kept once for all beams, and when beams change
their order only the mask does.

      stored:   prompt | a1 b1 | a2 b2 | a3 b3        beam a now descends from a1 b2, beam b from a1 a2:
      a3 reads: 1 1 1  | 1  0  | 0  1  | 1  0
      b3 reads: 1 1 1  | 1  0  | 1  0  | 0  1

Shapes: B rows still decoding, K beams, V vocabulary, P prompt tokens.
"""

import torch
import torch.nn.functional as F

from model.few_rows import few_rows

DEAD = -1e9                            # the score of what must not be chosen; finite, as in the reference


@torch.inference_mode()
def generate(mistral, ids=None, embeds=None, *, max_new_tokens, eos_id, beams=1, min_new_tokens=0,
             repetition_penalty=1.0, length_penalty=1.0, early_stopping=False, temperature=0.0, top_p=1.0, seed=None):
    """The new tokens of each row, without the end-of-text token: a list of lists.

    The prompts (token ids (B, P) or embeddings (B, P, D)) are equally long. The repetition penalty sees the prompt
    where ids are given, the new tokens only where embeddings are. temperature 0 takes the likeliest token; above 0
    tokens are drawn from the top_p part of the distribution, repeatably where a seed is given. early_stopping: a row is
    done as soon as it has `beams` finished reports, not only when no open one can still win. The model should be in
    eval mode. Raises ValueError for impossible wishes.
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
            return beam_search(mistral, ids, embeds, max_new_tokens, beams, rules, length_penalty, early_stopping)[0]
        return one_by_one(mistral, ids, embeds, max_new_tokens, rules, Sampler(temperature, top_p, seed))


class Rules:
    """What is changed in the scores before a token is chosen."""

    def __init__(self, eos_id, min_new_tokens=0, repetition_penalty=1.0):
        self.eos_id, self.min_new_tokens, self.penalty = eos_id, min_new_tokens, repetition_penalty

    def apply(self, scores, seen, new):
        """scores (rows, V) after `new` tokens, seen (rows, tokens) what the penalty sees; changes scores in place."""
        if self.penalty != 1.0 and seen.shape[1]:
            found = scores.gather(1, seen)
            scores.scatter_(1, seen, torch.where(found < 0, found * self.penalty, found / self.penalty))
        if new < self.min_new_tokens:
            scores[:, self.eos_id] = -torch.inf
        return scores


class Sampler:
    """Chooses one token a row: the likeliest, or one from the nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""

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


def prefill(mistral, ids, embeds, length):
    """Encodes the prompt: (cache with room for `length` tokens in all, logits (B, V) of its last position)."""
    embeds = mistral.embed(ids) if embeds is None else embeds
    cache = mistral.new_cache(embeds.shape[0], length)
    hidden = mistral.hidden(embeds=embeds, cache=cache)
    return cache, mistral.logits(hidden[:, -1]).float()


def one_by_one(mistral, ids, embeds, max_new_tokens, rules, sampler):
    """Greedy decoding or sampling; a finished row is dropped from the batch once half of the batch is."""
    B, P = (ids if embeds is None else embeds).shape[:2]
    cache, scores = prefill(mistral, ids, embeds, P + max_new_tokens)
    seen = ids if ids is not None else torch.empty(B, 0, dtype=torch.long, device=scores.device)
    prompt = seen.shape[1]
    rows, finished = torch.arange(B, device=scores.device), torch.zeros(B, dtype=torch.bool, device=scores.device)
    results = [[] for _ in range(B)]
    for new in range(max_new_tokens):
        token = sampler.choose(rules.apply(scores, seen, new))
        seen = torch.cat([seen, token[:, None]], dim=1)
        finished = finished | (token == rules.eos_id)
        done = int(finished.sum())
        if done == len(rows) or new + 1 == max_new_tokens:
            break
        if 2 * done >= len(rows):
            for row, tokens in zip(rows[finished].tolist(), seen[finished, prompt:].tolist()):
                results[row] = tokens
            live = ~finished
            rows, seen, token, finished = rows[live], seen[live], token[live], finished[live]
            cache.keep(live)
        scores = mistral.logits(mistral.hidden(ids=token[:, None], cache=cache)[:, -1]).float()
    for row, tokens in zip(rows.tolist(), seen[:, prompt:].tolist()):
        results[row] = tokens
    return [until(tokens, rules.eos_id) for tokens in results]


def until(tokens, eos_id):
    return tokens[:tokens.index(eos_id)] if eos_id in tokens else tokens


def beam_search(mistral, ids, embeds, max_new_tokens, beams, rules, length_penalty=1.0, early_stopping=False):
    """The best of `beams` reports a row: (list of token lists, list of scores).

    A score is the sum of log-probabilities over (tokens with the end) ** length_penalty.
    1. Each open beam is continued by every token, and the best 2 K continuations are kept.
    2. Those that end join the K best finished ones, if they are among the best K.
    3. The best K that do not end stay open.
    4. A row is done when K are finished and the best open one could not beat the worst of them at its present length.
    """
    K, eos_id = beams, rules.eos_id
    B, P = (ids if embeds is None else embeds).shape[:2]
    cache, logits = prefill(mistral, ids, embeds, P + K * max_new_tokens)
    device, V = logits.device, logits.shape[-1]
    if V < 2 * K:
        raise ValueError(f"{K} beams need a vocabulary of at least {2 * K} tokens")
    prompt = ids if ids is not None else torch.empty(B, 0, dtype=torch.long, device=device)
    logits = logits[:, None]                               # one open beam at first: (B, 1, V)
    open_tokens = torch.empty(B, 1, 0, dtype=torch.long, device=device)
    open_scores = torch.zeros(B, 1, device=device)
    ended = Finished(B, K, max_new_tokens, eos_id, device)
    reads = torch.ones(B, 1, P, dtype=torch.bool, device=device)                       # (B, K, S): the mask above
    positions, own = torch.arange(P, device=device), torch.eye(K, dtype=torch.bool, device=device)
    rows, results, scores = torch.arange(B, device=device), [None] * B, [None] * B
    for new in range(1, max_new_tokens + 1):
        n = logits.shape[1]
        seen = torch.cat([prompt[:, None].expand(-1, n, -1), open_tokens], dim=2).flatten(0, 1)
        log_probs = rules.apply(F.log_softmax(logits.flatten(0, 1), dim=-1), seen, new - 1).view(-1, n, V)
        best, index = (log_probs + open_scores[:, :, None]).flatten(1).topk(2 * K)     # (B, 2 K)
        parent, token = index // V, index % V
        tokens = torch.cat([take(open_tokens, parent), token[:, :, None]], dim=2)
        ends = token == eos_id if new < max_new_tokens else torch.ones_like(token, dtype=torch.bool)
        ended.add(tokens, best / new**length_penalty, ends, early_stopping)
        open_scores, kept = (best + ends * DEAD).topk(K)
        parent, open_tokens = parent.gather(1, kept), take(tokens, kept)
        ended.close(open_scores[:, 0] / new**length_penalty, early_stopping)
        done = int(ended.closed.sum())
        if done == len(rows) or new == max_new_tokens:
            break
        if 2 * done >= len(rows):
            ended.hand_over(ended.closed, rows, results, scores)
            live = ~ended.closed
            rows, prompt, parent, reads = rows[live], prompt[live], parent[live], reads[live]
            open_tokens, open_scores = open_tokens[live], open_scores[live]
            ended.keep(live)
            cache.keep(live)
        reads = torch.cat([take(reads, parent), own.expand(len(rows), K, K)], dim=2)
        positions = torch.cat([positions, torch.full((K,), P + new - 1, device=device)])
        window = mistral.config.sliding_window
        mask = reads if window is None else reads & (positions > P + new - 1 - window)
        hidden = mistral.hidden(ids=open_tokens[:, :, -1], cache=cache, positions=positions[-K:], mask=mask)
        logits = mistral.logits(hidden).float()
    ended.hand_over(torch.ones_like(ended.closed), rows, results, scores)
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
        """tokens (B, 2 K, new), scores and ends (B, 2 K), best first; of these the first K may join."""
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
        """Closes the rows whose best open score, (B,), can't win any more."""
        full = self.full.all(dim=1)
        self.closed = self.closed | (full & (best_open <= self.scores.min(dim=1).values)) | (early_stopping & full)

    def hand_over(self, which, rows, results, scores):
        """Writes the best report and score of the rows in `which` to their places in the lists."""
        best = self.tokens[which, 0].tolist(), self.scores[which, 0].tolist()
        for row, tokens, score in zip(rows[which].tolist(), *best):
            results[row], scores[row] = until(tokens, self.eos_id), score

    def keep(self, rows):
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        self.full, self.closed = self.full[rows], self.closed[rows]
