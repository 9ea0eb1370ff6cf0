"""CheXbert: reads the 14 findings of CheXpert from a report's text, each blank, positive, negative or uncertain.

Smit et al. 2020, arXiv:2004.09167; stanfordmlgroup/CheXbert. BERT-base (lower-case), its last hidden state at [CLS],
dropout, and one linear head per finding: 13 with four classes and "No Finding" with two (blank, positive). No pooler.

The folder holds chexbert.pth as it circulates (a training checkpoint of a DataParallel module, optimiser state inside)
and bert-base-uncased's vocab.txt; config.json only for a model of another size.

Traps
- Classes are 0 blank, 1 positive, 2 negative, 3 uncertain; the CSV form is blank, 1, 0, -1.
- A text of more than 512 tokens keeps its first 511 and [SEP].
- It was trained on impressions, and padding must be masked. The order of the findings is not that of MIMIC-CXR's CSV.
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
    """BERT and a linear head per finding."""

    def __init__(self, config):
        super().__init__()
        self.bert = Bert(config)
        self.dropout = nn.Dropout(0.1)
        self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, classes) for classes in CLASSES)

    def forward(self, ids, mask):
        """14 tensors of logits, (B, 4) and (B, 2), of token ids and mask (B, T)."""
        return self.heads(self.bert(ids, mask)[:, 0])

    def heads(self, cls):
        """The same of [CLS]'s last hidden state (B, D)."""
        cls = self.dropout(cls)
        return [head(cls) for head in self.linear_heads]


class Reading(NamedTuple):
    """What CheXbert reads in a text."""

    labels: list        # 14 values: 0 blank, 1 positive, 2 negative, 3 uncertain
    vector: np.ndarray  # (D,), the last hidden state of [CLS]


class Labeler:
    """Texts → labels or vectors, with a model and its tokenizer. Reads no more tokens than the model has positions.

    What it has read it remembers: a text costs its time once, whoever asks for it again.
    """

    def __init__(self, model, tokenizer, device="cpu"):
        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.readings = {}

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        """Reads a folder with chexbert.pth and vocab.txt. Raises UserError, with the names that do not fit."""
        folder = Path(folder)
        tokenizer = WordPiece(read_bytes(folder, "vocab.txt"), lower_case=True)
        config = (read_config(BertConfig, folder) if (folder / "config.json").is_file()
                  else BertConfig(vocab_size=len(tokenizer)))
        check_vocabulary(tokenizer, config.vocab_size, folder)
        model = checkpoint.load_file(lambda: CheXbert(config), folder / FILE, RENAME, torch.float32)
        return cls(model, tokenizer, device)

    def encode(self, text):
        """Token ids of one report as published: white space squeezed, [CLS] … [SEP], at most 512."""
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
        """(N,), the CheXbert vector similarity, or SembScore, of N pairs of texts: the cosine of their two vectors.

        Smit et al.'s network as Yu et al. 2023 use it (rajpurkarlab/CXR-Report-Metric, add_semb_col): no dropout, no
        pooler, the texts as they are.
        """
        readings = self.read([*hypotheses, *references], progress=progress)
        vectors = np.array([reading.vector for reading in readings], dtype=np.float64).reshape(2, len(hypotheses), -1)
        a, b = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        return (a * b).sum(-1)
