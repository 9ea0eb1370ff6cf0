"""Mistral, the language model: Jiang et al. 2023, arXiv:2310.06825; names as in Hugging Face's MistralForCausalLM.

Shapes: B batch, T new tokens, S tokens seen so far including the new ones, D hidden width, H query heads, G key-value
heads, d head width.

Positions and masks: row t of a mask is a query, column s a key, true means "t attends to s". Prompts of one batch are
equally long, so the causal mask suffices; beam search passes its own mask (see model/decode.py).
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from data.files import UserError
from model import checkpoint
from model.config import config_values, read_config


@dataclass(frozen=True)
class MistralConfig:
    """Sizes of Mistral-7B-v0.1. sliding_window: the number of tokens a token attends to, with itself; None: all."""
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads "
                            f"{self.num_key_value_heads}; take the config.json that belongs to the weights")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; take the config.json that belongs to the weights")

    @classmethod
    def from_json(cls, json_object):
        """Reads Hugging Face's config.json. Raises UserError for a network that this file does not define."""
        json_object = dict(json_object)
        # transformers 5 writes rope_parameters, and prefers them; older versions write rope_theta and rope_scaling.
        rope = json_object.pop("rope_parameters", None) or {}
        scaling = json_object.pop("rope_scaling", None)
        if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default" or scaling:
            raise UserError("scaled rotary positions are not supported; take another model")
        json_object["rope_theta"] = rope.get("rope_theta", json_object.get("rope_theta", 10000.0))

        # Absent values are defaults, or follow from the other sizes, as in transformers.
        json_object.setdefault("rms_norm_eps", 1e-6)
        if json_object.get("num_key_value_heads") is None:
            json_object["num_key_value_heads"] = json_object.get("num_attention_heads")
        if json_object.get("head_dim") is None:
            width, heads = json_object.get("hidden_size"), json_object.get("num_attention_heads")
            if type(width) is int and type(heads) is int and heads > 0:
                json_object["head_dim"] = width // heads
        window = json_object.pop("sliding_window", 4096)
        if window is not None and (type(window) is not int or not 1 <= window < 2**31):
            raise UserError(f"sliding_window is {window!r}; take the config.json that belongs to the weights")

        values = config_values(cls, json_object, only={"model_type": "mistral", "hidden_act": "silu"},
                               optional=("tie_word_embeddings", "sliding_window"))
        return cls(**values, sliding_window=window)

    def to_json(self):
        """A config.json that transformers reads."""
        return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
                "bos_token_id": 1, "eos_token_id": 2, **asdict(self),
                "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}}


class Cache:
    """Keys and values of the tokens seen so far: (layers, B, G, length, d) each, allocated once."""

    def __init__(self, config, batch, length, dtype, device):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.used = 0

    def append(self, layer, k, v):
        """Stores one layer's new keys and values (B, G, T, d); returns all of that layer so far (B, G, S, d)."""
        end = self.used + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"{end} tokens, but the cache has room for {self.keys.shape[3]}")
        self.keys[layer, :, :, self.used:end] = k
        self.values[layer, :, :, self.used:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows):
        """Keeps only the given rows of the batch."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


def rotary(positions, head_dim, theta, dtype):
    """Cosines and signed sines (T, d) of rotary position embedding: Su et al. 2021, arXiv:2104.09864.

    Computed in fp32: at position 1,000 the rounding error of bf16 is more than a radian.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions.float()[:, None] * frequency
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x, cos, sin):
    """Rotates queries or keys (B, heads, T, d) by their positions; pairs are (i, i + d / 2), Hugging Face's order."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, H, G, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(D, H * d, bias=False)
        self.k_proj = nn.Linear(D, G * d, bias=False)
        self.v_proj = nn.Linear(D, G * d, bias=False)
        self.o_proj = nn.Linear(H * d, D, bias=False)

    def forward(self, x, *, cos, sin, mask, cache, layer):
        """x (B, T, D) → (B, T, D). cos, sin (T, d); mask, cache as `Mistral.hidden` takes them; layer: its number."""
        B, T, _ = x.shape
        q, k, v = (project(x).view(B, T, -1, self.head_dim).transpose(1, 2)            # (B, H or G, T, d)
                   for project in (self.q_proj, self.k_proj, self.v_proj))

        # Keys are stored rotated, so a step rotates its new keys only.
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(layer, k, v)

        y = attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


def attend(q, k, v, mask):
    """Grouped-query attention of q (B, H, T, d) over k and v (B, G, S, d); mask None: causal if T = S, else no mask.

    With fewer queries than keys, the queries that share a key head are laid side by side as one longer query, so that
    keys and values are read once and never repeated.
    """
    (B, H, T, d), G, S = q.shape, k.shape[1], k.shape[2]

    # A whole text from its start: PyTorch has a kernel that skips the half hidden by the causal mask.
    if mask is None and T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != G)

    # Query head h reads key head h // (H / G): heads that share one are neighbours, so reshaping lays them together.
    q = q.reshape(B, G, H // G * T, d)
    if mask is not None:
        mask = mask.view(-1, 1, 1, T, S).expand(-1, 1, H // G, T, S).reshape(-1, 1, H // G * T, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(B, H, T, d)


class MLP(nn.Module):
    """SwiGLU, W_down (silu(W_gate x) ⊙ W_up x): Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then the MLP, each pre-norm with residual."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, **where):
        """where: cos, sin, mask, cache and layer, as attention takes them."""
        x = x + self.self_attn(self.input_layernorm(x), **where)
        return x + self.mlp(self.post_attention_layernorm(x))


class Mistral(nn.Module):
    """checkpoint: recompute each layer in the backward pass instead of keeping its activations (training only)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint = False
        self.model = nn.ModuleDict({
            "embed_tokens": checkpoint.embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers)),
            "norm": nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)})
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(init_weights)

    def forward(self, ids=None, embeds=None, cache=None):
        """Logits (B, T, vocabulary) of token ids (B, T) or of embeddings (B, T, D)."""
        return self.logits(self.hidden(ids=ids, embeds=embeds, cache=cache))

    def hidden(self, ids=None, embeds=None, cache=None, positions=None, mask=None):
        """The last hidden states, after the last norm: (B, T, D).

        cache: from `new_cache`; the tokens then follow those in it and are stored in it.
        positions (T,) and mask (1 or B, T, S), given together, replace the default positions and causal mask.
        """
        if (ids is None) == (embeds is None):
            raise ValueError("give either ids or embeds")
        if (positions is None) != (mask is None):
            raise ValueError("give positions and mask, or neither")
        x = self.embed(ids) if embeds is None else embeds
        past, T = cache.used if cache is not None else 0, x.shape[1]

        # One text per row: the new tokens follow the stored ones, and attend to them and to one another.
        if positions is None:
            positions = torch.arange(past, past + T, device=x.device)
            mask = self.mask(past, T, x.device)
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta, x.dtype)

        for number, layer in enumerate(self.layers):
            where = dict(cos=cos, sin=sin, mask=mask, cache=cache, layer=number)
            if self.checkpoint and self.training and cache is None:
                x = recompute(layer, x, use_reentrant=False, **where)
            else:
                x = layer(x, **where)

        # After all layers, because each layer stores its keys at the same place.
        if cache is not None:
            cache.used += T
        return self.model["norm"](x)

    @property
    def layers(self):
        return self.model["layers"]

    def mask(self, past, new, device):
        """The causal mask within the sliding window, for `new` tokens after `past` ones: (1, T, S).

        None if `attend` needs no mask: for a whole text from its start, or one token that attends to everything.
        """
        window = self.config.sliding_window
        if (past == 0 or new == 1) and (window is None or past + new <= window):
            return None
        queries = torch.arange(past, past + new, device=device)[:, None]
        keys = torch.arange(past + new, device=device)
        mask = keys <= queries
        return (mask if window is None else mask & (keys > queries - window))[None]

    def embed(self, ids):
        return self.model["embed_tokens"](ids)

    def logits(self, hidden):
        """Hidden states (…, D) → logits (…, vocabulary). Training calls it for the report's positions only."""
        weight = self.model["embed_tokens"].weight if self.config.tie_word_embeddings else self.lm_head.weight
        return F.linear(hidden, weight)

    def new_cache(self, batch, length):
        """An empty cache for `length` tokens in each of `batch` rows, in the weights' type and place."""
        weight = self.model["norm"].weight
        return Cache(self.config, batch, length, weight.dtype, weight.device)

    @classmethod
    def from_pretrained(cls, folder, dtype=None):
        """Reads a folder in Hugging Face's layout. dtype None: the type in the file. Raises UserError."""
        config = read_config(MistralConfig, folder)
        return checkpoint.load(lambda: cls(config), folder, rename_table(config), dtype)

    def save_pretrained(self, folder):
        """Writes a folder that this class and transformers' MistralForCausalLM read."""
        checkpoint.save_folder(folder, self, self.config.to_json())


def rename_table(config):
    """Published names → the names here. Some files hold the rotary frequencies, or a tied head a second time."""
    table = {r"rotary_emb\.inv_freq$": None}
    return {**table, r"^lm_head\.weight$": None} if config.tie_word_embeddings else table


def init_weights(module):
    """Weights normal with standard deviation 0.02, as in transformers."""
    if isinstance(module, (nn.Linear, nn.Embedding)) and not module.weight.is_meta:
        nn.init.trunc_normal_(module.weight, std=0.02)
