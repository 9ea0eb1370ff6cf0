"""BERTScore: each token of one text is matched with the most similar token of the other, by their hidden states.

Zhang et al. 2020, arXiv:1904.09675, as bert_score 0.3.13 computes it. With unit vectors h_i, r_j of one layer:

    P = Σ w_i max_j h_i·r_j / Σ w_i,    R = Σ w_j max_i h_i·r_j / Σ w_j,    F1 = 2 P R / (P + R)

A token's weight w is 1, or with `idf` ln((N + 1) / (n + 1)) if n of the N references contain the token. The two special
tokens have weight 0, but may be the best match of another token. Rescaling turns a value x into (x - b) / (1 - b); the
baseline b is the score of unrelated sentences. A rescaled value may be negative.

The trap: flipping a negation hardly changes BERTScore. "No pleural effusion." against "Pleural effusion." still scores
about .9, so never report BERTScore alone.

Further traps
- The number means nothing without its model, layer, idf and rescaling, so its name contains them. RadCliQ and ReXrank
  use distilroberta-base, RadEval distilbert-base-uncased, others roberta-large.
- bert_score asks RoBERTa's tokenizer to put a blank before the text. transformers 5 ignores this, so with it the
  package's values differ from the published ones; this file puts the blank there.
- With several references, P, R and F1 are each the maximum over the references.
- A text without tokens scores 0 before the rescaling.
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

PAIRS = 256  # pairs at a time, which bounds the number of texts whose vectors are in memory


class Published(NamedTuple):
    """A model with a published baseline: its name, layer, and b for P, R and F1 (bert_score, rescale_baseline/en)."""

    name: str
    layer: int
    baseline: tuple


# Keys: model type, number of layers, hidden width, vocabulary size.
PUBLISHED = {
    ("distilbert", 6, 768, 30522): Published("distilbert-base-uncased", 5, (0.6666034, 0.66660464, 0.66620487)),
    ("roberta", 6, 768, 50265): Published("distilroberta-base", 5, (0.84732, 0.84759504, 0.8473319)),
    ("roberta", 24, 1024, 50265): Published("roberta-large", 17, (0.83150584, 0.8314941, 0.83122575)),
}
# The layer used for other models, by type and number of layers; chosen by bert_score's authors (model2layers).
LAYERS = {("distilbert", 6): 5, ("roberta", 6): 5, ("roberta", 12): 10, ("roberta", 24): 17, ("bert", 12): 9,
          ("bert", 24): 18}

# DistilBERT's names → Bert's. DistilBERT has no token types; RoBERTa's positions begin at 2.
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
    """What a folder's config.json describes: the model's type, and its sizes as a BertConfig."""

    model_type: str
    config: BertConfig

    @classmethod
    def from_json(cls, json_object):
        """Raises UserError for a network that is not BERT, RoBERTa or DistilBERT."""
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
    """A Bert with the weights in a folder. Raises UserError unless every tensor is there exactly once."""
    state = {name: tensor for file in checkpoint.weight_files(folder)
             for name, tensor in checkpoint.open_tensors(file).items()}
    for name, tensor in list(state.items()):
        # Position rows that no token uses are dropped; missing token types are replaced by zeros.
        if name.endswith("embeddings.position_embeddings.weight"):
            state[name] = tensor[FIRST_POSITION[encoder.model_type]:]
            if encoder.model_type == "distilbert":
                state[name.replace("position", "token_type")] = torch.zeros(1, *tensor.shape[1:])
    return checkpoint.load_state(lambda: Bert(encoder.config), state, folder, RENAME[encoder.model_type], torch.float32)


class BertScorer:
    """Scores pairs of texts by the vectors of one layer."""

    def __init__(self, model, tokenizer, layer, model_name, baseline=None, device="cpu"):
        """layer: the layer whose vectors are compared. baseline: b for P, R and F1; None: no rescaling."""
        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.model.encoder["layer"] = self.model.encoder["layer"][:layer]
        self.layer, self.model_name, self.baseline = layer, model_name, baseline

    @classmethod
    def from_pretrained(cls, folder, device="cpu", layer=None):
        """Reads a folder in Hugging Face's layout. layer None: bert_score's choice for the model, or else the last.

        Raises UserError.
        """
        encoder = read_config(Encoder, folder)
        model_type, config = encoder
        published = PUBLISHED.get((model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size))
        if layer is None:
            layer = LAYERS.get((model_type, config.num_hidden_layers), config.num_hidden_layers)
        if not 0 < layer <= config.num_hidden_layers:
            raise UserError(f"{folder}: the model has no layer {layer}; give one from 1 to {config.num_hidden_layers}")
        tokenizer = (ByteBPE if model_type == "roberta" else WordPiece).from_pretrained(folder)
        check_vocabulary(tokenizer, config.vocab_size, folder, spare=not published)
        baseline = published.baseline if published and published.layer == layer else None
        return cls(load_encoder(folder, encoder), tokenizer, layer, published.name if published else
                   Path(folder).resolve().name, baseline, device)

    def name(self, idf=False):
        """The full name of this scorer's values."""
        return (f"BERTScore ({self.model_name}, layer {self.layer}, {'idf' if idf else 'no idf'}, "
                f"{'rescaled' if self.baseline else 'not rescaled'})")

    def encode(self, text):
        """Token ids of a text, special tokens included, cut to the number of the model's positions."""
        ids = self.tokenizer.encode(text.strip())
        longest = self.model.config.max_position_embeddings
        return ids if len(ids) <= longest else ids[:longest - 1] + [self.tokenizer.sep_id]

    @torch.inference_mode()
    def __call__(self, hypotheses, references, idf=False, progress=True):
        """N hypotheses and their references, each a text or a list of texts → (N, 3): P, R and F1."""
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

        # A text's vectors are computed once, and deleted after the last pair that needs them.
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
        """{text: token ids} → adds {text: (T, D)}, a unit vector per token, to `vectors`."""
        for texts, ids, mask in padded_batches(encoded, self.tokenizer.pad_id, self.device, "", progress=False):
            for text, hidden in zip(texts, self.model(ids, mask)):
                hidden = hidden[: len(encoded[text])]
                vectors[text] = hidden / hidden.norm(dim=-1, keepdim=True)

    @staticmethod
    def idf(references):
        """Token ids of N references → {token id: ln((N + 1) / (n + 1))}, n the references with the token."""
        counts = Counter(i for ids in references for i in set(ids))
        return {i: log((len(references) + 1) / (count + 1)) for i, count in counts.items()}


def matched(hypothesis, reference, hypothesis_weights, reference_weights):
    """Unit vectors (T, D) of two texts and the weights (T,) of their tokens → [P, R, F1]."""
    if len(hypothesis) == 2 or len(reference) == 2:  # only the two special tokens
        return [0.0, 0.0, 0.0]
    cosines = hypothesis @ reference.T
    precision, recall = ((cosines.amax(dim) * weights).sum() / weights.sum()
                         for dim, weights in ((1, hypothesis_weights), (0, reference_weights)))
    scores = torch.stack([precision, recall, 2 * precision * recall / (precision + recall)])
    return torch.nan_to_num(scores, nan=0.0).tolist()
