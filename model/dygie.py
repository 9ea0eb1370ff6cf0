"""DyGIE++, the network of RadGraph: spans of words, their entity labels, and the relations between them.

Wadden et al. 2019, arXiv:1909.03546; dwadden/dygiepp, as published for RadGraph (Jain et al. 2021, arXiv:2106.14463).
No coreference and no events, which RadGraph does not use.

    words      mean of the last hidden states of a word's pieces, (W, D)
    spans      all runs of at most `max_span_width` words: [first word; last word; embedding of the width], (S, 2 D + F)
    entities   feed-forward and linear to all labels but the null label, whose score is 0; the largest wins
    pruning    a second feed-forward scores spans as mentions; the best ⌈spans_per_word · W⌉ are kept
    relations  [a; b; a · b] of two kept spans → feed-forward → linear, plus both mention scores; null is 0 again
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import nn

from data.files import UserError
from model.bert import Bert, BertConfig
from model.checkpoint import embedding

PAIRS = 4096  # pairs of spans at a time, which bounds the memory


@dataclass(frozen=True)
class DygieConfig:
    """The network's labels and sizes, from an archive's vocabulary and config.json."""

    entity_labels: tuple
    relation_labels: tuple
    max_span_width: int
    width_size: int
    hidden_sizes: tuple
    spans_per_word: float
    max_length: int  # word pieces that BERT reads at once, including the two special ones


class Scorer(nn.Module):
    """Linear layers with ReLU, then a linear one to the scores."""

    def __init__(self, width, hidden_sizes, scores):
        super().__init__()
        widths = [width, *hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.out = nn.Linear(widths[-1], scores)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.out(x)


class Dygie(nn.Module):
    def __init__(self, config: DygieConfig, bert_config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = Bert(bert_config)
        width = 2 * bert_config.hidden_size + config.width_size
        self.widths = embedding(config.max_span_width, config.width_size)
        self.entity = Scorer(width, config.hidden_sizes, len(config.entity_labels) - 1)
        self.mention = Scorer(width, config.hidden_sizes, 1)
        self.relation = Scorer(3 * width, config.hidden_sizes, len(config.relation_labels))

    def forward(self, words):
        """A text's words (W, D) → ({(first, last): entity label}, {((first, last), (first, last)): relation label}).

        A span is the indices of its first and last word, both included. Entities are ordered by their spans.
        """
        W = len(words)
        widest = self.config.max_span_width
        spans = [(first, last) for first in range(W) for last in range(first, min(first + widest, W))]
        if not spans:
            return {}, {}

        first, last = torch.tensor(spans, device=words.device).T
        vectors = torch.cat([words[first], words[last], self.widths(last - first)], dim=-1)
        labels = with_null(self.entity(vectors)).argmax(-1).tolist()
        entities = {span: self.config.entity_labels[label] for span, label in zip(spans, labels) if label}

        # In single precision, as in the reference: rounding decides whether the product is a whole number.
        keep = max(1, ceil(np.float32(W) * np.float32(self.config.spans_per_word)))
        mention = self.mention(vectors)[:, 0]
        kept = mention.topk(min(keep, len(spans))).indices.sort().values
        labels = self.relation_labels(vectors[kept], mention[kept]).cpu()
        kept = [spans[number] for number in kept.tolist()]
        relations = {(kept[i], kept[j]): self.config.relation_labels[labels[i, j] - 1]
                     for i, j in labels.nonzero().tolist()}
        return entities, relations

    def relation_labels(self, vectors, mention):
        """Vectors (K, 2 D + F) of K spans and their mention scores (K,) → (K, K) label numbers, 0 for no relation."""
        K = len(vectors)
        labels = []
        for rows in torch.arange(K, device=vectors.device).split(max(1, PAIRS // K)):
            a = vectors[rows, None].expand(-1, K, -1)
            b = vectors[None].expand(len(rows), -1, -1)
            scores = self.relation(torch.cat([a, b, a * b], dim=-1))
            scores = scores + mention[rows, None, None] + mention[None, :, None]
            labels.append(with_null(scores).argmax(-1))
        return torch.cat(labels)


def with_null(scores):
    """Scores (..., k) with the null label's 0 before them, (..., k + 1)."""
    return torch.cat([torch.zeros_like(scores[..., :1]), scores], dim=-1)


def renames(namespace):
    """Published names → the names here, of the data set whose scorers are taken; other heads are dropped."""
    bert = r"^_embedder\.token_embedder_bert\._matched_embedder\.transformer_model\."
    entity, relation = namespace("ner_labels"), namespace("relation_labels")
    return {bert: "bert.", r"^bert\.pooler\.": None, r"^bert\.embeddings\.(position|token_type)_ids$": None,
            r"^_endpoint_span_extractor\._span_width_embedding\.": "widths.",
            rf"^_ner\._ner_scorers\.{entity}\.0\._module\._linear_layers\.": "entity.hidden.",
            rf"^_ner\._ner_scorers\.{entity}\.1\._module\.": "entity.out.",
            rf"^_relation\._mention_pruners\.{relation}\._scorer\.0\._module\._linear_layers\.": "mention.hidden.",
            rf"^_relation\._mention_pruners\.{relation}\._scorer\.1\._module\.": "mention.out.",
            rf"^_relation\._relation_feedforwards\.{relation}\._linear_layers\.": "relation.hidden.",
            rf"^_relation\._relation_scorers\.{relation}\.": "relation.out.",
            r"^_(ner|relation|coref|events)\.": None}


def config_of(json_object, entity_labels, relation_labels, positions):
    """DygieConfig from an archive's config.json. Raises UserError if it is not RadGraph's.

    positions: the number of BERT's positions.
    """
    try:
        reader, network = json_object["dataset_reader"], json_object["model"]
        layers = network["feedforward_params"]
        hidden, modules = layers["hidden_dims"], network["modules"]
        longest = reader["token_indexers"]["bert"].get("max_length") or positions
        sizes = hidden if isinstance(hidden, list) else [hidden] * layers["num_layers"]
        values = [reader["max_span_width"], network["feature_size"], *sizes, longest]
        spans_per_word, coreference = modules["relation"]["spans_per_word"], modules["coref"].get("coref_prop", 0)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"config.json is not RadGraph's ({type(error).__name__} {error})") from None
    if not all(type(value) is int and 0 < value <= 2**16 for value in values) or len(sizes) > 100 \
            or longest < 3 or entity_labels[0] != "" or type(spans_per_word) not in (int, float) \
            or not 0 < spans_per_word <= 100:
        raise UserError("config.json is not RadGraph's: a size in it is impossible")
    if coreference:
        raise UserError("config.json has coref_prop: spans changed by coreference are not supported")
    return DygieConfig(tuple(entity_labels), tuple(relation_labels), reader["max_span_width"], network["feature_size"],
                       tuple(sizes), float(spans_per_word), min(longest, positions))
