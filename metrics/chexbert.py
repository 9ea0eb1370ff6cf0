"""CheXbert: labels a report's text with CheXpert's 14 findings, each blank, positive, negative or uncertain.

Smit et al. 2020, arXiv:2004.09167; stanfordmlgroup/CheXbert. The last hidden state of BERT-base (lower-case) at [CLS],
dropout, and one linear head per finding: 13 heads with four classes, and "No Finding" with two (blank, positive). No
pooler.

The folder holds chexbert.pth as published (a training checkpoint of a DataParallel module, with optimiser state) and
bert-base-uncased's vocab.txt; config.json is needed only for a model of another size.

Traps
- Classes are 0 blank, 1 positive, 2 negative, 3 uncertain; CSV files write them as blank, 1, 0, -1.
- A text of more than 512 tokens is cut to its first 511 and [SEP].
- CheXbert was trained on impressions. Padding must be masked.
- The order of the findings differs from MIMIC-CXR's CSV.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from data.reports import LABELS
from data.tokenizers import WordPiece, read_bytes
from metrics.batches import check_vocabulary, padded_batches
from model import checkpoint
from model.bert import Bert, BertConfig
from model.config import read_config

FILE = "chexbert.pth"
CLASSES = [2 if name == "No Finding" else 4 for name in LABELS]
# Published names → the names here.
RENAME = {r"^module\.": "", r"^bert\.pooler\.": None, r"^bert\.embeddings\.(position|token_type)_ids$": None}


class CheXbert(nn.Module):
    """BERT, and one linear head per finding."""

    def __init__(self, config):
        super().__init__()
        self.bert = Bert(config)
        self.dropout = nn.Dropout(0.1)
        self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, classes) for classes in CLASSES)

    def forward(self, ids, mask):
        """Token ids and mask (B, T) → 14 tensors of logits, (B, 4), but (B, 2) for "No Finding"."""
        return self.heads(self.bert(ids, mask)[:, 0])

    def heads(self, cls):
        """[CLS]'s last hidden state (B, D) → the same logits as `forward`."""
        cls = self.dropout(cls)
        return [head(cls) for head in self.linear_heads]


class Reading(NamedTuple):
    """CheXbert's labels and vector of one text."""

    labels: list        # 14 values: 0 blank, 1 positive, 2 negative, 3 uncertain
    vector: np.ndarray  # (D,), the last hidden state of [CLS]


class Labeler:
    """Texts → labels or vectors, by a CheXbert and its tokenizer. Longer texts are cut to the model's positions.

    Readings are cached, so a text that is asked for again takes no time.
    """

    def __init__(self, model, tokenizer, device="cpu"):
        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.readings = {}

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        """Reads a folder with chexbert.pth and vocab.txt. Raises UserError, naming tensors that do not fit."""
        folder = Path(folder)
        tokenizer = WordPiece(read_bytes(folder, "vocab.txt"), lower_case=True)
        config = (read_config(BertConfig, folder) if (folder / "config.json").is_file()
                  else BertConfig(vocab_size=len(tokenizer)))
        check_vocabulary(tokenizer, config.vocab_size, folder)
        model = checkpoint.load_file(lambda: CheXbert(config), folder / FILE, RENAME, torch.float32)
        return cls(model, tokenizer, device)

    def encode(self, text):
        """Token ids of one report, as in the published code: single blanks, [CLS] … [SEP], at most 512 ids."""
        ids = self.tokenizer.encode(re.sub(r"\s+", " ", text.strip()))
        longest = self.model.bert.config.max_position_embeddings
        return ids if len(ids) <= longest else ids[: longest - 1] + [self.tokenizer.sep_id]

    @torch.inference_mode()
    def read(self, texts, batch_size=32, progress=True):
        """One Reading per text. Equal texts are read once."""
        encoded = {text: self.encode(text) for text in dict.fromkeys(texts) if text not in self.readings}
        for batch, ids, mask in padded_batches(encoded, self.tokenizer.pad_id, self.device, "CheXbert", batch_size,
                                               progress):
            cls = self.model.bert(ids, mask)[:, 0]
            labels = torch.stack([logits.argmax(-1) for logits in self.model.heads(cls)], dim=-1).tolist()
            self.readings.update(zip(batch, map(Reading, labels, cls.float().cpu().numpy())))
        return [self.readings[text] for text in texts]

    def __call__(self, texts, batch_size=32, progress=True):
        """Labels (N, 14), values 0 blank, 1 positive, 2 negative, 3 uncertain."""
        return [list(reading.labels) for reading in self.read(texts, batch_size, progress)]

    def similarity(self, hypotheses, references, progress=True):
        """N pairs of texts → (N,), the cosine of their CheXbert vectors, called SembScore.

        As Yu et al. 2023 compute it (rajpurkarlab/CXR-Report-Metric, add_semb_col): no dropout, no pooler, texts
        unchanged.
        """
        readings = self.read([*hypotheses, *references], progress=progress)
        vectors = np.array([reading.vector for reading in readings], dtype=np.float64).reshape(2, len(hypotheses), -1)
        a, b = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        return (a * b).sum(-1)
