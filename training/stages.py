"""The two stages, each a class: the model, how a batch is read, and its loss. The loop in train.py uses nothing else.

`read` turns a batch into tensors, `step` gives the parts of its loss, `total` the loss that is minimised, `figures`
further figures for the log, `save` writes the checkpoint, `foundations` names the files that a stage is built on.

The parts of a loss are sums over one process's share of a batch, with the counts that divide them (`trrg.Loss`); they
can be added over batches and processes. Gradients need the counts of the whole step before the first backward pass, so
each `Batch` carries its own counts.
"""

import hashlib
from functools import partial
from operator import add
from typing import NamedTuple

import torch

import trrg
from data.files import UserError
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert
from model.checkpoint import digest
from model.mistral import Mistral
from model.swin import Swin
from training.clue_bank import clue_bank
from training.options import stage2_config
from training.processes import Share, gather
from training.sharding import shard
from training.state import weights_digest


class Batch(NamedTuple):
    """One process's share of a batch, tokenized and on the device."""

    share: Share
    inputs: tuple                    # tensors for the stage's `step`
    counts: dict                     # {field of the stage's loss that is a divisor: its count in this share}
    cut: int                         # reports that were cut to --report-tokens


class Stage1:
    """Alignment of both encoders by Eq. (1), with the negatives of all processes."""

    number, name, checkpoint = 1, "stage1", "stage1.safetensors"

    def __init__(self, args, processes, prepared):
        self.args, self.device, self.prepared = args, processes.device, prepared
        wordpiece = WordPiece.from_pretrained(args.weights / "bert")
        swin, bert = Swin.from_pretrained(args.weights / "swin"), Bert.from_pretrained(args.weights / "bert")
        check_vocabulary(args.weights / "bert", "vocab.txt", wordpiece, bert)
        swin.checkpoint = args.checkpointing

        config = trrg.AlignmentConfig(d=swin.config.width, same_sentence_positives=args.same_sentence_positives,
                                      prompts_per_disease=args.prompts_per_disease)
        self.model = trrg.Alignment(swin=swin, bert=bert, wordpiece=wordpiece, config=config,
                                    pictures=pictures(prepared, swin))
        # Weights come in the number type of their file; all of stage 1 trains, so all is kept in fp32
        self.model.to(processes.device).float()

    @staticmethod
    def foundations(args):
        """{name: digest} of the files that the stage is built on; a resumed run must find the same files."""
        return {"the base weights": weights_digest(args.weights / "swin", args.weights / "bert")}

    @staticmethod
    def view_counts(studies):
        """Each visit shows one view, so all visits fit into one batch."""
        return [1] * len(studies)

    def read(self, share, visits):
        """Collated visits → `Batch` with images (B, 3, H, W); ids and mask (T, tokens) of the T distinct sentences; for
        the S sentences drawn per study rows (S, B), the index of each among the distinct ones, and keys (S, B), the
        `text_key` of each.
        """
        draws = list(zip(*visits["texts"]))                                                # S of B sentences
        distinct = list(dict.fromkeys(text for draw in draws for text in draw))            # short sentences repeat
        ids, mask = trrg.encode_words(self.model.wordpiece, distinct, self.model.config.sentence_tokens)
        rows = torch.tensor([[distinct.index(text) for text in draw] for draw in draws])
        keys = torch.tensor([[text_key(text) for text in draw] for draw in draws])

        images = visits["images"].to(self.device, non_blocking=True)[:, 0]
        inputs = images, *(x.to(self.device) for x in (ids, mask, rows, keys))
        return Batch(share, inputs, counts={"pairs": len(images) * share.weight}, cut=0)

    def step(self, model, batch):
        """Eq. (1) over the pairs of all processes → this process's part of the sum."""
        images, ids, mask, rows, keys = batch.inputs
        v, t, tau = model(images, ids, mask)
        # In fp32, since gradients are summed over processes. Not t[rows], whose gradient is summed in random order on
        # several threads.
        v, t = gather(v.float(), batch.share.sizes), t.float().index_select(0, rows.flatten())

        losses = []
        for drawn, key in zip(t.split(len(images)), keys):
            key = gather(key[:, None], batch.share.sizes)
            same = key == key.T if self.model.config.same_sentence_positives else None
            losses.append(trrg.contrastive_loss(v, gather(drawn, batch.share.sizes), tau, same))

        # Every process has the mean loss of the whole batch, and multiplies it with the number of its own pairs
        pairs = batch.counts["pairs"]
        return AlignmentLoss(contrastive=torch.stack(losses).mean() * pairs, pairs=pairs)

    def total(self, loss):
        """Eq. (1), the mean over the pairs."""
        return loss.contrastive / loss.pairs

    def figures(self, loss):
        """Further figures for the log, beside the loss."""
        return {"contrastive": self.total(loss), "tau": self.model.tau.item()}

    def save(self, path, header):
        trrg.save_alignment(path, self.model, header)


class AlignmentLoss(NamedTuple):
    """Eq. (1) as a sum over pairs, and the number of pairs; `+` adds both."""

    contrastive: torch.Tensor
    pairs: float

    def __add__(self, more):
        return AlignmentLoss(*map(add, self, more))


def text_key(text):
    """63 bits of a text's SHA-256, so that processes can compare sentences: different texts practically never agree."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Stage2:
    """Instruction tuning by Eq. (5), on the frozen encoders of stage 1."""

    number, name, checkpoint = 2, "stage2", "ckpt.safetensors"

    def __init__(self, args, processes, prepared):
        self.args, self.device, self.prepared = args, processes.device, prepared
        alignment = trrg.load(args.stage1, device=processes.device)
        if not isinstance(alignment, trrg.Alignment):
            raise UserError(f"--stage1 {args.stage1}: is a stage-2 checkpoint; give the stage1.safetensors that stage "
                             f"1 wrote")

        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        language_model = Mistral.from_pretrained(args.weights / "mistral", dtype=dtype)
        language_model.checkpoint = args.checkpointing
        tokenizer = SentencePiece.from_pretrained(args.weights / "mistral")
        check_vocabulary(args.weights / "mistral", "tokenizer.model", tokenizer, language_model)
        self.base = {"folder": str(args.weights / "mistral"), "digest": digest(language_model)}

        self.model = trrg.from_alignment(
            alignment, language_model, tokenizer, stage2_config(args),
            prompts=clue_bank(args, prepared, processes.device), pictures=pictures(prepared, alignment.swin),
            decoding={"beams": 3, "max_new_tokens": args.max_new_tokens, "repetition_penalty": args.repetition_penalty})
        self.model.swin.to(dtype)
        self.model.image_projection.to(dtype)
        if args.shard:
            shard(language_model, processes)
        self.model.to(processes.device)

    @staticmethod
    def foundations(args):
        """{name: digest}, as for stage 1. Raises UserError if there is no stage-1 checkpoint."""
        if not args.stage1.is_file():
            raise UserError(f"{args.stage1}: no such stage-1 checkpoint; run `train.py --stage 1` with the same --run "
                            "first, or give --stage1 FILE")
        return {"the stage-1 checkpoint": weights_digest(args.stage1),
                "the language model": weights_digest(args.weights / "mistral")}

    @staticmethod
    def view_counts(studies):
        return [len(study["views"]) for study in studies]

    def read(self, share, visits):
        """Collated visits → `Batch` with images (B, V, 3, H, W), report ids and labels (B, T)."""
        ids, labels, cut = self.model.supervise(visits["texts"], self.args.report_tokens)
        counts = {"tokens": int((labels != -100).sum()) * share.weight, "studies": len(ids) * share.weight}

        images = visits["images"].to(self.device, non_blocking=True)
        return Batch(share, (images, ids.to(self.device), labels.to(self.device)), counts, int(cut * share.weight))

    def step(self, model, batch):
        """Both terms of Eq. (5), summed over this process's share."""
        loss = model(*batch.inputs, gather=partial(gather, sizes=batch.share.sizes))
        return trrg.Loss(*(value * batch.share.weight for value in loss))

    def total(self, loss):
        """Eq. (5): L_CE as the mean over report tokens, L_DC as the mean over studies."""
        return self.model.total(loss)

    def figures(self, loss):
        return {"ce": loss.ce / loss.tokens, "dc": loss.dc / loss.studies}

    def save(self, path, header):
        trrg.save(path, self.model, dict(header, base=self.base), embed_base=self.args.embed_base)


def pictures(prepared, swin):
    """Picture sizes in pixels, stored in the checkpoint so that evaluation opens pictures as training did."""
    return {"size": prepared.size, "crop": swin.config.image_size}


def check_vocabulary(folder, file, tokenizer, model):
    """Raises UserError if a tokenizer has more tokens than the model has embeddings."""
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"{folder / file}: has {len(tokenizer):,} tokens, but vocab_size in {folder / 'config.json'} "
                        f"is {model.config.vocab_size:,}; take both files from the same model")


def tokenized(stage, share, visits):
    """`stage.read`, with a UserError that names the study whose text cannot be tokenized."""
    try:
        return stage.read(share, visits)
    except ValueError:
        for i, study in enumerate(visits["ids"]):
            try:
                stage.read(share, {name: values[i:i + 1] for name, values in visits.items()})
            except ValueError as error:
                raise UserError(f"{stage.prepared.folder}: the text of study {study!r} cannot be tokenized "
                                f"({error}); correct it in studies.jsonl") from error
        raise
