"""Decoding against transformers' `generate`, token for token, on the same random weights.

A difference counts as explained only if the two texts' scores under the reference itself are a float tie.
"""

import pytest
import torch
import torch.nn.functional as F
import transformers

from model.decode import Rules, Sampler, beam_search, generate
from model.mistral import Mistral
from model.steps import Steps

EOS, VOCAB, PROMPT, NEW = 7, 60, 5, 14
TIE = 1e-4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Pairs (ours, theirs): all attention, and a sliding window shorter than the prompt."""
    pairs = []
    for window in (None, 4):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("mistral")
        config = transformers.MistralConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                                            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.25,
                                            sliding_window=window)
        theirs = transformers.MistralForCausalLM(config).eval()
        with torch.no_grad():                              # so that texts end early, late and not at all
            theirs.lm_head.weight[EOS] *= 1.6
        theirs.save_pretrained(folder)
        pairs.append((Mistral.from_pretrained(folder).eval(), theirs))
    return pairs


def prompts(count, seed):
    return torch.randint(0, VOCAB, (count, PROMPT), generator=torch.Generator().manual_seed(seed))


def reference(model, ids, embeds=None, **settings):
    """(lists of new tokens up to the end, scores or None)."""
    source = dict(input_ids=ids) if embeds is None else dict(inputs_embeds=embeds)
    mask = torch.ones((ids if embeds is None else embeds).shape[:2], dtype=torch.long)
    out = model.generate(**source, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=EOS,
                         pad_token_id=EOS, return_dict_in_generate=True, output_scores=True, **settings)
    tokens = out.sequences[:, ids.shape[1] if embeds is None else 0:].tolist()
    return [row[:row.index(EOS)] if EOS in row else row for row in tokens], getattr(out, "sequences_scores", None)


MODES = {
    "greedy": {},
    "greedy, minimum length": dict(min_new_tokens=6),
    "greedy, repetition penalty": dict(repetition_penalty=1.7),
    "greedy, penalty below 1 and minimum": dict(repetition_penalty=0.8, min_new_tokens=3),
    "beam 3": dict(num_beams=3),
    "beam 5": dict(num_beams=5),
    "beam 3, early": dict(num_beams=3, early_stopping=True),
    "beam 5, early, long": dict(num_beams=5, early_stopping=True, length_penalty=2.0),
    "beam 3, long": dict(num_beams=3, length_penalty=2.0),
    "beam 3, no length": dict(num_beams=3, length_penalty=0.0),
    "beam 3, short": dict(num_beams=3, length_penalty=-1.0),
    "r2gengpt": dict(num_beams=3, length_penalty=2.0, repetition_penalty=2.0, min_new_tokens=5),
}


@pytest.mark.parametrize("given", ["ids", "embeds"])
@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
def test_token_for_token(models, settings, given):
    """52 prompts for each mode, model and input, in batches whose rows end at different times.

    Steps of one fixed shape give the same tokens.
    """
    kwargs = dict(settings)
    beams = kwargs.pop("num_beams", 1)
    lengths, unexplained, seed = set(), [], 0 if given == "ids" else 1000
    for ours, theirs in models:
        for batch in (1, 3, 16, 32):
            seed += 1
            ids = prompts(batch, seed)
            embeds = ours.embed(ids).detach() if given == "embeds" else None
            expected, scores = reference(theirs, ids, embeds, **settings)
            source = dict(ids=ids) if given == "ids" else dict(embeds=embeds)
            found = generate(ours, **source, max_new_tokens=NEW, eos_id=EOS, beams=beams, **kwargs)
            assert found == generate(ours, **source, max_new_tokens=NEW, eos_id=EOS, beams=beams, capture=True,
                                     **kwargs)
            lengths.update(map(len, found))
            for row in range(batch):
                pair = found[row], expected[row]
                if pair[0] != pair[1] and not tie(theirs, ids[row], *pair, given, settings):
                    unexplained.append((ids[row].tolist(), *pair))
            if beams > 1:
                rules = Rules(EOS, kwargs.get("min_new_tokens", 0), kwargs.get("repetition_penalty", 1.0))
                _, own = beam_search(ours, source.get("ids"), source.get("embeds"), NEW, beams, rules,
                                     kwargs.get("length_penalty", 1.0), kwargs.get("early_stopping", False))
                assert torch.allclose(torch.tensor(own), scores, rtol=1e-4, atol=1e-4)
    assert unexplained == []
    # The rows of a batch do end at different times, unless length is rewarded.
    assert len(lengths) > 3 or settings.get("length_penalty") == 2.0


@torch.no_grad()
def tie(model, prompt, one, other, given, settings):
    """Whether two texts part at a token where the reference's own scores are equal to rounding."""
    shared = next((i for i, (a, b) in enumerate(zip([*one, EOS], [*other, EOS])) if a != b))
    if settings.get("num_beams", 1) > 1:
        return False                                       # a tie between beams shows in their scores, compared apart
    text = torch.cat([prompt, torch.tensor(one[:shared], dtype=torch.long)])[None]
    scores = model(text).logits[:, -1].float()
    seen = text if given == "ids" else text[:, PROMPT:]
    rules = Rules(EOS, settings.get("min_new_tokens", 0), settings.get("repetition_penalty", 1.0))
    scores = rules.apply(scores, seen, shared)
    a, b = ([*one, EOS][shared], [*other, EOS][shared])
    return abs(scores[0, a] - scores[0, b]) < TIE


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_alone_equals_the_row_in_a_batch(models, beams):
    ours = models[0][0]
    ids = prompts(40, 99)
    together = generate(ours, ids=ids, max_new_tokens=NEW, eos_id=EOS, beams=beams)
    alone = [generate(ours, ids=row[None], max_new_tokens=NEW, eos_id=EOS, beams=beams)[0] for row in ids]
    assert together == alone


@pytest.mark.parametrize("every", [2, 3, 5, 40])
@pytest.mark.parametrize("settings", [{}, dict(repetition_penalty=1.7), dict(beams=3),
                                      dict(beams=3, early_stopping=True),
                                      dict(beams=4, length_penalty=0.0, repetition_penalty=1.5)])
@pytest.mark.parametrize("capture", [False, True])
def test_it_does_not_matter_when_finished_rows_are_looked_for(models, every, settings, capture, monkeypatch):
    for ours, _ in models:
        for batch in (1, 2, 17):
            ids = prompts(batch, 7 + batch)
            expected = generate(ours, ids=ids, max_new_tokens=NEW, eos_id=EOS, **settings)
            with monkeypatch.context() as patch:
                patch.setattr(Steps, "look_every", every)
                assert generate(ours, ids=ids, max_new_tokens=NEW, eos_id=EOS, capture=capture, **settings) == expected


def test_greedy_by_hand(models):
    ours = models[0][0]
    ids = prompts(1, 3)
    text = ids
    with torch.no_grad():
        for _ in range(NEW):
            text = torch.cat([text, ours(ids=text)[:, -1:].argmax(-1)], dim=1)
            if text[0, -1] == EOS:
                break
    expected = [token for token in text[0, PROMPT:].tolist() if token != EOS]
    assert generate(ours, ids=ids, max_new_tokens=NEW, eos_id=EOS) == [expected]


def test_beams_find_the_best_text_where_every_text_can_be_tried():
    """A model of six words whose scores are a fixed table: all 6 + 36 + 216 texts are scored by hand."""
    torch.manual_seed(3)
    table = F.log_softmax(torch.randn(7, 6) * 2, dim=-1)

    class Table:
        """Reads only the last token; row 6 of the table is the prompt."""
        config = type("Config", (), {"sliding_window": None})()

        def embed(self, ids):
            return F.one_hot(ids, 7).float()

        def new_cache(self, batch, length):
            return type("Cache", (), {"keep": lambda self, rows: None})()

        def hidden(self, ids=None, embeds=None, cache=None, positions=None, mask=None):
            return self.embed(ids) if embeds is None else embeds

        def logits(self, hidden):
            return hidden @ table

    def score(text):
        return sum(table[a, b] for a, b in zip([6, *text], text)) / len(text)

    texts, complete = [[]], []
    for length in range(1, 4):
        texts = [[*text, token] for text in texts for token in range(6)]
        complete += [text for text in texts if text[-1] == 0 or length == 3]
        texts = [text for text in texts if text[-1] != 0]
    best = max(complete, key=score)
    found, scores = beam_search(Table(), torch.tensor([[6]]), None, 3, 3, Rules(0))
    assert found == [[token for token in best if token != 0]]
    assert abs(scores[0] - score(best)) < 1e-5


def test_sampling_is_seeded_and_follows_the_distribution(models):
    ours = models[0][0]
    ids = prompts(1, 11)
    many = ids.expand(6000, -1)

    def draw(seed, **kw):
        return generate(ours, ids=many, max_new_tokens=1, eos_id=-1, temperature=0.7, seed=seed, **kw)

    assert draw(1) == draw(1) and draw(1) != draw(2)
    with torch.no_grad():
        expected = (ours(ids=ids)[0, -1] / 0.7).softmax(-1)
    for top_p in (1.0, 0.6):
        wanted = expected.clone()
        if top_p < 1:                                      # the smallest set of likeliest words that reaches top_p
            ordered, order = expected.sort(descending=True)
            kept = int((ordered.cumsum(0) < top_p).sum()) + 1
            wanted[order[kept:]] = 0
            wanted /= wanted.sum()
        counts = torch.bincount(torch.tensor(draw(5, top_p=top_p)).flatten(), minlength=VOCAB).float()
        assert not counts[wanted == 0].any()
        likely = wanted * 6000 > 5
        chi2 = ((counts - wanted * 6000)[likely] ** 2 / (wanted * 6000)[likely]).sum()
        assert chi2 < likely.sum() + 4 * (2 * likely.sum()) ** 0.5


def test_the_nucleus_equals_transformers():
    scores = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 3
    for top_p, temperature in ((0.9, 1.0), (0.5, 0.6), (0.05, 2.0)):
        sampler = Sampler(temperature, top_p, seed=0)
        expected = transformers.TopPLogitsWarper(top_p)(None, scores / temperature).softmax(-1)
        torch.manual_seed(0)
        drawn = torch.stack([sampler.choose(scores.clone()) for _ in range(200)])
        assert (expected.gather(1, drawn.T) > 0).all()
        assert all(len(set(drawn[:, row].tolist())) > 1 for row in range(50) if expected[row].max() < 0.8)


def test_logits_are_computed_only_where_they_are_used_and_the_cache_is_allocated_once(models):
    ours = models[0][0]
    widths, caches, prefixes = [], [], []
    logits, new_cache, hidden = ours.logits, ours.new_cache, ours.hidden
    try:
        ours.logits = lambda x: widths.append(x.shape[:-1]) or logits(x)
        ours.new_cache = lambda batch, length: caches.append((batch, length)) or new_cache(batch, length)
        ours.hidden = lambda **kw: prefixes.append(kw.get("embeds", kw.get("ids")).shape[:2]) or hidden(**kw)
        generate(ours, ids=prompts(2, 1), max_new_tokens=NEW, eos_id=-1 % VOCAB, beams=3, min_new_tokens=NEW)
    finally:
        del ours.logits, ours.new_cache, ours.hidden
    assert caches == [(2, PROMPT + 3 * NEW)]
    assert prefixes == [(2, PROMPT)] + [(2, 3)] * (NEW - 1)        # the prompt once, not once a beam
    assert widths == [(2,)] + [(2, 3)] * (NEW - 1)


def test_no_room_no_tokens_and_impossible_wishes(models):
    ours = models[0][0]
    assert generate(ours, ids=prompts(2, 1), max_new_tokens=0, eos_id=EOS) == [[], []]
    with pytest.raises(ValueError, match="beams"):
        generate(ours, ids=prompts(2, 1), max_new_tokens=3, eos_id=EOS, beams=3, temperature=1.0)
    with pytest.raises(ValueError, match="vocabulary"):
        generate(ours, ids=prompts(2, 1), max_new_tokens=3, eos_id=EOS, beams=31)
    with pytest.raises(ValueError, match="either"):
        generate(ours, max_new_tokens=3, eos_id=EOS)
