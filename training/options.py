"""The options of train.py, as one table: it feeds the parser, the model's configuration, and what a run that goes on
must be given again. What the run asked for does not read is refused, not ignored.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch

import trrg
from data.command import Parser, at_least, described
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
    "demo": dict(PAPER, epochs=(12, 2), batch_size=(32, 16), lr=(2e-3, 1.8e-3), optimizer=("muon", "muon"), sentences=4,
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


def built(args):
    """The configuration that says what a variant is built of."""
    return trrg.TRRGConfig(variant=args.variant)


EVERY = Reader("every run", lambda args: True)
STAGE_1 = Reader("stage 1", lambda args: args.stage != 2)
STAGE_2 = Reader("stage 2", lambda args: args.stage != 1)
ALONE_2 = Reader("a run of --stage 2 alone", lambda args: args.stage == 2)
CLUES = Reader("stage 2 of a variant with clues", lambda args: args.stage != 1 and built(args).clues)
PROMPTS = Reader("stage 1, or stage 2 of a variant with clues and --clue-bank prompts,",
                 lambda args: args.stage != 2 or built(args).clues and args.clue_bank == "prompts")
SENTENCES = Reader("stage 2 with --clue-bank sentences",
                   lambda args: CLUES.reads(args) and args.clue_bank == "sentences")
WORDS = Reader("stage 2 with --clue-form words or both", lambda args: CLUES.reads(args) and args.clue_form != "tokens")
QUERIES = Reader("stage 2 of the variants cmci and trrg",
                 lambda args: args.stage != 1 and built(args).interaction)
CONSISTENCY = Reader("stage 2 of the variant trrg", lambda args: args.stage != 1 and built(args).consistency)
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


COUNT, NATURAL = dict(type=at_least(int, 1), metavar="N"), dict(type=at_least(int, 0), metavar="N")
NUMBER, FOLDER = dict(type=at_least(float, 0), metavar="X"), dict(type=Path, metavar="DIR")
SWITCH, FLAG = dict(action=argparse.BooleanOptionalAction), dict(action="store_true")
OPTIMIZERS, FIGURES = ("adamw", "muon"), ("loss", "BLEU-4", "CIDEr")

TABLE = {
    "what to run": (
        Option("preset", EVERY, dict(metavar="|".join(PRESETS)), "demo", "settings to start from"),
        Option("variant", STAGE_2, dict(choices=trrg.VARIANTS), "trrg",
               "a row of the paper's Table 2, or steered, which is ours: clues in words", same=True),
        Option("stage", EVERY, dict(type=int, choices=(1, 2)), None, "one stage alone (default: both)"),
        Option("epochs", EVERY, COUNT, None, "times that every study is visited", same=True),
        Option("data", EVERY, FOLDER, Path("datasets"), "prepared data set"),
        Option("weights", EVERY, FOLDER, Path("weights"),
               "folder with swin/, bert/ and mistral/ as published"),
        Option("run", EVERY, FOLDER, Path("runs"), "where results go; beside torchrun, which takes --run for an "
               "option of its own, say --run-dir"),
        Option("dry_run", EVERY, FLAG, False, "print parts, shapes, memory and FLOPs of a step, and stop"),
        Option("fresh", EVERY, FLAG, False, "start over, whatever the run's folder holds"),
        Option("stage1", ALONE_2, dict(type=Path, metavar="FILE"), None,
               "stage-1 checkpoint to start from (default: RUN/stage1.safetensors)"),
        Option("seed", EVERY, NATURAL, 0, "of everything that is drawn", same=True)),
    "the method": (
        Option("k", CLUES, dict(type=int, choices=range(1, 15), metavar="K"), 3, "clues per study", same=True),
        Option("queries", QUERIES, COUNT, None, "L, the number of learnable queries", same=True),
        Option("views", STAGE_2, dict(choices=("concat", "mean")), "concat",
               "how the views of a study become one sequence", same=True),
        Option("prompts_per_disease", PROMPTS, NATURAL, 0,
               "of the hand-written bank: 1 is the paper's form, 0 takes all; in stage 1 for its evaluation",
               same="later"),
        Option("clue_threshold", CLUES, NUMBER, 0.0, "leave out clues of a lower weight; 0: none", same=True),
        Option("clue_bank", CLUES, dict(choices=("prompts", "sentences")), "prompts", "what clues are taken from: "
               "hand-written prompts (the paper), or sentences of the training reports", same=True),
        Option("chexbert", SENTENCES, dict(type=Path, metavar="DIR"), None, "for --clue-bank sentences of "
               "real reports: CheXbert, which labels them, a folder of chexbert.pth and vocab.txt"),
        Option("clue_form", CLUES, dict(choices=("tokens", "words", "both")), "tokens",
               "what the language model reads of a clue: encoded tokens (the paper), its words, or both", same=True),
        Option("clue_sureness", WORDS, dict(nargs=2, type=at_least(float, 0), metavar=("LIKELY", "CERTAIN")), [],
               'a clue in words begins with "certain" where its weight is at least CERTAIN, with "likely" where it is '
               'at least LIKELY, else with "possible"; without this option, with none of them', same=True),
        Option("clue_dropout", CLUES, NUMBER, 0.0, "share of the training studies that are shown no clue", same=True),
        Option("dc_pull", CONSISTENCY, dict(choices=("both", "picture", "contrast")), "both", "what Eq. (4) moves: "
               "both sides (as printed), the picture's alone, or Eq. (1) in its place", same=True),
        Option("dc_weight", CONSISTENCY, NUMBER, 1.0, "weight of L_DC, Eq. (5)", same=True),
        Option("lora_rank", STAGE_2, NATURAL, None, "rank of the adapters on the language model; 0: none, all frozen",
               same=True),
        Option("lora_alpha", ADAPTERS, NUMBER, None, "the adapters are scaled by alpha / rank", same=True),
        Option("lora_dropout", ADAPTERS, NUMBER, None, "dropout before the adapters", same=True),
        Option("lora_targets", ADAPTERS, dict(nargs="+", choices=LINEAR, metavar="LAYER"), None,
               f"layers with an adapter, of {', '.join(LINEAR)}", same=True),
        Option("same_sentence_positives", STAGE_1, SWITCH, None,
               "Eq. (1): equal sentences of a batch are positives too",
               same=True),
        Option("sentences", STAGE_1, COUNT, None,
               "sentences drawn whenever a study is visited, each with a loss of its "
               "own; the paper: 1", same=True),
        Option("report_tokens", STAGE_2, COUNT, None, "longest report to train on; longer ones are cut, and counted",
               same=True),
        Option("max_new_tokens", STAGE_2, COUNT, None, "longest report to write; kept in the checkpoint", same="later"),
        Option("repetition_penalty", STAGE_2, dict(type=at_least(float, 1), metavar="X"), None,
               "on tokens that the report already has, in writing; 1: none; kept in the checkpoint", same="later")),
    "optimisation": (
        Option("max_steps", EVERY, COUNT, None, "stop after so many optimiser steps (default: all epochs)", same=True),
        Option("batch_size", EVERY, COUNT, None, "studies per process", same=True),
        Option("accumulate", EVERY, COUNT, 1, "batches per optimiser step", same=True),
        Option("lr", EVERY, NUMBER, None, "learning rate after the warm-up", same=True),
        Option("optimizer", EVERY, dict(choices=OPTIMIZERS), None,
               "muon is for small networks that start at random", same=True),
        Option("weight_decay", EVERY, NUMBER, 0.05, "on matrices only", same=True),
        Option("warm_up", EVERY, NUMBER, 0.03, "share of the steps in which the learning rate rises", same=True),
        Option("clip", EVERY, dict(type=at_least(float, 1e-9), metavar="X"), 1.0,
               "a longer gradient is scaled down to this norm", same=True),
        Option("cache_features", STAGE_2, SWITCH, False, "encode every picture once, in a file in RUN (100 kB per "
               "picture at the paper's sizes), so without random crops and jitter", same=True)),
    "which checkpoint is kept (the val split decides, never the test split)": (
        Option("select", STAGE_2, dict(choices=FIGURES), "loss",
               "the figure that decides: the loss, or a score of written reports (protocol coco)", same=True),
        Option("validate_every", EVERY, dict(type=at_least(int, 1), metavar="EPOCHS"), None,
               "from one validation to the next", same="later"),
        Option("samples", EVERY, NATURAL, 1, "val studies whose report every validation of stage 2 shows beside its "
               "reference (not with --shard); in stage 1, above 0 shows the AUROC so far"),
        Option("val_reports", SCORES, COUNT, 200, "reports to write for that score, always of the same studies",
               same=True)),
    "the machine": (
        Option("precision", EVERY, dict(choices=("auto", "bf16", "fp32")), "auto", "auto: bf16 on a GPU", same=True),
        Option("checkpointing", EVERY, SWITCH, False, "compute activations again in the backward pass, to save memory"),
        Option("shard", STAGE_2, SWITCH, False, "spread the frozen language model over the processes"),
        Option("deterministic", GPU, SWITCH, True, "the same bits in every run on a GPU too; a little slower"),
        Option("threads", EVERY, NATURAL, None, "CPU threads per process; 0: as many as PyTorch takes. Small networks "
               "gain little from a second one"),
        Option("workers", EVERY, NATURAL, None, "processes that load pictures, per training process"),
        Option("save_every", EVERY, COUNT, None, "steps from one saved state to the next"),
        Option("embed_base", STAGE_2, SWITCH, None, "keep the language model's base weights in the checkpoint",
               same="later")),
}
OPTIONS = {option.name: option for group in TABLE.values() for option in group}
PER_STAGE = ("epochs", "batch_size", "lr", "optimizer", "validate_every")    # on the command line one value, or two


def arguments(argv=None, description=__doc__):
    """The command line → settings; those of PER_STAGE are (stage 1, stage 2).

    Raises UserError, also for an option that nothing in this run would read.
    """
    # The defaults, which follow from these two
    preset_parser = Parser(add_help=False)
    preset_parser.add_argument("--preset", default="demo")
    preset_parser.add_argument("--variant")
    chosen = preset_parser.parse_known_args(argv)[0]
    if chosen.preset not in PRESETS:
        raise UserError(f"--preset {chosen.preset}: no such preset; there are {', '.join(PRESETS)}")
    defaults = defaults_of(chosen.preset, chosen.variant)

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
    result = Parser(usage="python train.py [--preset NAME] [--variant NAME] [--run DIR] [option ...]",
                    add_help=False, **described(description))
    for title, options in TABLE.items():
        group = result.add_argument_group(title)
        for option in options:
            flags = [flag(option.name), *["--run-dir"] * (option.name == "run")]
            several = {"nargs": "+"} if option.name in PER_STAGE else {}
            group.add_argument(*flags, default=defaults[option.name], help=help_of(option, defaults[option.name]),
                               **option.kind, **several)
    group.add_argument("-h", "--help", action="help", help="this text")
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
