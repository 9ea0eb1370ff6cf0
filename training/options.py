"""The options of train.py, as one table. The parser, the model's configuration and the check that a resumed run has the
same settings are all made from this table. An option that has no effect in a run is refused, not ignored.
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
# The defaults of each preset; a pair is (stage 1, stage 2). The paper gives batch 8, lr 1e-4, 5 epochs on MIMIC-CXR, 20
# on IU X-Ray, on 4 GPUs (§3.2); it is silent on everything else.

PAPER = dict(batch_size=(8, 8), lr=(1e-4, 1e-4), optimizer=("adamw", "adamw"), sentences=1,
             same_sentence_positives=False, queries=32, lora_rank=16, lora_alpha=16, lora_dropout=0.1,
             lora_targets=list(TARGETS), repetition_penalty=1.0, cache_features=False, validate_every=(1, 1),
             embed_base=False, save_every=500, workers=4, threads=0)
PRESETS = {
    "demo": dict(PAPER, epochs=(13, 2), batch_size=(32, 16), lr=(2e-3, 1.8e-3), optimizer=("muon", "muon"), sentences=4,
                 same_sentence_positives=True, queries=16, lora_rank=32, lora_alpha=32, lora_dropout=0.0,
                 lora_targets=list(LINEAR), report_tokens=120, max_new_tokens=120, repetition_penalty=1.2,
                 cache_features=True, validate_every=(7, 1), embed_base=True, save_every=100, workers=0, threads=1),
    "iu_xray": dict(PAPER, epochs=(20, 20), report_tokens=160, max_new_tokens=100),
    "mimic_cxr": dict(PAPER, epochs=(5, 5), report_tokens=256, max_new_tokens=150),
}


# ---------------------------------------------------------------------------------------------------------------------
# Which part of a run reads an option. `--stage`, `--variant`, `--lora-rank`, `--select` and the other options that the
# readers name decide whether a run has that part; a dry run counts as the run itself.

class Reader(NamedTuple):
    who: str
    reads: Callable                  # settings → whether this run has the reader


def built(args):
    """The configuration that tells which parts a variant has."""
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
    """A row of the table. A preset's value for the option takes the place of `default`.

    `same` True: a resumed run needs the same value, since the weights or the checkpoint depend on it; a state that does
    not record the option was made before the option existed, with what is now the default. "later": the option is older
    than its record in states, so a state that does not record it is resumed with any value.
    """

    name: str                        # as in the settings; on the command line with dashes for underscores
    reader: Reader
    kind: dict                       # arguments for argparse's add_argument
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
               "which parts the model has: a row of the paper's Table 2 (base to trrg), or steered, our own variant, "
               "whose clues are plain words", same=True),
        Option("stage", EVERY, dict(type=int, choices=(1, 2)), None, "run only this stage (default: both)"),
        Option("epochs", EVERY, COUNT, None, "passes over the training studies", same=True),
        Option("data", EVERY, FOLDER, Path("datasets"), "folder of the prepared data set"),
        Option("weights", EVERY, FOLDER, Path("weights"),
               "folder of the base weights: swin/, bert/ and mistral/, each as published"),
        Option("run", EVERY, FOLDER, Path("runs"), "folder for checkpoints, states and the log; with torchrun write "
               "--run-dir, since torchrun takes --run for an option of its own"),
        Option("dry_run", EVERY, FLAG, False, "train nothing; print the model's parts and shapes, and the memory and "
               "FLOPs of a step"),
        Option("fresh", EVERY, FLAG, False, "start over: delete the states and checkpoints of the stages to run"),
        Option("stage1", ALONE_2, dict(type=Path, metavar="FILE"), None,
               "stage-1 checkpoint to start from (default: RUN/stage1.safetensors)"),
        Option("seed", EVERY, NATURAL, 0, "seed of all random numbers", same=True)),
    "the method": (
        Option("k", CLUES, dict(type=int, choices=range(1, 15), metavar="K"), 3, "number of clues per study",
               same=True),
        Option("queries", QUERIES, COUNT, None, "number L of learnable queries", same=True),
        Option("views", STAGE_2, dict(choices=("concat", "mean")), "concat",
               "how the views of a study become one sequence: one after the other (concat), or their mean", same=True),
        Option("prompts_per_disease", PROMPTS, NATURAL, 0,
               "how many hand-written prompts each disease has: 1 is the paper's form, 0 takes all; stage 1 uses them "
               "in its evaluation",
               same="later"),
        Option("clue_threshold", CLUES, NUMBER, 0.0, "leave out clues whose weight is lower than X; 0 keeps all",
               same=True),
        Option("clue_bank", CLUES, dict(choices=("prompts", "sentences")), "prompts", "texts that serve as clues: "
               "hand-written prompts (the paper), or sentences of the training reports", same=True),
        Option("chexbert", SENTENCES, dict(type=Path, metavar="DIR"), None, "folder of CheXbert (chexbert.pth "
               "and vocab.txt), which --clue-bank sentences needs to label the sentences of real reports"),
        Option("clue_form", CLUES, dict(choices=("tokens", "words", "both")), "tokens",
               "how the language model reads a clue: as encoded tokens (the paper), as plain words, or both",
               same=True),
        Option("clue_sureness", WORDS, dict(nargs=2, type=at_least(float, 0), metavar=("LIKELY", "CERTAIN")), [],
               'begin a clue in words with "certain" if its weight is at least CERTAIN, with "likely" if the '
               'weight is at least LIKELY, else with "possible"; without this option no such word is added', same=True),
        Option("clue_dropout", CLUES, NUMBER, 0.0, "share of training examples that are shown without clues",
               same=True),
        Option("dc_pull", CONSISTENCY, dict(choices=("both", "picture", "contrast")), "both", "which side of Eq. (4) "
               "gets a gradient: both (as in the paper) or only the picture's; contrast: Eq. (1) instead of Eq. (4)",
               same=True),
        Option("dc_weight", CONSISTENCY, NUMBER, 1.0, "weight of the loss L_DC in Eq. (5)", same=True),
        Option("lora_rank", STAGE_2, NATURAL, None, "rank of the language model's LoRA adapters; 0: no adapters, "
               "the whole language model is frozen", same=True),
        Option("lora_alpha", ADAPTERS, NUMBER, None, "scale of the LoRA adapters, as alpha / rank", same=True),
        Option("lora_dropout", ADAPTERS, NUMBER, None, "dropout before the LoRA adapters", same=True),
        Option("lora_targets", ADAPTERS, dict(nargs="+", choices=LINEAR, metavar="LAYER"), None,
               f"layers with a LoRA adapter; choose from {', '.join(LINEAR)}", same=True),
        Option("same_sentence_positives", STAGE_1, SWITCH, None,
               "Eq. (1): equal sentences in a batch count as positives, not as negatives", same=True),
        Option("sentences", STAGE_1, COUNT, None,
               "sentences drawn per study and epoch, each with its own loss term; the paper draws 1", same=True),
        Option("report_tokens", STAGE_2, COUNT, None, "largest number of tokens in a training report; longer reports "
               "are cut, and counted in the log", same=True),
        Option("max_new_tokens", STAGE_2, COUNT, None, "largest number of tokens in a generated report; stored in the "
               "checkpoint", same="later"),
        Option("repetition_penalty", STAGE_2, dict(type=at_least(float, 1), metavar="X"), None,
               "penalty on repeating a token when a report is generated; 1: no penalty; stored in the checkpoint",
               same="later")),
    "optimisation": (
        Option("max_steps", EVERY, COUNT, None, "stop after N optimiser steps (default: all epochs)", same=True),
        Option("batch_size", EVERY, COUNT, None, "studies per process", same=True),
        Option("accumulate", EVERY, COUNT, 1, "batches whose gradients are summed per optimiser step", same=True),
        Option("lr", EVERY, NUMBER, None, "peak learning rate, reached after the warm-up", same=True),
        Option("optimizer", EVERY, dict(choices=OPTIMIZERS), None,
               "optimiser; muon suits small networks with random weights, such as the demo's", same=True),
        Option("weight_decay", EVERY, NUMBER, 0.05, "weight decay, on matrices only", same=True),
        Option("warm_up", EVERY, NUMBER, 0.03, "share of the steps in which the learning rate warms up", same=True),
        Option("clip", EVERY, dict(type=at_least(float, 1e-9), metavar="X"), 1.0,
               "largest gradient norm; larger gradients are scaled down to it", same=True),
        Option("cache_features", STAGE_2, SWITCH, False, "encode every picture once and keep the features in a file "
               "in the run's folder (100 kB per picture at the paper's sizes); turns off random crops and jitter",
               same=True)),
    "which checkpoint is kept (the val split decides, never the test split)": (
        Option("select", STAGE_2, dict(choices=FIGURES), "loss",
               "figure on the val split that decides: the loss, or a score of generated reports (protocol coco)",
               same=True),
        Option("validate_every", EVERY, dict(type=at_least(int, 1), metavar="EPOCHS"), None,
               "epochs from one validation to the next", same="later"),
        Option("samples", EVERY, NATURAL, 1, "number of val studies whose generated report each validation of stage 2 "
               "prints beside the reference (not with --shard); in stage 1 any N above 0 prints the AUROC"),
        Option("val_reports", SCORES, COUNT, 200, "number of val studies whose reports are generated for the score of "
               "--select; always the same studies", same=True)),
    "the machine": (
        Option("precision", EVERY, dict(choices=("auto", "bf16", "fp32")), "auto",
               "number format of the computation; auto: bf16 on a GPU, fp32 on a CPU", same=True),
        Option("checkpointing", EVERY, SWITCH, False, "save memory: compute activations again in the backward pass "
               "(gradient checkpointing)"),
        Option("shard", STAGE_2, SWITCH, False, "save memory: split the frozen language model over the "
               "processes (FSDP)"),
        Option("deterministic", GPU, SWITCH, True, "exactly reproducible runs on a GPU, a little slower"),
        Option("threads", EVERY, NATURAL, None, "CPU threads per process; 0 leaves the number to PyTorch. Small "
               "networks gain little from a second thread"),
        Option("workers", EVERY, NATURAL, None, "loader processes per training process; 0: no separate ones"),
        Option("save_every", EVERY, COUNT, None, "steps between two saved states"),
        Option("embed_base", STAGE_2, SWITCH, None, "store the language model's base weights in the checkpoint, too",
               same="later")),
}
OPTIONS = {option.name: option for group in TABLE.values() for option in group}
PER_STAGE = ("epochs", "batch_size", "lr", "optimizer", "validate_every")    # one or two values on the command line


def arguments(argv=None, description=__doc__):
    """The command line → settings; the settings in PER_STAGE are pairs (stage 1, stage 2).

    Raises UserError, also for an option that has no effect in this run.
    """
    # The preset and the variant determine the defaults
    preset_parser = Parser(add_help=False)
    preset_parser.add_argument("--preset", default="demo")
    preset_parser.add_argument("--variant")
    chosen = preset_parser.parse_known_args(argv)[0]
    if chosen.preset not in PRESETS:
        raise UserError(f"--preset {chosen.preset}: no such preset; there are {', '.join(PRESETS)}")
    defaults = defaults_of(chosen.preset, chosen.variant)

    # argparse sets no default where the namespace has the name already, so what is not None was given
    given = vars(parser(defaults, description).parse_args(argv, argparse.Namespace(**dict.fromkeys(OPTIONS))))
    given = {name: value for name, value in given.items() if value is not None}
    pairs = {name: (given[name][0], given[name][-1]) for name in PER_STAGE if name in given}
    args = argparse.Namespace(**{**defaults, **given, **pairs})

    for name in given:
        if not OPTIONS[name].reader.reads(args):
            raise UserError(f"{flag(name)}: has no effect in this run: only {OPTIONS[name].reader.who} reads this "
                            "option; leave it out")
    for name in PER_STAGE:
        if len(given.get(name, ())) > (2 if args.stage is None else 1):
            raise UserError(f"{flag(name)} {' '.join(map(str, given[name]))}: takes one value, or, if both stages "
                            "run, two: one for stage 1 and one for stage 2")
    for name, bound, written in (("lora_dropout", 1, "1"), ("clue_dropout", 1, "1"), ("seed", 2**63, "2**63")):
        if getattr(args, name) >= bound:
            raise UserError(f"{flag(name)} {getattr(args, name)}: too large; give a value below {written}")
    if args.shard and (args.select != "loss" or args.embed_base):
        raise UserError("--shard: no process holds the whole language model, so --embed-base and "
                        "--select BLEU-4 or CIDEr are not possible; leave one of them out")

    args.lora_targets = [name for name in LINEAR if name in args.lora_targets]
    args.stage1 = args.stage1 or args.run / "stage1.safetensors"
    if args.precision == "auto":
        args.precision = "bf16" if torch.cuda.is_available() else "fp32"
    return args


def defaults_of(preset, variant):
    """{option: default} of a preset; for our own variant "steered" with the choices that define the variant."""
    defaults = {name: PRESETS[preset].get(name, option.default) for name, option in OPTIONS.items()}
    defaults |= {name: defaults[name] / preset for name in ("data", "weights", "run")}
    if variant == "steered":
        defaults |= {name: list(value) if isinstance(value, tuple) else value for name, value in trrg.STEERED.items()}
    return defaults


def parser(defaults, description):
    """The table as an argparse parser, whose help names every default."""
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
# Settings for the parts of the program


def of_stage(args, number):
    """The settings of one stage alone: of a pair in PER_STAGE, the value of this stage."""
    return argparse.Namespace(**{**vars(args), "stage": number,
                                 **{name: getattr(args, name)[number - 1] for name in PER_STAGE}})


def stage2_config(args):
    """TRRG's configuration; options set the fields that have their names."""
    names = [field.name for field in fields(trrg.TRRGConfig) if field.name in OPTIONS]
    return configuration(trrg.TRRGConfig, {name: getattr(args, name) for name in names})


def same_again(args):
    """{option: value} of the settings that must be the same when a run of one stage is resumed."""
    return {flag(option.name): getattr(args, option.name) for option in OPTIONS.values()
            if option.same and option.reader.reads(args)}
