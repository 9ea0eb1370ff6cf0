"""BERT, the text encoder: Devlin et al. 2019, arXiv:1810.04805; names as in Hugging Face's BertModel.

Used for ClinicalBERT (emilyalsentzer/Bio_ClinicalBERT) and for CheXbert, BERTScore and RadGraph. No pooler and no
language-model head, because only hidden states are used.

Shapes: B batch, T tokens, D hidden width, H heads.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from data.files import UserError
from model import checkpoint
from model.config import config_values, read_config

# Published names → the names here. ClinicalBERT's file has the `bert.` prefix, CheXbert's `module.bert.`; files made
# from TensorFlow's call LayerNorm's weights gamma and beta; old files hold the positions as a buffer.
RENAME = {r"^(module\.)?(bert\.)?": "", r"^pooler\.": None, r"^cls\.": None,
          r"^embeddings\.(position|token_type)_ids$": None,
          r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}


@dataclass(frozen=True)
class BertConfig:
    """Sizes of BERT-base; the vocabulary is ClinicalBERT's."""
    vocab_size: int = 28996
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                            f"{self.num_attention_heads}; take the config.json that belongs to the weights")

    @classmethod
    def from_json(cls, json_object):
        """Reads Hugging Face's config.json. Raises UserError for a network that this file does not define."""
        return cls(**config_values(
            cls, json_object,
            only={"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute",
                  "is_decoder": False},
            optional=("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size")))

    def to_json(self):
        """A config.json that transformers reads."""
        return {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0,
                **asdict(self)}


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = checkpoint.embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = checkpoint.embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = checkpoint.embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids):
        T = ids.shape[1]
        # One segment only, so every token has type 0.
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + self.position_embeddings.weight[:T]
        return self.dropout(self.LayerNorm(x))


class Attention(nn.Module):
    """Bidirectional self-attention, residual and norm. `self` and `output` are the published files' names."""

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.self = nn.ModuleDict({name: nn.Linear(D, D) for name in ("query", "key", "value")})
        self.output = Output(D, config)

    def forward(self, x, mask):
        B, T, D = x.shape
        q, k, v = (self.self[name](x).view(B, T, self.num_heads, -1).transpose(1, 2)
                   for name in ("query", "key", "value"))
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.output(y.transpose(1, 2).reshape(B, T, D), x)


class Output(nn.Module):
    """Projection, dropout, residual, norm: the end of both halves of a layer."""

    def __init__(self, width, config):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = Output(config.intermediate_size, config)

    def forward(self, x, mask):
        x = self.attention(x, mask)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.apply(init_weights)

    def forward(self, ids, mask):
        """The last hidden state (B, T, D) of token ids (B, T); mask (B, T) is true or 1 where a token is no padding.

        The values at padding are meaningless. Raises ValueError for more tokens than positions.
        """
        if ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(f"{ids.shape[1]} tokens, but BERT has {self.config.max_position_embeddings} positions")
        mask = mask.bool()[:, None, None, :]               # (B, 1, 1, T): true where a token is attended to
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x

    @classmethod
    def from_pretrained(cls, folder, dtype=None):
        """Reads a folder in Hugging Face's layout. dtype None: the type in the file. Raises UserError."""
        config = read_config(BertConfig, folder)
        return checkpoint.load(lambda: cls(config), folder, RENAME, dtype)

    def save_pretrained(self, folder):
        """Writes a folder that this class and transformers' BertModel read."""
        checkpoint.save_folder(folder, self, self.config.to_json())


def padded(rows, pad_id):
    """Lists of token ids → what `Bert` reads: ids (B, T), padded on the right, and mask (B, T), false at padding."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def init_weights(module):
    """Weights normal with standard deviation 0.02, biases zero, as in Devlin et al."""
    if isinstance(module, (nn.Linear, nn.Embedding)) and not module.weight.is_meta:
        nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
