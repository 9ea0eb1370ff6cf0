"""BERTScore: each token of one text is matched with the most similar token of the other, by a model's vectors.

Zhang et al. 2020, arXiv:1904.09675, as bert_score 0.3.13 computes it. With unit vectors h_i, r_j of one layer:

    P = Σ w_i max_j h_i·r_j / Σ w_i,    R = Σ w_j max_i h_i·r_j / Σ w_j,    F1 = 2 P R / (P + R)

w is 1, or with `idf` ln((N + 1) / (n + 1)), n of the N references having the token; the two special tokens weigh 0, but
may be the best match. Rescaled, a value x becomes (x - b) / (1 - b), b being what unrelated sentences reach; it may be
negative.

The trap: flipping a negation hardly moves it. "No pleural effusion." against "Pleural effusion." still scores about .9,
so it must never stand alone.

Further traps
- The number means nothing without its model, layer, idf and rescaling, so its name carries them. RadCliQ and ReXrank
  take distilroberta-base, RadEval distilbert-base-uncased, others roberta-large.
- bert_score asks RoBERTa's tokenizer for a blank before the text. transformers 5 ignores that, and the package's values
  with it differ from those that are published; here the blank is there.
- With several references P, R and F1 are each the best that a reference gives.
- A text without a token scores 0 before the rescaling.
"""

from collections import Counter
from math import log
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.bpe import ByteBPE
from data.files import UserError
from data.tokenizers import WordPiece
from metrics.batches import check_vocabulary, padded_batches
from model import bert, checkpoint
from model.bert import Bert, BertConfig
from model.config import read_config

PAIRS = 256  # at a time, so that the vectors of few texts are held at once


class Published(NamedTuple):
    """A model that has a baseline: its name, layer, and b of P, R and F1 (bert_score, rescale_baseline/en)."""

    name: str
    layer: int
    baseline: tuple


# By model type, layers, width and vocabulary.
PUBLISHED = {
    ("distilbert", 6, 768, 30522): Published("distilbert-base-uncased", 5, (0.6666034, 0.66660464, 0.66620487)),
    ("roberta", 6, 768, 50265): Published("distilroberta-base", 5, (0.84732, 0.84759504, 0.8473319)),
    ("roberta", 24, 1024, 50265): Published("roberta-large", 17, (0.83150584, 0.8314941, 0.83122575)),
}
# The layer of other models of that type and depth, tuned by bert_score's authors (model2layers).
LAYERS = {("distilbert", 6): 5, ("roberta", 6): 5, ("roberta", 12): 10, ("roberta", 24): 17, ("bert", 12): 9,
          ("bert", 24): 18}

# DistilBERT's names → Bert's. It has no token types; RoBERTa's positions begin at 2.
DISTILBERT_KEYS = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
                   "hidden_dim": "intermediate_size", "activation": "hidden_act"}
RENAME = {
    "bert": bert.RENAME,
    "roberta": {r"^roberta\.": "", r"^(pooler|lm_head|classifier)\.": None,
                r"^embeddings\.(position|token_type)_ids$": None},
    "distilbert": {
        r"^distilbert\.": "", r"^(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier)\.": None,
        r"^embeddings\.position_ids$": None, r"^transformer\.": "encoder.",
        r"\.attention\.(q|k|v)_lin\.": r".attention.self.\1.", r"\.self\.q\.": ".self.query.",
        r"\.self\.k\.": ".self.key.", r"\.self\.v\.": ".self.value.",
        r"\.attention\.out_lin\.": ".attention.output.dense.",
        r"\.sa_layer_norm\.": ".attention.output.LayerNorm.", r"\.ffn\.lin1\.": ".intermediate.dense.",
        r"\.ffn\.lin2\.": ".output.dense.", r"\.output_layer_norm\.": ".output.LayerNorm."},
}
FIRST_POSITION = {"bert": 0, "roberta": 2, "distilbert": 0}


class Encoder(NamedTuple):
    """What a folder's config.json describes: the type of its model, and Bert's sizes for it."""

    model_type: str
    config: BertConfig

    @classmethod
    def from_json(cls, json_object):
        """Raises UserError for a network that is none of the three."""
        model_type = json_object.get("model_type")
        if model_type not in RENAME:
            raise UserError(f"model_type is {model_type!r}, only {', '.join(RENAME)} are supported; take another model")
        sizes = {**json_object, "model_type": "bert"}
        if model_type == "distilbert":
            sizes |= {key: json_object[theirs] for theirs, key in DISTILBERT_KEYS.items() if theirs in json_object}
            sizes["type_vocab_size"] = 1
        if model_type == "roberta" and type(sizes.get("max_position_embeddings")) is int:
            sizes["max_position_embeddings"] -= FIRST_POSITION["roberta"]
        return cls(model_type, BertConfig.from_json(sizes))


def load_encoder(folder, encoder):
    """Bert with the weights of a folder, strictly: every tensor once, or UserError."""
    state = {name: tensor for file in checkpoint.weight_files(folder)
             for name, tensor in checkpoint.open_tensors(file).items()}
    for name, tensor in list(state.items()):
        # Rows that no token uses go; a missing token type is one that adds nothing.
        if name.endswith("embeddings.position_embeddings.weight"):
            state[name] = tensor[FIRST_POSITION[encoder.model_type]:]
            if encoder.model_type == "distilbert":
                state[name.replace("position", "token_type")] = torch.zeros(1, *tensor.shape[1:])
    return checkpoint.load_state(lambda: Bert(encoder.config), state, folder, RENAME[encoder.model_type], torch.float32)


class BertScorer:
    """Scores pairs of texts by the vectors of one layer."""

    def __init__(self, model, tokenizer, layer, model_name, baseline=None, device="cpu"):
        """baseline: b of P, R and F1, or None for values as they are."""
        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.model.encoder["layer"] = self.model.encoder["layer"][:layer]
        self.layer, self.model_name, self.baseline = layer, model_name, baseline

    @classmethod
    def from_pretrained(cls, folder, device="cpu", layer=None):
        """Reads a folder as Hugging Face lays it out. layer None: bert_score's, else the last. Raises UserError."""
        encoder = read_config(Encoder, folder)
        model_type, config = encoder
        published = PUBLISHED.get((model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size))
        if layer is None:
            layer = LAYERS.get((model_type, config.num_hidden_layers), config.num_hidden_layers)
        if not 0 < layer <= config.num_hidden_layers:
            raise UserError(f"{folder}: has {config.num_hidden_layers} layers, so none of number {layer}")
        tokenizer = (ByteBPE if model_type == "roberta" else WordPiece).from_pretrained(folder)
        check_vocabulary(tokenizer, config.vocab_size, folder, spare=not published)
        baseline = published.baseline if published and published.layer == layer else None
        return cls(load_encoder(folder, encoder), tokenizer, layer, published.name if published else
                   Path(folder).resolve().name, baseline, device)

    def name(self, idf=False):
        """What a value of this scorer has to be called."""
        return (f"BERTScore ({self.model_name}, layer {self.layer}, {'idf' if idf else 'no idf'}, "
                f"{'rescaled' if self.baseline else 'not rescaled'})")

    def encode(self, text):
        """Token ids between the two special ones, at most as many as the model has positions."""
        ids = self.tokenizer.encode(text.strip())
        longest = self.model.config.max_position_embeddings
        return ids if len(ids) <= longest else ids[:longest - 1] + [self.tokenizer.sep_id]

    @torch.inference_mode()
    def __call__(self, hypotheses, references, idf=False, progress=True):
        """(N, 3), P, R and F1 of N hypotheses and their references, each a text or a list of texts."""
        lists = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
        pairs = list(dict.fromkeys((hypothesis, reference)
                                   for hypothesis, of_item in zip(hypotheses, lists, strict=True)
                                   for reference in of_item))
        encoded = {text: self.encode(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        weights = self.idf([encoded[text] for of_item in lists for text in of_item]) if idf else Counter()
        unseen = log(sum(map(len, lists)) + 1) if idf else 1.0

        def weights_of(text):
            special = self.tokenizer.cls_id, self.tokenizer.sep_id
            return torch.tensor([weights.get(i, 0.0 if i in special and not idf else unseen) for i in encoded[text]],
                                device=self.device)

        # A text's vectors are made once and kept as long as a pair still needs them.
        uses = Counter(text for pair in pairs for text in pair)
        vectors, scores = {}, {}
        for start in tqdm(range(0, len(pairs), PAIRS), "BERTScore", unit="block", disable=None if progress else True):
            block = pairs[start : start + PAIRS]
            new = {text: encoded[text] for pair in block for text in pair if text not in vectors}
            self.add_vectors(vectors, new)
            for pair in block:
                scores[pair] = matched(*(vectors[text] for text in pair), *map(weights_of, pair))
                for text in pair:
                    uses[text] -= 1
                    if not uses[text]:
                        del vectors[text]

        best = np.array([np.max([scores[hypothesis, reference] for reference in of_item], axis=0)
                         for hypothesis, of_item in zip(hypotheses, lists)]).reshape(-1, 3)
        return best if self.baseline is None else (best - self.baseline) / (1 - np.array(self.baseline))

    def add_vectors(self, vectors, encoded):
        """Enters {text: (T, D)} of unit vectors, one per token."""
        for texts, ids, mask in padded_batches(encoded, self.tokenizer.pad_id, self.device, "", progress=False):
            for text, hidden in zip(texts, self.model(ids, mask)):
                hidden = hidden[: len(encoded[text])]
                vectors[text] = hidden / hidden.norm(dim=-1, keepdim=True)

    @staticmethod
    def idf(references):
        """{token id: ln((N + 1) / (n + 1))} of N references' ids."""
        counts = Counter(i for ids in references for i in set(ids))
        return {i: log((len(references) + 1) / (count + 1)) for i, count in counts.items()}


def matched(hypothesis, reference, hypothesis_weights, reference_weights):
    """[P, R, F1] of the unit vectors (T, D) of two texts and the weights (T,) of their tokens."""
    if len(hypothesis) == 2 or len(reference) == 2:  # the two special tokens alone
        return [0.0, 0.0, 0.0]
    cosines = hypothesis @ reference.T
    precision, recall = ((cosines.amax(dim) * weights).sum() / weights.sum()
                         for dim, weights in ((1, hypothesis_weights), (0, reference_weights)))
    scores = torch.stack([precision, recall, 2 * precision * recall / (precision + recall)])
    return torch.nan_to_num(scores, nan=0.0).tolist()
