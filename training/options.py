"""The options of train.py, as one table: it feeds the parser, the model's configuration, and what a run that goes on
must be given again. What the run asked for does not read is refused, not ignored.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch

import trrg
from data.command import Parser, at_least
from data.files import UserError
from model.lora import LINEAR, TARGETS
from model.trained import configuration

# ---------------------------------------------------------------------------------------------------------------------
# What a preset fixes; a pair is (stage 1, stage 2). The paper gives batch 8, lr 1e-4, 5 epochs on MIMIC-CXR, 20 on IU
# X-Ray, on 4 GPUs (§3.2); it is silent on everything else.

PAPER = dict(batch_size=(8, 8), lr=(1e-4, 1e-4), optimizer=("adamw", "adamw"), sentences=1,
             same_sentence_positives=False, queries=32, lora_rank=16, lora_alpha=16, lora_dropout=0.1,
             lora_targets=list(TARGETS), repetition_penalty=1.0, cache_features=False, validate_every=(1, 1),
             embed_base=False, save_every=500, workers=4, threads=0)
PRESETS = {
    "demo": dict(PAPER, epochs=(12, 2), batch_size=(32, 8), lr=(2e-3, 1.3e-3), optimizer=("muon", "muon"), sentences=4,
                 same_sentence_positives=True, queries=16, lora_rank=32, lora_alpha=32, lora_dropout=0.0,
                 lora_targets=list(LINEAR), report_tokens=120, max_new_tokens=120, repetition_penalty=1.2,
                 cache_features=True, validate_every=(6, 1), embed_base=True, save_every=100, workers=0, threads=1),
    "iu_xray": dict(PAPER, epochs=(20, 20), report_tokens=160, max_new_tokens=100),
    "mimic_cxr": dict(PAPER, epochs=(5, 5), report_tokens=256, max_new_tokens=150),
}


# ---------------------------------------------------------------------------------------------------------------------
# Who reads an option. `--stage`, `--variant`, `--lora-rank` and `--select` decide; a dry run is of the same command.

class Reader(NamedTuple):
    who: str
    reads: Callable                  # settings → whether it is there to read the option


EVERY = Reader("every run", lambda args: True)
STAGE_1 = Reader("stage 1", lambda args: args.stage != 2)
STAGE_2 = Reader("stage 2", lambda args: args.stage != 1)
ALONE_2 = Reader("a run of --stage 2 alone", lambda args: args.stage == 2)
CLUES = Reader("stage 2 of a variant with clues", lambda args: args.stage != 1 and args.variant != "base")
PROMPTS = Reader("stage 1, or stage 2 of a variant with clues and --clue-bank prompts,",
                 lambda args: args.stage != 2 or args.variant != "base" and args.clue_bank == "prompts")
SENTENCES = Reader("stage 2 with --clue-bank sentences",
                   lambda args: CLUES.reads(args) and args.clue_bank == "sentences")
WORDS = Reader("stage 2 with --clue-form words or both", lambda args: CLUES.reads(args) and args.clue_form != "tokens")
QUERIES = Reader("stage 2 of the variants cmci and trrg",
                 lambda args: args.stage != 1 and args.variant in ("cmci", "trrg"))
CONSISTENCY = Reader("stage 2 of the variant trrg", lambda args: args.stage != 1 and args.variant == "trrg")
ADAPTERS = Reader("stage 2 with a --lora-rank above 0", lambda args: args.stage != 1 and args.lora_rank > 0)
SCORES = Reader("stage 2 with --select BLEU-4 or CIDEr", lambda args: args.stage != 1 and args.select != "loss")
GPU = Reader("a GPU", lambda args: torch.cuda.is_available())


# ---------------------------------------------------------------------------------------------------------------------
# The table

class Option(NamedTuple):
    """A row. Where a preset has a value for it, this is the default.

    `same`: a run that goes on must be given it again, since the weights or the checkpoint depend on it; a state from
    before the option existed had its default. "later": the option existed before states held it (how reports are
    decoded, what a checkpoint holds), so a state without it goes on with whatever is given.
    """

    name: str                        # as in the settings; on the command line with dashes for underscores
    reader: Reader
    kind: dict                       # what argparse makes of it
    default: Any
    help: str
    same: bool | str = False


SWITCH, COUNT, NATURAL = dict(action=argparse.BooleanOptionalAction), dict(type=at_least(int, 1)), \
    dict(type=at_least(int, 0))
NUMBER, FOLDER, FLAG = dict(type=at_least(float, 0)), dict(type=Path), dict(action="store_true")
OPTIMIZERS, FIGURES = ("adamw", "muon"), ("loss", "BLEU-4", "CIDEr")

TABLE = {
    "what to run": (
        Option("preset", EVERY, dict(metavar="|".join(PRESETS)), "demo", "settings to start from"),
        Option("variant", STAGE_2, dict(choices=trrg.VARIANTS), "trrg",
               "rung of Table 2, or steered: ours, clues in words", same=True),
        Option("stage", EVERY, dict(type=int, choices=(1, 2)), None, "one stage alone (default: both)"),
        Option("data", EVERY, FOLDER, Path("datasets"), "prepared data set"),
        Option("weights", EVERY, FOLDER, Path("weights"),
               "folder with swin/, bert/, mistral/ in Hugging Face's layout"),
        Option("run", EVERY, FOLDER, Path("runs"), "where results go; torchrun mistakes --run for an option of its "
               "own: there, say --run-dir"),
        Option("stage1", ALONE_2, FOLDER, None, "stage-1 checkpoint to start from (default: RUN/stage1.safetensors)"),
        Option("fresh", EVERY, FLAG, False, "start over, whatever the run's folder holds"),
        Option("dry_run", EVERY, FLAG, False, "print parts, shapes, memory and FLOPs of a step, and stop"),
        Option("seed", EVERY, NATURAL, 0, "of everything that is drawn", same=True)),
    "the method": (
        Option("k", CLUES, dict(type=int, choices=range(1, 15), metavar="K"), 3, "injected clues", same=True),
        Option("queries", QUERIES, COUNT, None, "L, learnable queries", same=True),
        Option("views", STAGE_2, dict(choices=("concat", "mean")), "concat",
               "how the views of a study become one sequence", same=True),
        Option("prompts_per_disease", PROMPTS, NATURAL, 0,
               "1 is the paper's form, 0 the whole bank; stage 1 keeps it for its evaluation", same="later"),
        Option("clue_threshold", CLUES, NUMBER, 0.0, "mask lighter clues out; 0 masks none", same=True),
        Option("clue_bank", CLUES, dict(choices=("prompts", "sentences")), "prompts", "hand-written prompts (the "
               "paper) or the sentences in which the training reports say it", same=True),
        Option("chexbert", SENTENCES, dict(type=Path, metavar="DIR"), None, "what reads those sentences' "
               "diseases, where they are not the phantom's: folder of chexbert.pth and vocab.txt"),
        Option("clue_form", CLUES, dict(choices=("tokens", "words", "both")), "tokens",
               "what the language model reads of a clue: encoded tokens (the paper), its words, or both", same=True),
        Option("clue_sureness", WORDS, dict(nargs=2, type=at_least(float, 0), metavar=("LIKELY", "CERTAIN")), [],
               'weights from which a clue in words is led by "likely" and "certain", below by "possible"; without them '
               "nothing is said", same=True),
        Option("clue_dropout", CLUES, NUMBER, 0.0, "share of the training studies that are shown no clue", same=True),
        Option("dc_pull", CONSISTENCY, dict(choices=("both", "picture", "contrast")), "both", "what Eq. (4) moves: "
               "both sides (as printed), the picture's alone, or Eq. (1) in its place", same=True),
        Option("dc_weight", CONSISTENCY, NUMBER, 1.0, "weight of L_DC, Eq. (5)", same=True),
        Option("lora_rank", STAGE_2, NATURAL, None, "0: literally frozen", same=True),
        Option("lora_alpha", ADAPTERS, NUMBER, None, "scale of the adapters, times their rank", same=True),
        Option("lora_dropout", ADAPTERS, NUMBER, None, "before the adapters", same=True),
        Option("lora_targets", ADAPTERS, dict(nargs="+", choices=LINEAR, metavar="LAYER"), None,
               f"layers with an adapter, of {', '.join(LINEAR)}", same=True),
        Option("same_sentence_positives", STAGE_1, SWITCH, None, "equal sentences of a batch are positives", same=True),
        Option("sentences", STAGE_1, COUNT, None, "sentences drawn per visit of a study, each with a loss of its own "
               "(1: the paper)", same=True),
        Option("report_tokens", STAGE_2, COUNT, None, "longer reports are cut in training, and counted", same=True),
        Option("max_new_tokens", STAGE_2, COUNT, None, "longest report to write, kept in the checkpoint", same="later"),
        Option("repetition_penalty", STAGE_2, dict(type=at_least(float, 1)), None,
               "the same; 1 is none", same="later")),
    "optimisation": (
        Option("epochs", EVERY, COUNT, None, "times that every study is visited", same=True),
        Option("max_steps", EVERY, COUNT, None, "stop after so many optimiser steps (default: all epochs)", same=True),
        Option("batch_size", EVERY, COUNT, None, "studies per process", same=True),
        Option("accumulate", EVERY, COUNT, 1, "batches per step", same=True),
        Option("lr", EVERY, NUMBER, None, "learning rate after the warm-up", same=True),
        Option("optimizer", EVERY, dict(choices=OPTIMIZERS), None,
               "muon is for small networks that start at random", same=True),
        Option("weight_decay", EVERY, NUMBER, 0.05, "on matrices only", same=True),
        Option("warm_up", EVERY, NUMBER, 0.03, "fraction of the steps", same=True),
        Option("clip", EVERY, dict(type=at_least(float, 1e-9)), 1.0, "longest gradient", same=True),
        Option("cache_features", STAGE_2, SWITCH, False, "encode every picture once, without random crops and jitter, "
               "and keep its tokens in a file in RUN (100 kB per picture at the paper's sizes)", same=True)),
    "which checkpoint is kept (the val split decides, never the test split)": (
        Option("select", STAGE_2, dict(choices=FIGURES), "loss",
               "its figure; the scores are of written reports, protocol coco", same=True),
        Option("validate_every", EVERY, dict(type=at_least(int, 1), metavar="EPOCHS"), None,
               "from one look at the val split to the next", same="later"),
        Option("samples", EVERY, NATURAL, 1, "val studies whose report is shown at every validation of stage 2 beside "
               "its reference, but with --shard; stage 1 shows the AUROC so far; 0: neither"),
        Option("val_reports", SCORES, COUNT, 200, "reports to write for it, of fixed studies", same=True)),
    "the machine": (
        Option("precision", EVERY, dict(choices=("auto", "bf16", "fp32")), "auto", "auto: bf16 on a GPU", same=True),
        Option("checkpointing", EVERY, SWITCH, False, "recompute activations, to save memory"),
        Option("shard", STAGE_2, SWITCH, False, "spread the frozen language model over the processes"),
        Option("deterministic", GPU, SWITCH, True, "the same bits again on a GPU too; a little slower"),
        Option("threads", EVERY, NATURAL, None, "of the CPU, per process; 0: as many as torch takes. To small networks "
               "a second thread gives little, and takes much beside another program"),
        Option("workers", EVERY, NATURAL, None, "processes that load pictures, for each process that trains"),
        Option("save_every", EVERY, COUNT, None, "steps between states"),
        Option("embed_base", STAGE_2, SWITCH, None, "keep the language model in the checkpoint", same="later")),
}
OPTIONS = {option.name: option for group in TABLE.values() for option in group}
PER_STAGE = ("epochs", "batch_size", "lr", "optimizer", "validate_every")    # on the command line one value, or two


def arguments(argv=None, description=__doc__):
    """The command line → settings; those of PER_STAGE are (stage 1, stage 2).

    Raises UserError, also for an option that nothing in this run would read.
    """
    first = Parser(add_help=False)
    first.add_argument("--preset", default="demo")
    first.add_argument("--variant")
    first = first.parse_known_args(argv)[0]
    if first.preset not in PRESETS:
        raise UserError(f"--preset {first.preset}: no such preset; there are {', '.join(PRESETS)}")
    defaults = defaults_of(first.preset, first.variant)

    # With a name for every option there already, argparse sets what is given, and no default
    given = vars(parser(defaults, description).parse_args(argv, argparse.Namespace(**dict.fromkeys(OPTIONS))))
    given = {name: value for name, value in given.items() if value is not None}
    pairs = {name: (given[name][0], given[name][-1]) for name in PER_STAGE if name in given}
    args = argparse.Namespace(**{**defaults, **given, **pairs})

    for name in given:
        if not OPTIONS[name].reader.reads(args):
            raise UserError(f"{flag(name)}: only {OPTIONS[name].reader.who} reads it, and there is none in this run; "
                            "leave it out")
    for name in PER_STAGE:
        if len(given.get(name, ())) > (2 if args.stage is None else 1):
            raise UserError(f"{flag(name)} {' '.join(map(str, given[name]))}: takes one value, or where both stages "
                            "run one for stage 1 and one for stage 2")
    for name, bound, written in (("lora_dropout", 1, "1"), ("clue_dropout", 1, "1"), ("seed", 2**63, "2**63")):
        if getattr(args, name) >= bound:
            raise UserError(f"{flag(name)} {getattr(args, name)}: must be below {written}")
    if args.shard and (args.select != "loss" or args.embed_base):
        raise UserError("--shard: the language model is nowhere whole, so it can't be used with --embed-base or "
                        "--select " + args.select)

    args.lora_targets = [name for name in LINEAR if name in args.lora_targets]
    args.stage1 = args.stage1 or args.run / "stage1.safetensors"
    if args.precision == "auto":
        args.precision = "bf16" if torch.cuda.is_available() else "fp32"
    return args


def defaults_of(preset, variant):
    """{name: value} of a preset; of the variant that is ours, with the choices that it is made of."""
    defaults = {name: PRESETS[preset].get(name, option.default) for name, option in OPTIONS.items()}
    defaults |= {name: defaults[name] / preset for name in ("data", "weights", "run")}
    if variant == "steered":
        defaults |= {name: list(value) if isinstance(value, tuple) else value for name, value in trrg.STEERED.items()}
    return defaults


def parser(defaults, description):
    """The table for argparse; its help names every default."""
    result = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for title, options in TABLE.items():
        group = result.add_argument_group(title)
        for option in options:
            flags = [flag(option.name), *["--run-dir"] * (option.name == "run")]
            several = {"nargs": "+"} if option.name in PER_STAGE else {}
            group.add_argument(*flags, default=defaults[option.name], help=help_of(option, defaults[option.name]),
                               **option.kind, **several)
    return result


def help_of(option, default):
    if default in (None, []) or option.kind is FLAG:
        return option.help
    if option.name in PER_STAGE:
        return (f"{option.help}; two values: one per stage "
                f"(default: {default[0]} for stage 1, {default[1]} for stage 2)")
    return f"{option.help} (default: {', '.join(map(str, default)) if isinstance(default, list) else default})"


def flag(name):
    return "--" + name.replace("_", "-")


# ---------------------------------------------------------------------------------------------------------------------
# What the settings are turned into


def of_stage(args, number):
    """The settings of one stage alone: its own value where `arguments` has one for each."""
    return argparse.Namespace(**{**vars(args), "stage": number,
                                 **{name: getattr(args, name)[number - 1] for name in PER_STAGE}})


def stage2_config(args):
    """The fields of TRRG's configuration that are options, by their names."""
    names = [field.name for field in fields(trrg.TRRGConfig) if field.name in OPTIONS]
    return configuration(trrg.TRRGConfig, {name: getattr(args, name) for name in names})


def same_again(args):
    """{option: value} that a run of one stage must be given again when it goes on."""
    return {flag(option.name): getattr(args, option.name) for option in OPTIONS.values()
            if option.same and option.reader.reads(args)}
