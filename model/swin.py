"""Swin Transformer, the image encoder: Liu et al. 2021, arXiv:2103.14030; names as in Hugging Face's SwinModel.

Shapes: B batch, H × W the grid of patches, C channels, M window side, N = M·M tokens in a window, h heads,
n tokens of the last grid. A grid whose sides are no multiples of the window's is padded with zeros at the right and the
bottom. The padding takes part in the attention, as in the original, because published weights expect it.
"""

import re
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from data.files import UserError
from model import checkpoint
from model.config import config_values, read_config

OPTIONAL = ("num_channels", "mlp_ratio", "qkv_bias", "layer_norm_eps", "drop_path_rate")  # may be absent in config.json


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of Swin-B at 224 pixels; at 384 pixels it has windows of 12. drop_path_rate: the last layer's rate."""
    image_size: int = 224
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5
    drop_path_rate: float = 0.1

    @property
    def width(self):
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    def __post_init__(self):
        if len(self.num_heads) != len(self.depths) or \
                any(self.embed_dim * 2**i % heads for i, heads in enumerate(self.num_heads)):
            raise UserError(f"num_heads {list(self.num_heads)} does not fit embed_dim {self.embed_dim} and depths "
                            f"{list(self.depths)}; take the config.json that belongs to the weights")

    @classmethod
    def from_json(cls, json_object):
        """Reads Hugging Face's config.json, or timm's. Raises UserError for a network that is not defined here."""
        if "architecture" in json_object and "model_type" not in json_object:
            return cls.from_timm(json_object)
        return cls(**config_values(
            cls, json_object,
            only={"model_type": "swin", "hidden_act": "gelu", "use_absolute_embeddings": False,
                  "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            optional=OPTIONAL))

    @classmethod
    def from_timm(cls, json_object):
        """Reads timm's config.json: the network's name, and changes of timm's sizes for that name. Raises UserError."""
        name, changes = json_object["architecture"], json_object.get("model_args") or {}
        parts = re.fullmatch(r"swin_(tiny|small|base|large)_patch4_window(7|12)_(\d{3})", str(name))
        if parts is None or not isinstance(changes, dict) or changes.keys() - {*TIMM_CHANGES, *TIMM_NOTES}:
            raise UserError(f"this is timm's config.json, for {name!r} with {changes}; of timm's models only "
                            "swin_{tiny,small,base,large}_patch4_window* are supported; take one of these, or Hugging "
                            "Face's folder of such a model: microsoft/swin-base-patch4-window7-224")
        size, window, pixels = parts.groups()
        sizes = {"patch_size": 4, "window_size": int(window), "image_size": int(pixels),
                 **dict(zip(("embed_dim", "depths", "num_heads"), TIMM_SIZES[size])),
                 **{key: changes[key] for key in TIMM_CHANGES if key in changes}}
        return cls(**config_values(cls, sizes, only={}, optional=OPTIONAL))

    def to_json(self):
        """A config.json that transformers reads."""
        return {"architectures": ["SwinModel"], "model_type": "swin", "hidden_act": "gelu",
                "hidden_size": self.width, "num_layers": len(self.depths), **asdict(self)}


@lru_cache(maxsize=8)
@torch.inference_mode(False)           # an inference tensor in the cache could never take part in training
def relative_position_index(window, device):
    """The row of the bias table for each query i and key j of a window: (N * N,)."""
    side = torch.arange(window, device=device)
    place = torch.stack(torch.meshgrid(side, side, indexing="ij")).flatten(1)          # (2, N)
    down, right = (place[:, :, None] - place[:, None, :]) + window - 1
    return (down * (2 * window - 1) + right).flatten()


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def shift_mask(height, width, window, shift, dtype, device):
    """The mask between patches that are neighbours only by the cyclic shift: (windows, N, N), 0 or -100, to add."""
    def regions(length):
        place = torch.arange(length, device=device)
        return (place >= length - window).long() + (place >= length - shift).long()

    region = regions(height)[:, None] * 3 + regions(width)
    region = to_windows(region[None, :, :, None], window).squeeze(-1)                  # (windows, N)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -100.0)


def pad(x, amounts):
    """F.pad, but without a copy if nothing is to be added."""
    return F.pad(x, amounts) if any(amounts) else x


def to_windows(x, M):
    """(B, H, W, C) → (B * windows, N, C)."""
    B, H, W, C = x.shape
    return x.view(B, H // M, M, W // M, M, C).transpose(2, 3).reshape(-1, M * M, C)


def from_windows(x, M, H, W):
    """(B * windows, N, C) → (B, H, W, C)."""
    return x.view(-1, H // M, W // M, M, M, x.shape[-1]).transpose(2, 3).reshape(-1, H, W, x.shape[-1])


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for each relative position."""

    def __init__(self, width, num_heads, config):
        super().__init__()
        self.window, self.num_heads = config.window_size, num_heads
        self.self = nn.ModuleDict({name: nn.Linear(width, width, bias=config.qkv_bias)
                                   for name in ("query", "key", "value")})
        self.self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, num_heads))
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x, mask):
        """x (B * windows, N, C); mask (windows, N, N) is added to the logits, None for none."""
        (BW, N, C), h = x.shape, self.num_heads
        q, k, v = (self.self[name](x).view(BW, N, h, -1).transpose(1, 2) for name in ("query", "key", "value"))
        bias = self.self.relative_position_bias_table[relative_position_index(self.window, x.device)]
        bias = bias.view(N, N, h).permute(2, 0, 1)[None].to(q.dtype)                   # (1, h, N, N)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(BW // len(mask), 1, 1, 1)             # (B * windows, h, N, N)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.output["dense"](y.transpose(1, 2).reshape(BW, N, C))


class Block(nn.Module):
    """Attention in windows, shifted or not, then an MLP, each pre-norm with residual."""

    def __init__(self, width, num_heads, shifted, drop_path, config):
        super().__init__()
        self.window, self.shift = config.window_size, config.window_size // 2 if shifted else 0
        self.drop_path = drop_path
        hidden = int(config.mlp_ratio * width)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = WindowAttention(width, num_heads, config)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width)})

    def forward(self, x):
        """(B, H, W, C) → the same shape."""
        x = x + self.stochastic_depth(self.attend(self.layernorm_before(x)))
        y = self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))
        return x + self.stochastic_depth(y)

    def attend(self, x):
        """Attention within windows of M × M patches: (B, H, W, C) → the same shape.

        Every second block rolls the grid by M // 2 up and to the left, so that patches on both sides of a window's
        border share a window. Patches that leave at one side come in at the other, next to patches that are not their
        neighbours; so a mask lets a patch attend to its own region only. For 4 × 4 patches and M = 2:

            a b | c d             f g | h e             0 0 | 1 2
            e f | g h   rolled    j k | l i   regions   0 0 | 1 2
            ----+----             ----+----             ----+----
            i j | k l             n o | p m             3 3 | 4 5
            m n | o p             b c | d a             6 6 | 7 8
        """
        _, H, W, _ = x.shape
        M = self.window
        # A grid within a single window needs no shift.
        shift = self.shift if min(H, W) > M else 0
        x = pad(x, (0, 0, 0, -W % M, 0, -H % M))
        _, padded_H, padded_W, _ = x.shape

        mask = None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            mask = shift_mask(padded_H, padded_W, M, shift, x.dtype, x.device)
        x = from_windows(self.attention(to_windows(x, M), mask), M, padded_H, padded_W)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :H, :W]

    def stochastic_depth(self, x):
        """In training, drops the branch at random for whole pictures: Huang et al. 2016, arXiv:1603.09382."""
        if not self.training or not self.drop_path:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * (kept / (1 - self.drop_path)).to(x.dtype)


class PatchMerging(nn.Module):
    """Four neighbouring patches become one of twice the width."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x):
        """(B, H, W, C) → (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        _, H, W, _ = x.shape
        x = pad(x, (0, 0, 0, W % 2, 0, H % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    def __init__(self, index, drop_paths, config):
        super().__init__()
        width = config.embed_dim * 2**index
        self.blocks = nn.ModuleList(Block(width, config.num_heads[index], i % 2 == 1, drop_path, config)
                                    for i, drop_path in enumerate(drop_paths))
        self.downsample = PatchMerging(width) if index < len(config.depths) - 1 else None


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        patch = config.patch_size
        self.patch_embeddings = nn.ModuleDict(
            {"projection": nn.Conv2d(config.num_channels, config.embed_dim, kernel_size=patch, stride=patch)})
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, images):
        """(B, 3, pixels, pixels) → (B, H, W, C)."""
        patch = self.patch_embeddings["projection"].kernel_size[0]
        images = pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
        return self.norm(self.patch_embeddings["projection"](images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """checkpoint: recompute each block in the backward pass instead of keeping its activations (training only)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint = False
        self.embeddings = Embeddings(config)
        depth = sum(config.depths)
        rates = iter([config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)])
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(
            Stage(index, [next(rates) for _ in range(blocks)], config) for index, blocks in enumerate(config.depths))})
        self.layernorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.apply(init_weights)

    def forward(self, images):
        """Patch tokens (B, n, width) after the last norm, row by row, of images (B, 3, height, width) of any size."""
        x = self.embeddings(images)
        for stage in self.encoder["layers"]:
            for block in stage.blocks:
                x = recompute(block, x, use_reentrant=False) if self.checkpoint and self.training else block(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return self.layernorm(x).flatten(1, 2)

    @classmethod
    def from_pretrained(cls, folder, dtype=None):
        """Reads a folder with Hugging Face's config.json and its, timm's or the paper's tensor names.

        dtype None: the type in the file. Raises UserError.
        """
        config = read_config(SwinConfig, folder)
        return checkpoint.load(lambda: cls(config), folder, rename_table, dtype)

    def save_pretrained(self, folder):
        """Writes a folder that this class and transformers' SwinModel read."""
        checkpoint.save_folder(folder, self, self.config.to_json())


def init_weights(module):
    """Weights normal with standard deviation 0.02, biases zero, as in Liu et al."""
    if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.is_meta:
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- the names in published files -------------------------------------------------------------------------------------

# Published names → the names here. Classifiers have the `swin.` prefix and a head, SimMIM a mask token and a decoder.
RENAME = {r"^swin\.": "", r"^(classifier|decoder)\.": None, r"^embeddings\.mask_token$": None,
          r"\.relative_position_index$": None}
# The names of timm and of the paper's own repository, where query, key and value are fused.
TIMM_RENAME = {r"^head\.": None, r"\.attn_mask$": None, r"\.relative_position_index$": None,
               r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
               r"^patch_embed\.norm\.": "embeddings.norm.", r"^norm\.": "layernorm.", r"^layers\.": "encoder.layers.",
               r"\.norm1\.": ".layernorm_before.", r"\.norm2\.": ".layernorm_after.",
               r"\.mlp\.fc1\.": ".intermediate.dense.", r"\.mlp\.fc2\.": ".output.dense.",
               r"\.attn\.proj\.": ".attention.output.dense.",
               r"\.attn\.relative": ".attention.self.relative",
               r"\.attn\.qkv\.": (".attention.self.query.", ".attention.self.key.", ".attention.self.value.")}
# timm puts a patch merging into the stage after it, the paper's repository into the stage before it.
LATE_MERGING = {r"^layers\.(\d+)\.downsample\.": lambda found: f"layers.{int(found[1]) - 1}.downsample."}
TIMM_SIZES = {"tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)), "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
              "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)), "large": (192, (2, 2, 18, 2), (6, 12, 24, 48))}
TIMM_CHANGES = ("embed_dim", "depths", "num_heads", "window_size", "drop_path_rate")
TIMM_NOTES = ("num_classes", "in_chans", "global_pool", "img_size", "strict_img_size")    # do not concern our weights


def rename_table(names):
    """The table for a file that holds these names."""
    if not any(name.startswith("patch_embed.") for name in names):
        return RENAME
    early = any(name.startswith("layers.0.downsample.") for name in names)
    return TIMM_RENAME if early else {**LATE_MERGING, **TIMM_RENAME}
