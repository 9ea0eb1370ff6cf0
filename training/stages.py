"""The two stages: what each builds, reads, and averages. The loop of train.py knows no more of them than this.

A stage's loss is a sum of terms, each a sum over a batch divided by how much of it all processes and all accumulated
batches hold: `terms` gives the numerators of one process's share, `counts` the denominators.
"""

import hashlib

import torch
from torch import nn

import trrg
from data.files import UserError
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert
from model.checkpoint import digest
from model.mistral import Mistral
from model.swin import Swin
from training.processes import gather
from training.sharding import shard
from training.state import weights_digest


class Stage1:
    """Alignment of both encoders by Eq. (1), with the negatives of all processes."""

    number, name, checkpoint, term_names = 1, "stage1", "stage1.safetensors", ("contrastive",)

    def __init__(self, args, processes):
        self.args = args
        self.words = WordPiece.from_pretrained(args.weights / "bert")
        swin, bert = Swin.from_pretrained(args.weights / "swin"), Bert.from_pretrained(args.weights / "bert")
        check_vocabulary(args.weights / "bert", "vocab.txt", self.words, bert)
        self.model = trrg.Alignment(swin, bert, trrg.AlignmentConfig(
            d=swin.config.width, same_sentence_positives=args.same_sentence_positives)).to(processes.device)
        # Weights are read in the type of their file; what trains is kept in fp32.
        self.model.float()
        self.trained = WithTemperature(self.model)
        swin.checkpoint = args.checkpointing

    @staticmethod
    def settings(args):
        """What must be the same again when a run goes on: {option: value}, beside what both stages share."""
        return {"--same-sentence-positives": args.same_sentence_positives, "--sentences": args.sentences,
                "the base weights": weights_digest(args.weights / "swin", args.weights / "bert")}

    def inputs(self, batch, device):
        """Collated visits → what `terms` takes, and how many reports were cut."""
        drawn = [text for texts in zip(*batch["texts"]) for text in texts]                     # (S·B): draw by draw
        distinct = list(dict.fromkeys(drawn))                                                  # short sentences repeat
        ids, mask = trrg.encode_words(self.words, distinct, self.model.config.sentence_tokens)
        which = torch.tensor([distinct.index(text) for text in drawn])
        keys = torch.tensor([text_key(text) for text in drawn])
        images = batch["images"].to(device, non_blocking=True)
        return tuple(x.to(device) for x in (images[:, 0], ids, mask, which, keys)), 0

    def counts(self, inputs, share):
        return (len(inputs[0]) * share.weight,)

    def terms(self, model, inputs, share):
        images, ids, mask, which, keys = inputs
        v, t, tau = model(images, ids, mask)
        v = gather(v.float(), share.sizes)              # in fp32, for its gradients are summed over processes
        losses = []
        # not t[which]: on several threads the gradients of an index are added in any order
        t = t.float().index_select(0, which)
        for drawn, key in zip(t.split(len(images)), keys.split(len(images))):
            key = gather(key[:, None], share.sizes)
            same = key == key.T if self.args.same_sentence_positives else None
            losses.append(trrg.contrastive_loss(v, gather(drawn, share.sizes), tau, same))
        # Every process has the loss of the whole batch and counts it for its own pairs.
        return (torch.stack(losses).mean() * (len(images) * share.weight),)

    def loss(self, terms, totals):
        return terms[0] / totals[0]

    def figures(self):
        return {"tau": self.model.tau.item()}

    def save(self, path, header):
        trrg.save_alignment(path, self.model, self.words, header)


class WithTemperature(nn.Module):
    """Alignment with all that its loss reads; DDP looks for the parameters in use among what `forward` returns."""

    def __init__(self, alignment):
        super().__init__()
        self.alignment = alignment

    def forward(self, images, ids, mask):
        """→ v_cls, t_cls (B, d), τ."""
        return *self.alignment(images, ids, mask), self.alignment.tau


def text_key(text):
    """63 bits of a text's SHA-256: equal texts, and practically only these, have equal keys on every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Stage2:
    """Instruction tuning by Eq. (5), on the frozen encoders of stage 1."""

    number, name, checkpoint, term_names = 2, "stage2", "ckpt.safetensors", ("ce", "dc")

    def __init__(self, args, processes):
        self.args = args
        alignment = trrg.load(args.stage1, device=processes.device)
        if not isinstance(alignment, trrg.Alignment):
            raise UserError(f"{args.stage1}: a stage-2 checkpoint; --stage1 wants the file that stage 1 wrote")
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        language_model = Mistral.from_pretrained(args.weights / "mistral", dtype=dtype)
        language_model.checkpoint = args.checkpointing
        tokenizer = SentencePiece.from_pretrained(args.weights / "mistral")
        check_vocabulary(args.weights / "mistral", "tokenizer.model", tokenizer, language_model)
        self.base = {"folder": str(args.weights / "mistral"), "digest": digest(language_model)}
        self.model = trrg.on_alignment(alignment, alignment.words, language_model, tokenizer, stage2_config(args))
        self.model.swin.to(dtype)
        self.model.image_projection.to(dtype)
        if args.shard:
            shard(language_model, processes)
        self.trained = self.model.to(processes.device)

    @staticmethod
    def settings(args):
        if not args.stage1.is_file():
            raise UserError(f"{args.stage1}: no stage-1 checkpoint; run `train.py --stage 1` with the same --run "
                            "first, or give --stage1 FILE")
        names = ("variant", "views", "k", "queries", "prompts_per_disease", "clue_threshold", "dc_weight", "lora_rank",
                 "lora_alpha", "lora_dropout", "lora_targets", "report_tokens", "select", "val_reports")
        return {**{f"--{name.replace('_', '-')}": getattr(args, name) for name in names},
                "the stage-1 checkpoint": weights_digest(args.stage1),
                "the language model": weights_digest(args.weights / "mistral")}

    def inputs(self, batch, device):
        ids, labels, cut = self.model.supervise(batch["texts"], self.args.report_tokens)
        return (batch["images"].to(device, non_blocking=True), ids.to(device), labels.to(device)), cut

    def counts(self, inputs, share):
        return int((inputs[2] != -100).sum()) * share.weight, len(inputs[0]) * share.weight

    def terms(self, model, inputs, share):
        loss = model(*inputs)
        return loss.ce * share.weight, loss.dc.sum() * share.weight

    def loss(self, terms, totals):
        (ce, dc), (tokens, studies) = terms, totals
        return trrg.loss_total(trrg.Loss(ce, tokens, dc), self.args.dc_weight, tokens, studies)

    def figures(self):
        return {}

    def save(self, path, header):
        trrg.save(path, self.model, dict(header, base=self.base), embed_base=self.args.embed_base)


def check_vocabulary(folder, file, tokenizer, model):
    """Raises UserError where a tokenizer has tokens for which the model has no embedding."""
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"{folder / file}: has {len(tokenizer):,} tokens, but {folder / 'config.json'} has room for "
                        f"{model.config.vocab_size:,}; take both from the same model")


def stage2_config(args):
    return trrg.TRRGConfig(
        variant=args.variant, views=args.views, k=args.k, prompts_per_disease=args.prompts_per_disease,
        clue_threshold=args.clue_threshold, queries=args.queries, dc_weight=args.dc_weight, lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, lora_targets=tuple(args.lora_targets))
