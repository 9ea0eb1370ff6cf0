"""The two stages: what each builds, how it reads a batch, and the loss of one. The loop of train.py knows no more.

`read` turns a batch into tensors, `step` gives its loss, `total` what is minimised, `figures` what the log tells beside
it, `save` writes the checkpoint; `foundations` are the files that a stage is built on.

A loss is sums over one process's share of a batch, with the numbers to divide them by (`trrg.Loss`). They add up over
batches and processes; gradients need the numbers of the whole step beforehand, so a `Batch` knows its own.
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
    inputs: tuple                    # tensors, as the stage's own `step` unpacks them
    counts: dict                     # {a field of the stage's loss that divides: how much of it this share holds}
    cut: int                         # reports that were too long


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
        # Weights are read in the type of their file; what trains is kept in fp32
        self.model.to(processes.device).float()

    @staticmethod
    def foundations(args):
        """What the stage is built on, which must stay as it was when a run goes on: {what: digest}."""
        return {"the base weights": weights_digest(args.weights / "swin", args.weights / "bert")}

    @staticmethod
    def view_counts(studies):
        """Each visit shows one view, so all visits fit into one batch."""
        return [1] * len(studies)

    def read(self, share, visits):
        """Collated visits → `Batch`: images (B, 3, H, W), ids and mask of the distinct sentences, and rows and keys.

        S sentences are drawn per study: rows (S, B) tell where each stands among the distinct ones, keys (S, B) are
        `text_key`'s.
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
        """Eq. (1) over the pairs of all processes → this process's part of it."""
        images, ids, mask, rows, keys = batch.inputs
        v, t, tau = model(images, ids, mask)
        # In fp32, for gradients are summed over processes. Not t[rows]: on several threads the gradients of an index
        # are added in any order.
        v, t = gather(v.float(), batch.share.sizes), t.float().index_select(0, rows.flatten())

        losses = []
        for drawn, key in zip(t.split(len(images)), keys):
            key = gather(key[:, None], batch.share.sizes)
            same = key == key.T if self.model.config.same_sentence_positives else None
            losses.append(trrg.contrastive_loss(v, gather(drawn, batch.share.sizes), tau, same))

        # Every process has the loss of the whole batch, and counts it for its own pairs
        pairs = batch.counts["pairs"]
        return AlignmentLoss(contrastive=torch.stack(losses).mean() * pairs, pairs=pairs)

    def total(self, loss):
        """Eq. (1), the mean over the pairs."""
        return loss.contrastive / loss.pairs

    def figures(self, loss):
        """What the log tells beside the loss."""
        return {"contrastive": self.total(loss), "tau": self.model.tau.item()}

    def save(self, path, header):
        trrg.save_alignment(path, self.model, header)


class AlignmentLoss(NamedTuple):
    """Eq. (1) as a sum over pairs, and how many they are; adds up with +."""

    contrastive: torch.Tensor
    pairs: float

    def __add__(self, more):
        return AlignmentLoss(*map(add, self, more))


def text_key(text):
    """63 bits of a text's SHA-256: equal texts, and practically only these, have equal keys on every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Stage2:
    """Instruction tuning by Eq. (5), on the frozen encoders of stage 1."""

    number, name, checkpoint = 2, "stage2", "ckpt.safetensors"

    def __init__(self, args, processes, prepared):
        self.args, self.device, self.prepared = args, processes.device, prepared
        alignment = trrg.load(args.stage1, device=processes.device)
        if not isinstance(alignment, trrg.Alignment):
            raise UserError(f"{args.stage1}: a stage-2 checkpoint; --stage1 wants the file that stage 1 wrote")

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
        """{what: digest}. Raises UserError where there is no stage 1 yet."""
        if not args.stage1.is_file():
            raise UserError(f"{args.stage1}: no stage-1 checkpoint; run `train.py --stage 1` with the same --run "
                            "first, or give --stage1 FILE")
        return {"the stage-1 checkpoint": weights_digest(args.stage1),
                "the language model": weights_digest(args.weights / "mistral")}

    @staticmethod
    def view_counts(studies):
        return [len(study["views"]) for study in studies]

    def read(self, share, visits):
        """Collated visits → `Batch`: images (B, V, 3, H, W), report ids and labels (B, T)."""
        ids, labels, cut = self.model.supervise(visits["texts"], self.args.report_tokens)
        counts = {"tokens": int((labels != -100).sum()) * share.weight, "studies": len(ids) * share.weight}

        images = visits["images"].to(self.device, non_blocking=True)
        return Batch(share, (images, ids.to(self.device), labels.to(self.device)), counts, int(cut * share.weight))

    def step(self, model, batch):
        """Both terms of Eq. (5), of this process's share."""
        loss = model(*batch.inputs, gather=partial(gather, sizes=batch.share.sizes))
        return trrg.Loss(*(value * batch.share.weight for value in loss))

    def total(self, loss):
        """Eq. (5), its terms the means over report tokens and over studies."""
        return self.model.total(loss)

    def figures(self, loss):
        return {"ce": loss.ce / loss.tokens, "dc": loss.dc / loss.studies}

    def save(self, path, header):
        trrg.save(path, self.model, dict(header, base=self.base), embed_base=self.args.embed_base)


def pictures(prepared, swin):
    """What a checkpoint's reader must know to open pictures as training did."""
    return {"size": prepared.size, "crop": swin.config.image_size}


def check_vocabulary(folder, file, tokenizer, model):
    """Raises UserError where a tokenizer has tokens for which the model has no embedding."""
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"{folder / file}: has {len(tokenizer):,} tokens, but {folder / 'config.json'} has room for "
                        f"{model.config.vocab_size:,}; take both from the same model")


def tokenized(stage, share, visits):
    """`stage.read`, which tokenizes. Raises UserError, naming the study whose text is at fault."""
    try:
        return stage.read(share, visits)
    except ValueError:
        for i, study in enumerate(visits["ids"]):
            try:
                stage.read(share, {name: values[i:i + 1] for name, values in visits.items()})
            except ValueError as error:
                raise UserError(f"{stage.prepared.folder}: the text of the study {study!r} can't be tokenized "
                                f"({error}); mend it in studies.jsonl") from error
        raise
