"""TRRG: truthful radiology report generation with cross-modal disease clues, on one page.

    After Wang et al., "TRRG: Towards Truthful Radiology Report Generation With Cross-modal Disease Clue Enhanced
    Large Language Models". Section and equation numbers are the paper's; what it leaves open is marked `Choice:`.

    stage 1   Alignment   a picture and one sentence of its report meet in R^d                      Eq. (1)
    stage 2   TRRG        the picture recognises its diseases, their clues and the picture meet in
                          L learnable queries, and a language model writes the report               Eq. (2)–(5)

Legend, everywhere in this repository:
    B  studies in a batch          m  diseases, 14              D  width of the language model
    V  views (pictures) per study  k  injected clues, 3         T  report tokens
    n  patch tokens per picture    r  tokens per clue           τ  temperature
    d  shared width, 1024          L  learnable queries, 32     P  prompt tokens, or prompts of the bank
    v_e (B, N, d) patch tokens of a study, N = V·n      v_d (B, N, d) the mapped ones      v_cls (B, d) their mean
    c_s (B, k·r, d) tokens of the injected clues        E^v, E^c (B, L, d) the queries' output for picture, clues

Read on in: model/clues.py (recognition), model/interaction.py (Eq. 2–4), model/mistral.py and model/lora.py.
"""

from dataclasses import dataclass
from math import log
from operator import add
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data.images import augment, read
from data.prompts import clue_prompts, flattened
from data.reports import LABELS
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert, BertConfig, padded
from model.checkpoint import load_state, save_file
from model.clues import ClueBank, Clues, cosine
from model.decode import generate
from model.interaction import Interaction, disease_consistency
from model.lora import TARGETS, add_lora
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig
from model.trained import (as_bytes, as_tensor, base_header, configuration, configurations, in_base, read_base,
                           read_trained)

VARIANTS = ("base", "dci", "cmci", "trrg", "steered")
# The settings of `--variant steered`, our own addition: clues are sentences of the reports, only the likely ones, each
# after a word for its sureness. On the phantom's val split, four in ten clues with a weight from .08 to .15 were right,
# six in ten up to .4, and nine in ten above (docs/results.md).
STEERED = dict(clue_bank="sentences", clue_form="words", clue_threshold=0.08, clue_sureness=(0.15, 0.4),
               clue_dropout=0.1)
SURENESS = ("possible", "likely", "certain")          # what a clue is called, by its weight
INSTRUCTION = "Generate a comprehensive and detailed diagnosis report for this chest X-ray image."


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1: disease-aware fine-grained alignment (§2.1)


@dataclass(frozen=True)
class AlignmentConfig:
    """The choices of stage 1; the sizes of the encoders are their own configurations'."""

    d: int = 1024                          # shared width
    tau: float = 0.07                      # where the learnable temperature starts
    sentence_tokens: int = 64              # WordPiece tokens of a sentence or prompt, [CLS] and [SEP] included
    same_sentence_positives: bool = False  # equal sentences of a batch count as positives (off: the paper)
    prompts_per_disease: int = 0           # of the zero-shot evaluation, as in TRRGConfig


class Alignment(nn.Module):
    """Swin and BERT, each followed by a bias-free map into R^d, and the temperature of Eq. (1).

    Choice: the maps are applied to every token, so that patch tokens and clue tokens share the pooled ones' space.
    `pictures`: {"size": side of a prepared picture, "crop": side of Swin's input}, needed to open pictures later.
    """

    def __init__(self, *, swin, bert, wordpiece, config, pictures=None):
        super().__init__()
        self.config, self.wordpiece, self.pictures = config, wordpiece, pictures
        self.swin, self.bert = swin, bert
        self.image_projection = nn.Linear(swin.config.width, config.d, bias=False)
        self.text_projection = nn.Linear(bert.config.hidden_size, config.d, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(log(1 / config.tau)))

    def image_tokens(self, images):
        """(B, 3, H, W) → v_1..v_n (B, n, d). Their mean is the global token (§2.2); Swin has no CLS."""
        return self.image_projection(self.swin(images))

    def text_tokens(self, ids, mask):
        """(B, S) twice → (B, S, d); the first token is t_cls."""
        return self.text_projection(self.bert(ids, mask))

    @property
    def tau(self):
        """Choice: τ is learned as log(1/τ), with 1/τ at most 100 (CLIP's bound)."""
        return 1 / self.log_scale.clamp(max=log(100)).exp()

    def forward(self, images, ids, mask):
        """images (B, 3, H, W), token ids and mask (B, S) of one sentence each → v_cls, t_cls (B, d), τ.

        τ is returned because DDP searches the results for the parameters that get gradients.
        """
        return self.image_tokens(images).mean(1), self.text_tokens(ids, mask)[:, 0], self.tau


def contrastive_loss(v, t, tau, same=None):
    """Eq. (1): L = CE(text → image) + CE(image → text), symmetric InfoNCE over N pairs, mean over the pairs.

    v, t (N, d), σ the cosine; row i of either belongs to row i of the other. `same` (N, N) bool marks further
    positives (equal sentences): each anchor's target mass is then spread evenly over its positives.
    """
    logits = cosine(v, t) / tau                                                       # (N images, N sentences)
    positives = torch.eye(len(v), device=v.device) if same is None else same.float()
    targets = positives / positives.sum(-1, keepdim=True)                             # `positives` is symmetric
    return cross_entropy(logits.T, targets) + cross_entropy(logits, targets)


def encode_words(wordpiece, texts, max_tokens):
    """Sentences or prompts → WordPiece ids and mask (B, S): [CLS] … [SEP], at most `max_tokens`, right-padded."""
    rows = [wordpiece.encode(text) for text in texts]
    return padded([row if len(row) <= max_tokens else row[:max_tokens - 1] + row[-1:] for row in rows],
                  wordpiece.pad_id)


# ---------------------------------------------------------------------------------------------------------------------
# Stage 2: clue-enhanced instruction tuning (§2.2)


@dataclass(frozen=True)
class TRRGConfig:
    """The choices of stage 2. Fields that are options of train.py have the options' names."""

    variant: str = "trrg"                  # Table 2: base < dci (raw clues) < cmci (queries) < trrg (and L_DC)
    views: str = "concat"                  # concat | mean: how the views of a study become one sequence
    k: int = 3                             # injected clues
    prompts_per_disease: int = 0           # 1: the paper's literal form; 0: the whole severity × location bank
    clue_threshold: float = 0.0            # a clue lighter than this is masked out (0: none, the paper)
    queries: int = 32                      # L
    heads: int = 8
    dc_weight: float = 1.0                 # weight of L_DC in Eq. (5)
    lora_rank: int = 16                    # 0: the literally frozen language model
    lora_alpha: float = 16
    lora_dropout: float = 0.1
    lora_targets: tuple = TARGETS          # the linear layers with an adapter
    instruction: str = INSTRUCTION
    # Ours, beyond the paper, each with the paper's form as its default; `--variant steered` sets them to STEERED.
    clue_bank: str = "prompts"             # prompts | sentences: hand-written prompts, or the reports' own sentences
    clue_form: str = "tokens"              # tokens | words | both: what the language model reads of a clue
    clue_sureness: tuple = ()              # weights from which a clue is "likely" and "certain"; (): nothing is said
    clue_dropout: float = 0.0              # share of the training studies that are shown no clue
    dc_pull: str = "both"                  # Eq. (4) moves both sides | picture: E^c is the target | contrast: Eq. (1)

    # What a variant has, and so what TRRG builds for it.
    @property
    def clues(self):
        return self.variant != "base"

    @property
    def interaction(self):
        return self.variant in ("cmci", "trrg")

    @property
    def words(self):
        return self.clues and self.clue_form != "tokens"

    @property
    def tokens(self):
        return self.clues and self.clue_form != "words"

    @property
    def consistency(self):
        return self.variant == "trrg"


@torch.no_grad()
def encode_bank(alignment, prompts):
    """Every clue prompt through the frozen text encoder, once: [[prompt, …] per disease] → `ClueBank` with the c^i."""
    texts, diseases = flattened(prompts)
    ids, mask = encode_words(alignment.wordpiece, texts, alignment.config.sentence_tokens)
    ids, mask = ids.to(alignment.log_scale.device), mask.to(alignment.log_scale.device)
    tokens = alignment.eval().text_tokens(ids, mask)
    return ClueBank(tokens=tokens[:, 1:].contiguous(), cls=tokens[:, 0].contiguous(), mask=mask[:, 1:].contiguous(),
                    disease=torch.tensor(diseases, device=ids.device), m=len(prompts), texts=texts)


class Prompt(NamedTuple):
    """What the language model reads before the report, and the intermediate results."""

    embeds: torch.Tensor             # (B, P, D)
    parts: list                      # [(name, how many tokens)] in order, P in all
    v_e: torch.Tensor                # (B, N, d)
    clues: Clues | None
    e_v: torch.Tensor | None         # (B, L, d)
    e_c: torch.Tensor | None         # (B, L, d)


class Loss(NamedTuple):
    """The two terms of Eq. (5) as sums, and what to divide them by. Batches, and processes, add up with +."""

    ce: torch.Tensor                 # cross-entropy, summed over the report tokens
    dc: torch.Tensor                 # L_DC, summed over the studies; 0 where the variant has none
    tokens: torch.Tensor
    studies: int

    def __add__(self, more):
        return Loss(*map(add, self, more))


class Report(NamedTuple):
    """What the model writes of one study."""

    text: str
    clues: list                      # [(prompt, weight)], heaviest first; empty for the base variant


class TRRG(nn.Module):
    """The report writer. What a variant does not use is not built.

    Frozen: Swin, its projection and τ (from stage 1), the clue bank, the language model. Trainable: everything else.
    `pictures` is Alignment's, `decoding` what `report` hands to `generate`.
    """

    def __init__(self, *, swin, image_projection, tau, bank, language_model, tokenizer, config,
                 pictures=None, decoding=None):
        super().__init__()
        self.config, self.tokenizer, self.pictures, self.decoding = config, tokenizer, pictures, decoding or {}
        d, D = image_projection.out_features, language_model.config.hidden_size

        self.swin, self.image_projection = swin, image_projection
        self.register_buffer("tau", tau)
        self.language_model = language_model
        for frozen in (self.swin, self.image_projection, self.language_model):
            frozen.requires_grad_(False)

        self.mapper = nn.Linear(d, d)                                                      # v_d = W v_e + b
        self.visual_projector = nn.Sequential(nn.Linear(d, D), nn.LayerNorm(D))            # P_v
        if config.clues:
            self.bank = bank
        if config.tokens:
            self.clue_projector = nn.Sequential(nn.Linear(d, D), nn.LayerNorm(D))          # P_c
        if config.interaction:
            self.interaction = Interaction(d, config.heads, config.queries)
        if config.words and tokenizer:                                                     # a dry run has none
            ids, mask = word_table(tokenizer, bank.texts, SURENESS if config.clue_sureness else [""])
            self.register_buffer("word_ids", ids, persistent=False)
            self.register_buffer("word_mask", mask, persistent=False)
        add_lora(language_model, config.lora_targets, config.lora_rank, config.lora_alpha, config.lora_dropout)

    def train(self, mode=True):
        """A frozen encoder is a function, not a sampler: it stays in evaluation mode (no stochastic depth)."""
        super().train(mode)
        self.swin.eval()
        return self

    @torch.no_grad()
    def view_tokens(self, images):
        """The frozen encoder of stage 1 on every view: (B, V, 3, H, W) → (B, V, n, d)."""
        B, V = images.shape[:2]
        images = images.flatten(0, 1).to(self.image_projection.weight)                     # frozen, perhaps in bf16
        return self.image_projection(self.swin(images)).unflatten(0, (B, V))

    def encode(self, images):
        """v_e = E_img(x) of all views of a study: (B, V, 3, H, W), or their `view_tokens`, → (B, N, d)."""
        views = (self.view_tokens(images) if images.dim() == 5 else images).to(self.mapper.weight)
        return views.flatten(1, 2) if self.config.views == "concat" else views.mean(1)

    def recognise(self, v_e):
        """Zero-shot recognition and top-k: v_e (B, N, d) → `Clues`."""
        v_cls = v_e.mean(1)                                                                # of all patch tokens, §2.2
        clues = self.bank(v_cls, self.tau, self.config.k, self.config.clue_threshold)
        if self.training and self.config.clue_dropout:
            shown = torch.rand(len(v_cls), 1, device=v_cls.device) >= self.config.clue_dropout
            clues = clues._replace(mask=clues.mask & shown)
        return clues

    def clue_words(self, clues):
        """The clues in words, each after its word of sureness, as the language model's embeddings → (B, k·S, D).

        Ours: the language model knows these words, so it needs no projection to learn. Padding and masked clues are
        zeros, as in dci.
        """
        weights = clues.weights.gather(1, clues.disease)                                   # (B, k)
        bounds = torch.tensor(self.config.clue_sureness, device=weights.device)
        sureness = (weights[..., None] >= bounds).sum(-1)
        mask = self.word_mask[clues.prompt, sureness] & clues.injected[..., None]          # (B, k, S)
        words = self.language_model.embed(self.word_ids[clues.prompt, sureness])
        return (words * mask[..., None]).flatten(1, 2)

    def assemble(self, picture, clues):
        """[INST] <Img> P_v(v_d) P_v(E^v) </Img> <Clue> P_c(E^c) </Clue> instruction [/INST] → embeds, parts.

        `picture` and `clues` are [(name, embeddings (B, ·, D))] in this order; without clues the <Clue> markers are
        left out. The one place where the language model's input is put together, for training and for writing alike.
        The markers are ordinary text; all prompts of a batch are equally long.
        """
        bos = self.language_model.embed(torch.tensor([[self.tokenizer.bos_id]], device=self.mapper.weight.device))
        sequence = [("<s>", bos), self._text("[INST] <Img>"), *picture, self._text("</Img>")]
        if clues:
            sequence += [self._text("<Clue>"), *clues, self._text("</Clue>")]
        sequence += [self._text(f"{self.config.instruction} [/INST]")]

        B = len(picture[0][1])
        embeds = torch.cat([part.to(bos).expand(B, -1, -1) for _, part in sequence], dim=1)
        return embeds, [(name, part.shape[1]) for name, part in sequence]

    def _text(self, text):
        """(the text, its embeddings (1, ·, D)), as a part of the prompt."""
        ids = torch.tensor([self.tokenizer.encode(text, special=False)], device=self.mapper.weight.device)
        return text, self.language_model.embed(ids)

    def prompt(self, images, clues=None):
        """images (B, V, 3, H, W) → `Prompt`. `clues` takes the place of the recognised ones (for experiments)."""
        v_e = self.encode(images)
        v_d = self.mapper(v_e)                                                             # v_d = W v_e + b
        picture_parts, clue_parts, e_v, e_c = [("v_d", self.visual_projector(v_d))], [], None, None

        if self.config.clues:
            clues = clues or self.recognise(v_e)
        if self.config.interaction:
            e_v, e_c = self.interaction(v_d, clues.tokens, clues.mask)                     # Eq. (2), (3)
            picture_parts += [("E^v", self.visual_projector(e_v))]

        if self.config.words:
            clue_parts += [("words", self.clue_words(clues))]
        if self.config.interaction and self.config.tokens:
            clue_parts += [("E^c", self.clue_projector(e_c))]
        elif self.config.tokens:
            # Choice: dci's padding reads as zeros, so that every prompt of a batch is equally long without a mask.
            clue_parts += [("c_s", self.clue_projector(clues.tokens) * clues.mask[..., None])]

        embeds, parts = self.assemble(picture_parts, clue_parts)
        return Prompt(embeds, parts, v_e, clues, e_v, e_c)

    def report_logits(self, prompt, ids, labels):
        """The logits at each labelled token of the reports, given the `Prompt` and the tokens before it.

        ids, labels (B, T) from `supervise` → (labelled tokens, vocabulary), study by study.
        """
        _, T = labels.shape
        report = self.language_model.embed(ids[:, :-1]).to(prompt.embeds)
        hidden = self.language_model.hidden(embeds=torch.cat([prompt.embeds, report], dim=1))
        # The last prompt token predicts the first report token, so the last T positions count.
        return self.language_model.logits(hidden[:, -T:][labels != -100]).float()

    def forward(self, images, ids, labels, gather=lambda rows: rows):
        """images (B, V, 3, H, W) or their tokens, report ids and labels (B, T) from `supervise` → `Loss`.

        gather(rows) returns the rows of all processes; only `dc_pull` "contrast" uses it.
        """
        prompt, supervised = self.prompt(images), labels != -100
        ce = cross_entropy(self.report_logits(prompt, ids, labels), labels[supervised], reduction="sum")

        dc = ce.new_zeros(())
        if self.config.consistency:
            dc = self.consistency(prompt, gather)                                          # Eq. (4)
        return Loss(ce=ce, dc=dc, tokens=supervised.sum(), studies=len(images))

    def consistency(self, prompt, gather):
        """Eq. (4) summed over the studies of the batch, or what `dc_pull` puts in its place."""
        e_v, e_c, clues = prompt.e_v, prompt.e_c, prompt.clues
        if self.config.dc_pull == "both":
            return disease_consistency(e_v, e_c).sum()
        if self.config.dc_pull == "picture":                          # E^c stays where the report's loss wants it
            return disease_consistency(e_v, e_c.detach()).sum()

        # Eq. (1) on E^v and E^c: a study's own clues against those of all other studies of all processes. Studies with
        # the same clues are positives.
        chosen = gather(clues.prompt.masked_fill(~clues.injected, -1).sort(-1).values)     # (N, k)
        same = (chosen[:, None] == chosen).all(-1)
        return contrastive_loss(gather(e_v.flatten(1)), gather(e_c.flatten(1)), self.tau, same) * len(e_v)

    def total(self, loss):
        """Eq. (5): L = L_CE + L_DC; L_CE is a mean over report tokens, L_DC over studies."""
        return loss.ce / loss.tokens + self.config.dc_weight * loss.dc / loss.studies

    def supervise(self, texts, max_tokens):
        """Reports → ids, labels (B, T) and how many were cut: each is its tokens and </s>; pads are labelled -100.

        Pads stand on the right, where causal attention never sees them from a supervised token; their id is </s>'s.
        """
        rows = [self.tokenizer.encode(text, special=False) for text in texts]
        cut = sum(len(row) > max_tokens for row in rows)
        rows = [torch.tensor(row[:max_tokens] + [self.tokenizer.eos_id]) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        return (pad(rows, batch_first=True, padding_value=self.tokenizer.eos_id),
                pad(rows, batch_first=True, padding_value=-100), cut)

    @torch.no_grad()
    def write(self, images, clues=None, **decoding):
        """images (B, V, 3, H, W) → ([`Report`] * B, the `Prompt`); `decoding` as `model.decode.generate` takes it."""
        prompt = self.prompt(images, clues)
        tokens = generate(self.language_model, embeds=prompt.embeds, eos_id=self.tokenizer.eos_id, **decoding)
        texts = [self.tokenizer.decode(row).strip() for row in tokens]
        return [Report(text, self.named_clues(prompt.clues, i)) for i, text in enumerate(texts)], prompt

    def report(self, pictures):
        """The views of one study (paths or PIL images, frontal first) → `Report`."""
        return self.write(self.open(pictures), **self.decoding)[0][0]

    def open(self, pictures):
        """The views of one study (paths or PIL images, frontal first) → images (1, V, 3, H, W). Raises UserError."""
        views = torch.stack([torch.from_numpy(read(picture, self.pictures["size"])) for picture in pictures])
        return augment(views, self.pictures["crop"], None)[None].to(self.mapper.weight.device)

    def named_clues(self, clues, i):
        """[(prompt, weight)] of study i, heaviest first; those under the threshold are left out."""
        if clues is None:
            return []
        pairs = zip(clues.prompt[i].tolist(), clues.weights[i, clues.disease[i]].tolist())
        return [(self.bank.texts[prompt], weight) for prompt, weight in pairs if weight >= self.config.clue_threshold]


def word_table(tokenizer, texts, leads):
    """Ids and mask (P, leads, S) of every prompt after every leading word, without its template's "Clue:"."""
    rows = [tokenizer.encode(f"{lead} {text.removeprefix('Clue: ')}".strip(), special=False)
            for text in texts for lead in leads]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device="cpu")
    mask = torch.tensor([[place < len(row) for place in range(longest)] for row in rows], device="cpu")
    return ids.view(len(texts), len(leads), longest), mask.view(len(texts), len(leads), longest)


# ---------------------------------------------------------------------------------------------------------------------
# From stage 1 to stage 2, and from a file: one safetensors file rebuilds the model without flags


def from_alignment(alignment, language_model, tokenizer, config, prompts=None, **settings):
    """Stage 2 from stage 1: stage 1's image side and τ are kept; its text side encodes the clues and is then dropped.

    `prompts`: [[clue prompt, …] per disease]; the hand-written ones where None.
    """
    prompts = prompts or clue_prompts(config.prompts_per_disease)
    return TRRG(swin=alignment.swin, image_projection=alignment.image_projection, tau=alignment.tau.detach().clone(),
                bank=encode_bank(alignment, prompts) if config.clues else None,
                language_model=language_model, tokenizer=tokenizer, config=config, **settings)


def from_sizes(swin, mistral, config, d, bank, texts=(), tokenizer=None, **settings):
    """Stage 2 with these configurations, without its weights; `bank`: the clue bank's (P, r), `texts`: its prompts."""
    return TRRG(swin=Swin(swin), image_projection=nn.Linear(swin.width, d, bias=False), tau=torch.empty(()),
                bank=ClueBank.empty(*bank, d, m=len(LABELS), texts=texts) if config.clues else None,
                language_model=Mistral(mistral), tokenizer=tokenizer, config=config, **settings)


def save_alignment(path, alignment, header):
    """Writes all of stage 1. `header`: further entries for the file's header."""
    save_file(path, dict(alignment.state_dict(), wordpiece=as_tensor(alignment.wordpiece.vocab_bytes)), {
        **header, "stage": 1, **configurations(alignment=alignment, swin=alignment.swin, bert=alignment.bert),
        "lower_case": alignment.wordpiece.lower_case, "pictures": alignment.pictures})


def save(path, model, header, embed_base=False):
    """Writes what stage 1 and 2 trained. The language model is named by folder and digest, or embedded.

    `header`: further entries for the file's header; its "base" holds the language model's "folder".
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if embed_base or not in_base(name)}
    save_file(path, dict(tensors, sentencepiece=as_tensor(model.tokenizer.model_bytes)), {
        **header, "stage": 2, "variant": model.config.variant, "pictures": model.pictures, "decoding": model.decoding,
        **configurations(trrg=model, swin=model.swin, mistral=model.language_model), "d": model.mapper.in_features,
        "bank": list(model.bank.tokens.shape[:2]) if model.config.clues else None,
        "prompts": model.bank.texts if model.config.clues else None,
        "base": base_header(model.language_model, header["base"], embed_base)})


def load(path, weights=None, device="cpu"):
    """A checkpoint → `Alignment` or `TRRG`, by the stage recorded in the file, in evaluation mode.

    `weights`: the folder that holds mistral/, if it has moved since training. The header is kept as `.header`.
    Raises UserError for a file that is no checkpoint, does not fit, or was trained on another language model.
    """
    tensors, header = read_trained(path)
    if header["stage"] == 1:
        wordpiece = WordPiece(as_bytes(tensors.pop("wordpiece")), header["lower_case"])

        def build():
            return Alignment(swin=Swin(configuration(SwinConfig, header["swin"])),
                             bert=Bert(configuration(BertConfig, header["bert"])), wordpiece=wordpiece,
                             config=configuration(AlignmentConfig, header["alignment"]), pictures=header["pictures"])
    else:
        tokenizer = SentencePiece(as_bytes(tensors.pop("sentencepiece")))
        config = configuration(TRRGConfig, header["trrg"])
        texts = header.get("prompts") or flattened(clue_prompts(config.prompts_per_disease))[0]    # older files: none
        if not header["base"]["embedded"]:
            tensors.update(read_base(path, header["base"], weights))

        def build():
            return from_sizes(swin=configuration(SwinConfig, header["swin"]),
                              mistral=configuration(MistralConfig, header["mistral"]),
                              config=config, d=header["d"], bank=header["bank"], texts=texts,
                              tokenizer=tokenizer, pictures=header["pictures"], decoding=header["decoding"])

    model = load_state(build, tensors, path)
    model.header = header
    return model.to(device).eval()
