"""The options of train.py, and the presets they start from."""

import argparse
from pathlib import Path

import torch

import trrg
from data.command import Parser, at_least
from data.files import UserError
from model.lora import LINEAR, TARGETS

# Settings a preset fixes; a pair is (stage 1, stage 2). The paper gives batch 8, lr 1e-4, 5 epochs on MIMIC-CXR, 20 on
# IU X-Ray, on 4 GPUs (§3.2); it is silent on everything else.
PAPER = dict(batch_size=(8, 8), lr=(1e-4, 1e-4), optimizer=("adamw", "adamw"), sentences=1,
             same_sentence_positives=False, queries=32, lora_rank=16, lora_alpha=16, lora_dropout=0.1,
             lora_targets=list(TARGETS), repetition_penalty=1.0, embed_base=False, save_every=500, workers=4)
PRESETS = {
    "demo": dict(PAPER, epochs=(34, 5), batch_size=(16, 8), lr=(1e-3, 1.3e-3), optimizer=("muon", "muon"), sentences=4,
                 same_sentence_positives=True, queries=16, lora_rank=32, lora_alpha=32, lora_targets=list(LINEAR),
                 report_tokens=120, max_new_tokens=120, repetition_penalty=1.2, embed_base=True, save_every=100,
                 workers=0),
    "iu_xray": dict(PAPER, epochs=(20, 20), report_tokens=160, max_new_tokens=100),
    "mimic_cxr": dict(PAPER, epochs=(5, 5), report_tokens=256, max_new_tokens=150),
}


def arguments(argv=None, description=__doc__):
    """The command line → settings; `epochs`, `batch_size`, `lr` and `optimizer` are pairs: one a stage.

    Raises UserError.
    """
    pre = Parser(add_help=False)
    pre.add_argument("--preset", default="demo", metavar="demo|iu_xray|mimic_cxr",
                     help="settings to start from (default: demo)")
    pre.add_argument("--variant", choices=trrg.VARIANTS, default="trrg",
                     help="rung of Table 2, or steered: ours, clues in words (default: trrg)")
    first = pre.parse_known_args(argv)[0]
    preset, variant = first.preset, first.variant
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: no such preset; there are {', '.join(PRESETS)}")
    defaults = PRESETS[preset]

    def pair(name):
        return "{} for stage 1, {} for stage 2".format(*defaults[name])

    def steered(name, paper):
        """The default of a choice that is ours: the paper's form, but for the rung that is made of these choices."""
        return as_option(trrg.STEERED[name]) if variant == "steered" else paper

    parser = Parser(parents=[pre], description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    switch, count = argparse.BooleanOptionalAction, at_least(int, 1)
    run = parser.add_argument_group("what to run")
    run.add_argument("--stage", type=int, choices=(1, 2), help="one stage alone (default: both)")
    run.add_argument("--data", type=Path, default=Path("datasets") / preset,
                     help="prepared data set (default: %(default)s)")
    run.add_argument("--weights", type=Path, default=Path("weights") / preset,
                     help="folder with swin/, bert/, mistral/ in Hugging Face's layout (default: %(default)s)")
    run.add_argument("--run", "--run-dir", type=Path, default=Path("runs") / preset,
                     help="where results go; torchrun mistakes --run for an option of its own: there, say --run-dir "
                          "(default: %(default)s)")
    run.add_argument("--stage1", type=Path, help="stage-1 checkpoint for stage 2 (default: RUN/stage1.safetensors)")
    run.add_argument("--fresh", action="store_true", help="start over, whatever the run's folder holds")
    run.add_argument("--dry-run", action="store_true", help="print parts, shapes, memory and FLOPs of a step, and stop")
    run.add_argument("--seed", type=at_least(int, 0), default=0, help="(default: %(default)s)")

    method = parser.add_argument_group("the method")
    method.add_argument("--k", type=int, choices=range(1, 15), metavar="K", default=3,
                        help="injected clues (default: %(default)s)")
    method.add_argument("--queries", type=count, default=defaults["queries"],
                        help="L, learnable queries (default: %(default)s)")
    method.add_argument("--views", choices=("concat", "mean"), default="concat", help="(default: %(default)s)")
    method.add_argument("--prompts-per-disease", type=at_least(int, 0), default=0,
                        help="1 is the paper's form; 0 the whole bank (default: %(default)s)")
    method.add_argument("--clue-threshold", type=at_least(float, 0), default=steered("clue_threshold", 0.0),
                        help="mask lighter clues out (default: %(default)s, none)")
    method.add_argument("--clue-bank", choices=("prompts", "sentences"), default=steered("clue_bank", "prompts"),
                        help="hand-written prompts (the paper), or the sentences in which the training reports say it "
                             "(default: %(default)s)")
    method.add_argument("--chexbert", type=Path, metavar="DIR",
                        help="what reads those sentences' diseases, where they are not the phantom's: folder of "
                             "chexbert.pth and vocab.txt")
    method.add_argument("--clue-form", choices=("tokens", "words", "both"), default=steered("clue_form", "tokens"),
                        help="what the language model reads of a clue: encoded tokens (the paper), its words, or both "
                             "(default: %(default)s)")
    method.add_argument("--clue-sureness", nargs=2, type=at_least(float, 0), metavar=("LIKELY", "CERTAIN"),
                        default=steered("clue_sureness", []),
                        help='weights from which a clue in words is led by "likely" and "certain", below by "possible" '
                             "(default: nothing is said)")
    method.add_argument("--clue-dropout", type=at_least(float, 0), default=steered("clue_dropout", 0.0),
                        help="share of the training studies that are shown no clue (default: %(default)s)")
    method.add_argument("--dc-pull", choices=("both", "picture", "contrast"), default="both",
                        help="what Eq. (4) moves: both sides (as printed), the picture's alone, or Eq. (1) in its place "
                             "(default: %(default)s)")
    method.add_argument("--dc-weight", type=at_least(float, 0), default=1.0,
                        help="weight of L_DC, Eq. (5) (default: %(default)s)")
    method.add_argument("--lora-rank", type=at_least(int, 0), default=defaults["lora_rank"],
                        help="0: literally frozen (default: %(default)s)")
    method.add_argument("--lora-alpha", type=float, default=defaults["lora_alpha"], help="(default: %(default)s)")
    method.add_argument("--lora-dropout", type=at_least(float, 0), default=defaults["lora_dropout"],
                        help="(default: %(default)s)")
    method.add_argument("--lora-targets", nargs="+", choices=LINEAR, metavar="LAYER", default=defaults["lora_targets"],
                        help=f"layers with an adapter, of {', '.join(LINEAR)} "
                             f"(default: {', '.join(defaults['lora_targets'])})")
    method.add_argument("--same-sentence-positives", action=switch, default=defaults["same_sentence_positives"],
                        help="equal sentences of a batch are positives")
    method.add_argument("--sentences", type=at_least(int, 1), default=defaults["sentences"],
                        help="sentences a visit of stage 1, each with a loss of its own "
                             "(1: the paper; default: %(default)s)")
    method.add_argument("--report-tokens", type=count, default=defaults["report_tokens"],
                        help="longer reports are cut in training, and counted (default: %(default)s)")
    method.add_argument("--max-new-tokens", type=count, default=defaults["max_new_tokens"],
                        help="kept for decoding (default: %(default)s)")
    method.add_argument("--repetition-penalty", type=at_least(float, 1), default=defaults["repetition_penalty"],
                        help="the same; 1 is none (default: %(default)s)")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=count, help=f"(default: {pair('epochs')})")
    optim.add_argument("--max-steps", type=count, help="stop after so many optimiser steps (default: all epochs)")
    optim.add_argument("--batch-size", type=count, help=f"per process (default: {pair('batch_size')})")
    optim.add_argument("--accumulate", type=count, default=1, help="batches a step (default: %(default)s)")
    optim.add_argument("--lr", type=at_least(float, 0), help=f"(default: {pair('lr')})")
    optim.add_argument("--optimizer", choices=("adamw", "muon"),
                       help=f"muon is for small networks that start at random (default: {pair('optimizer')})")
    optim.add_argument("--weight-decay", type=at_least(float, 0), default=0.05,
                       help="on matrices only (default: %(default)s)")
    optim.add_argument("--warm-up", type=at_least(float, 0), default=0.03,
                       help="fraction of the steps (default: %(default)s)")
    optim.add_argument("--clip", type=at_least(float, 1e-9), default=1.0, help="gradient norm (default: %(default)s)")

    choice = parser.add_argument_group("which checkpoint is kept (the val split decides, never the test split)")
    choice.add_argument("--select", choices=("loss", "BLEU-4", "CIDEr"), default="loss",
                        help="figure of stage 2; the scores are of generated reports, protocol coco "
                             "(default: %(default)s)")
    choice.add_argument("--val-reports", type=count, default=200,
                        help="reports to generate for it, of fixed studies (default: %(default)s)")

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto",
                         help="auto: bf16 on a GPU (default: %(default)s)")
    machine.add_argument("--checkpointing", action=switch, default=False, help="recompute activations, to save memory")
    machine.add_argument("--shard", action=switch, default=False,
                         help="spread the frozen language model over the processes")
    machine.add_argument("--deterministic", action=switch, default=True,
                         help="the same bits again on a GPU too; a little slower")
    machine.add_argument("--workers", type=at_least(int, 0), default=defaults["workers"],
                         help="loader processes a process (default: %(default)s)")
    machine.add_argument("--save-every", type=count, default=defaults["save_every"],
                         help="steps between states (default: %(default)s)")
    machine.add_argument("--embed-base", action=switch, default=defaults["embed_base"],
                         help="keep the language model in the checkpoint")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "lr", "optimizer"):
        given = getattr(args, name)
        setattr(args, name, defaults[name] if given is None else (given, given))
    args.lora_targets = [name for name in LINEAR if name in args.lora_targets]
    args.stage1 = args.stage1 or args.run / "stage1.safetensors"
    if args.precision == "auto":
        args.precision = "bf16" if torch.cuda.is_available() else "fp32"
    if args.lora_dropout >= 1:
        raise UserError(f"--lora-dropout {args.lora_dropout}: must be below 1")
    if args.shard and (args.select != "loss" or args.embed_base):
        raise UserError("--shard: the language model is nowhere whole, so it can't be used with --embed-base or "
                        "--select " + args.select)
    return args


def of_stage(args, number):
    """The settings with those of one stage alone where `arguments` gives pairs."""
    pairs = {name: value[number - 1] for name, value in vars(args).items() if isinstance(value, tuple)}
    return argparse.Namespace(**{**vars(args), **pairs})


def as_option(value):
    """A configuration's value as the command line has it."""
    return list(value) if isinstance(value, tuple) else value
