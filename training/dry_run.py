"""--dry-run: parts, shapes, memory and time of a run, computed without loading any weights.

Every module is built on the meta device, so parameter counts are exact. The rest is arithmetic on shapes:

    memory  =  weights  +  trainable parameters × (4 gradient + 8 AdamW)  +  activations  +  logits
    FLOPs   =  2 per weight and token forward; 2 more for the gradient of the input, if any earlier layer trains;
               2 more for the gradient of the weight, if the weight trains; the products of attention likewise

Activations are the tensors that autograd keeps for the backward pass. `MARGIN` accounts for the kernels' workspaces
and for fragmentation.
"""

from functools import partial

import torch
from torch import nn

import trrg
from data.dataset import Prepared
from data.prompts import clue_prompts, flattened
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert, BertConfig
from model.config import read_config
from model.mistral import MistralConfig
from model.swin import Swin, SwinConfig
from training.log import module_table
from training.options import of_stage, stage2_config

MARGIN = 1.1
UTILISATION = 0.45
# Dense bf16 TFLOP/s, from the vendor's data sheets.
GPUS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A6000": 155, "RTX 4090": 165}


def config_at(config_class, folder):
    """The configuration in a folder, or the published model's if the folder has none."""
    return read_config(config_class, folder) if (folder / "config.json").is_file() else config_class()


def linear_weights(module):
    """Number of weights in all linear layers; embeddings cost no FLOPs."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def swin_sizes(config, pictures):
    """[(tokens, channels, blocks)] per stage of Swin, for a number of pictures."""
    side = -(-config.image_size // config.patch_size)
    sizes = []
    for index, blocks in enumerate(config.depths):
        sizes.append((pictures * side * side, config.embed_dim * 2**index, blocks))
        side = -(-side // 2)
    return sizes


def swin_flops(config, pictures):
    """FLOPs of one forward pass: a block has 4 + 2 · mlp_ratio matrices of C × C, and attention within windows."""
    patches = pictures * (config.image_size // config.patch_size) ** 2
    flops = 2 * patches * config.embed_dim * config.num_channels * config.patch_size**2
    for index, (tokens, C, blocks) in enumerate(swin_sizes(config, pictures)):
        flops += blocks * tokens * (2 * (4 + 2 * config.mlp_ratio) * C * C + 4 * config.window_size**2 * C)
        if index < len(config.depths) - 1:
            flops += tokens / 4 * 2 * 8 * C * C
    return flops


def bert_flops(config, sentences, tokens):
    """FLOPs of one forward pass over a number of sentences with `tokens` tokens each."""
    D, I = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * sentences * tokens * (2 * (4 * D * D + 2 * D * I) + 4 * tokens * D)


def mistral_flops(config, rows, tokens):
    """FLOPs of the layers' forward pass, without the head; causal attention counts as full attention, as usual."""
    D, H, G, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    matrices = D * d * (2 * H + 2 * G) + 3 * D * config.intermediate_size
    return config.num_hidden_layers * rows * tokens * (2 * matrices + 4 * tokens * H * d)


def mistral_activations(config, rows, tokens, adapted, size, recompute):
    """Bytes that the frozen layers keep for the backward pass; `size` bytes per number.

    A frozen matrix keeps nothing, since the gradient of its input needs only the weight. A layer keeps the inputs of
    both norms (in fp32, also under autocast); q, k, v and the output of attention; and the MLP's gate, silu(gate) and
    up. A matrix with an adapter (`adapted`: their names) keeps its input and the dropout mask.
    """
    D, H, G, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    layer = 4 * 2 * D + size * (d * (2 * H + 2 * G) + 3 * config.intermediate_size) + 4 * H
    layer += sum({"o_proj": H * d, "down_proj": config.intermediate_size}.get(name, D) for name in adapted) * (size + 1)
    if recompute:
        return rows * tokens * (config.num_hidden_layers * D * size + layer)
    return rows * tokens * config.num_hidden_layers * layer


def swin_activations(config, pictures, size, recompute):
    """Bytes that Swin keeps for the backward pass. A block keeps: the inputs of both norms in fp32; the input of q, k
    and v (three copies under autocast); q, k, v and the output of attention; the MLP's input and two tensors of the
    MLP's width; and, in a shifted block, the attention bias of every window.
    """
    N, copies, kept = config.window_size**2, 3 if size == 2 else 1, 0
    for index, (tokens, C, blocks) in enumerate(swin_sizes(config, pictures)):
        # The embeddings' norm gives fp32, which the blocks pass on up to the first merging
        passed_on = tokens * C * (4 if index == 0 else size)
        block = tokens * C * (4 * 2 + size * (copies + 4 + 1 + 2 * config.mlp_ratio))
        shifted = tokens > pictures * N                                  # a single window is never shifted
        bias = shifted * tokens * config.num_heads[index] * 8 * -(-N // 8) * size
        kept += blocks * passed_on + block + bias if recompute else blocks * block + blocks // 2 * bias
        kept += tokens * C * (4 + size) * (index < len(config.depths) - 1)                              # the merging
    return kept


def bert_activations(config, sentences, tokens, size):
    """Bytes that BERT keeps for the backward pass. A layer keeps: the inputs of both norms in fp32; the input of q, k
    and v (three copies under autocast); q, k, v and the output of attention; the MLP's input and two tensors of the
    MLP's width; and both dropout masks.
    """
    D, I, copies = config.hidden_size, config.intermediate_size, 3 if size == 2 else 1
    masks = 2 * D if config.hidden_dropout_prob else 0
    layer = 4 * 2 * D + size * ((copies + 4 + 1) * D + 2 * I) + masks
    return sentences * tokens * config.num_hidden_layers * layer


class Stage1Needs:
    """Needs of stage 1 for one process, from a model on the meta device."""

    def __init__(self, args):
        self.args, self.batch = args, args.batch_size
        self.swin, self.bert = (config_at(kind, args.weights / name)
                                for kind, name in ((SwinConfig, "swin"), (BertConfig, "bert")))
        with torch.device("meta"):
            self.model = trrg.Alignment(swin=Swin(self.swin), bert=Bert(self.bert), wordpiece=None,
                                        config=trrg.AlignmentConfig(d=self.swin.width))
        self.tokens, self.sentences = self.model.config.sentence_tokens, self.batch * args.sentences

    def shapes(self, processes):
        d, n, B = self.model.config.d, swin_sizes(self.swin, 1)[-1][0], self.batch
        return [("picture", (B, 3, self.swin.image_size, self.swin.image_size)),
                ("v_1..v_n", (B, n, d)), ("v_cls", (B, d)),
                ("sentence", (self.sentences, self.tokens)), ("t_cls", (self.sentences, d)),
                ("cosines, Eq. (1)", (B * processes.world, B * processes.world))]

    def flops(self):
        return 3 * (swin_flops(self.swin, self.batch) + bert_flops(self.bert, self.sentences, self.tokens)
                    + 2 * self.model.config.d * (self.batch * self.swin.width * swin_sizes(self.swin, 1)[-1][0]
                                                 + self.sentences * self.tokens * self.bert.hidden_size))

    def activations(self):
        size = 2 if self.args.precision == "bf16" else 4
        casts = [("autocast's copies of the weights", 2 * linear_weights(self.model))] if size == 2 else []
        return [("activations, Swin", swin_activations(self.swin, self.batch, size, self.args.checkpointing)),
                ("activations, BERT", bert_activations(self.bert, self.sentences, self.tokens, size)), *casts]

    def frozen(self, world):
        """No rows: stage 1 has no frozen layers to shard."""
        return []


class Stage2Needs:
    """Needs of stage 2 for one process, from a model on the meta device; studies have `views` pictures and reports of
    full length.
    """

    def __init__(self, args, views):
        self.args, self.batch, self.views = args, args.batch_size, views
        self.swin, self.mistral = (config_at(kind, args.weights / name)
                                   for kind, name in ((SwinConfig, "swin"), (MistralConfig, "mistral")))
        config, d = stage2_config(args), self.swin.width
        pieces_in, words_in = tokenizer_of(args.weights, SentencePiece), tokenizer_of(args.weights, WordPiece)

        # The model; its bank always holds the hand-written prompts, since the reports' sentences are not known here
        prompts, _ = flattened(clue_prompts(args.prompts_per_disease))
        r = max(len(words_in(text)) for text in prompts) - 1
        with torch.device("meta"):
            self.model = trrg.from_sizes(self.swin, self.mistral, config, d, bank=(len(prompts), r))

        # How many tokens each part of the prompt has
        self.visual = swin_sizes(self.swin, 1)[-1][0] * (views if args.views == "concat" else 1)
        markers = ["[INST] <Img>", "</Img>", f"{config.instruction} [/INST]"] + ["<Clue>", "</Clue>"] * config.clues
        spoken = max(len(pieces_in(f"{trrg.SURENESS[0]} {text}")) for text in prompts)
        self.clue_tokens = (config.queries if config.interaction else config.k * r) * config.tokens
        clue = self.clue_tokens + config.k * spoken * config.words
        self.prompt = (1 + sum(len(pieces_in(text)) for text in markers) + self.visual
                       + config.queries * config.interaction + clue)
        self.tokens = self.prompt + args.report_tokens

        # Frozen weights have the number type of the activations
        self.size = 2 if args.precision == "bf16" else 4
        dtype = torch.bfloat16 if self.size == 2 else torch.float32
        self.model.swin.to(dtype)
        self.model.image_projection.to(dtype)
        for p in self.model.language_model.parameters():
            if not p.requires_grad:
                p.data = p.data.to(dtype)

    def shapes(self, processes):
        d, D, B, L = self.swin.width, self.mistral.hidden_size, self.batch, self.model.config.queries
        rows = [("pictures", (B, self.views, 3, self.swin.image_size, self.swin.image_size)),
                ("v_e, v_d", (B, self.visual, d))]
        if self.model.config.clues:
            rows += [("c_s", (B, self.model.config.k * self.model.bank.tokens.shape[1], d))]
        if self.model.config.interaction:
            rows += [("E^v, E^c", (B, L, d))]
        return rows + [("prompt", (B, self.prompt, D)), ("prompt and report", (B, self.tokens, D)),
                       ("logits, report only", (B * (self.args.report_tokens + 1), self.mistral.vocab_size))]

    def small(self):
        """[(module, number of rows that pass through it)] of the trained modules between the frozen networks."""
        rows = {"mapper": self.visual, "visual_projector": self.visual + self.model.config.queries,
                "clue_projector": self.clue_tokens, "interaction": self.visual + 2 * self.model.config.queries}
        return [(getattr(self.model, name), count * self.batch) for name, count in rows.items()
                if hasattr(self.model, name)]

    def flops(self):
        head = 2 * self.batch * (self.args.report_tokens + 1) * self.mistral.hidden_size * self.mistral.vocab_size
        adapters = sum(p.numel() for name, p in self.model.language_model.named_parameters() if ".lora_" in name)
        lora = adapters * 2 * self.batch * self.tokens
        small = sum(2 * linear_weights(module) * rows for module, rows in self.small())
        return (swin_flops(self.swin, self.batch * self.views)
                + 2 * (mistral_flops(self.mistral, self.batch, self.tokens) + head) + 3 * (lora + small))

    def activations(self):
        rows = self.batch * (self.args.report_tokens + 1)
        adapted = self.args.lora_targets if self.args.lora_rank else ()
        language = mistral_activations(self.mistral, self.batch, self.tokens, adapted, self.size,
                                       self.args.checkpointing)
        interaction = sum(12 * linear_weights(m) ** 0.5 * count * self.size for m, count in self.small())
        return [("activations, language model", language), ("activations, clue interaction", interaction),
                ("logits and their gradient", rows * self.mistral.vocab_size * (self.size + 4 + 4))]

    def frozen(self, world):
        """The bytes that sharding saves, as a negative row: this process keeps 1 / `world` of the frozen layers, and up
        to two whole layers at a time.
        """
        if not self.args.shard:
            return []
        layers = [sum(p.numel() * p.element_size() for p in layer.parameters() if not p.requires_grad)
                  for layer in self.model.language_model.layers]
        return [(f"sharded over {world} processes", -sum(layers) * (1 - 1 / world) + 2 * max(layers))]


def tokenizer_of(weights, kind):
    """A function from a text to its tokens: the weights' own tokenizer; without weights, pieces of four letters."""
    of_bert = kind is WordPiece
    folder, file = (weights / "bert", "vocab.txt") if of_bert else (weights / "mistral", "tokenizer.model")
    if (folder / file).is_file():
        return partial(kind.from_pretrained(folder).encode, special=of_bert)

    def roughly(text):
        pieces = [word[i:i + 4] for word in text.split() for i in range(0, len(word), 4)]
        return ["[CLS]", *pieces, "[SEP]"] if of_bert else pieces
    return roughly


def memory(needs, world):
    """[(name, bytes)] of one process at the peak of a step; the last row is the sum, with the margin."""
    tensors = [*needs.model.parameters(), *needs.model.buffers()]
    training = sum(p.numel() for p in needs.model.parameters() if p.requires_grad)
    rows = [("weights", sum(t.numel() * t.element_size() for t in tensors)), *needs.frozen(world),
            ("gradients", 4 * training), ("AdamW's moments", 8 * training)]
    rows += [("gradients in DDP's buckets", 4 * training)] * (world > 1) + needs.activations()
    return [*rows, (f"peak, with {MARGIN - 1:.0%} for workspaces", MARGIN * sum(size for _, size in rows))]


def dry_run(args, processes):
    """The text that --dry-run prints. Raises UserError."""
    views, studies = 2, None
    if (args.data / "studies.jsonl").is_file():
        train = Prepared(args.data).split("train")
        views, studies = max(len(study["views"]) for study in train), len(train)

    texts = [stage_text(of_stage(args, number), processes, views, studies)
             for number in (1, 2) if args.stage in (None, number)]
    if not (args.weights / "mistral" / "config.json").is_file():
        texts.append(f"{args.weights} holds no weights: the shapes are those of the published models, and the prompts' "
                     "token counts are estimates")
    return "\n\n".join(texts)


def stage_text(args, processes, views, studies):
    """Parts, shapes, memory and time of one stage; `studies`: number of training studies, None if unknown."""
    needs = Stage1Needs(args) if args.stage == 1 else Stage2Needs(args, views)
    flops, sizes = needs.flops(), memory(needs, processes.world)
    lines = [f"stage {args.stage}: {processes.world} × {needs.batch} studies per batch, {args.precision}"
             + (f", {views} views" if args.stage == 2 else ""), "",
             module_table(needs.model), "",
             *(f"{name:<34}{' × '.join(map(str, shape))}" for name, shape in needs.shapes(processes)), "",
             *(f"{name:<40}{size / 2**30:>9.2f} GiB" for name, size in sizes), "",
             f"{'FLOPs of a batch, one process':<40}{flops / 1e12:>9.2f} T"]

    # The time on this machine's GPU, or, without one, on each GPU in the table
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for gpu, peak in GPUS.items():
        if gpu in here or not here:
            seconds = flops / (peak * 1e12 * UTILISATION)
            speed = f"{gpu} at {peak} TFLOP/s and {UTILISATION:.0%}"
            hours = studies and seconds * studies * args.epochs / needs.batch / processes.world / 3600
            lines.append(f"  on {speed:<37}{seconds:>9.3f} s" + (f", {hours:.1f} h in all" if studies else ""))
    return "\n".join([*lines, *warning(sizes[-1][1], args)])


def warning(need, args):
    """A line that tells whether this machine's GPU has enough memory."""
    if not torch.cuda.is_available():
        return ["this machine has no GPU to compare with"]
    have = torch.cuda.get_device_properties(0).total_memory
    if need <= have:
        return [f"fits into this machine's GPU ({have / 2**30:.0f} GiB)"]
    remedies = [flag for flag, on in (("--checkpointing", args.checkpointing), ("--shard", args.shard)) if not on]
    tries = ", ".join([*remedies, "a smaller --batch-size"])
    return [f"WARNING: does not fit into this machine's GPU ({have / 2**30:.0f} GiB): try {tries}"]
