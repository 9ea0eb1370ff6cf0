"""The options of train.py: every default is told, what nothing reads is refused, and the presets are the paper's."""

import argparse
import re
from dataclasses import fields

import pytest
import torch

import train
import trrg
from data.files import UserError
from tests.runs import ROOT
from training import options
from training.options import EVERY, OPTIONS, arguments, flag, of_stage, same_again, stage2_config

# Command lines between which every reader is there once and missing once
RUNS = [["--stage", "1"], ["--stage", "2"], ["--variant", "base"], ["--variant", "dci"], ["--variant", "cmci"],
        ["--variant", "trrg"], ["--stage", "2", "--variant", "base"], ["--lora-rank", "0"], ["--select", "CIDEr"],
        ["--variant", "steered"]]


def given(option):
    """The option on a command line, with the first value that it takes."""
    if "action" in option.kind:
        return [flag(option.name)]
    value = "0.5" if option.name in ("lora_dropout", "clue_dropout") else "1"
    value = str(option.kind["choices"][0]) if "choices" in option.kind else value
    return [flag(option.name), *[value] * (2 if option.kind.get("nargs") == 2 else 1)]


@pytest.mark.parametrize("option", [option for option in OPTIONS.values() if option.reader is not EVERY],
                         ids=lambda option: option.name)
def test_an_option_is_accepted_where_it_is_read_and_refused_elsewhere(option, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcomes = set()
    for run in RUNS:
        outcomes.add(there := option.reader.reads(arguments(run)))
        try:
            arguments([*given(option), *run])
            said = ""
        except UserError as error:                  # it may also clash with others: --shard with --embed-base
            said = str(error)
        refused = re.match(f"{flag(option.name)}: has no effect in this run: only .* reads this option", said)
        assert there != bool(refused), run
    assert outcomes == {True, False} or option.name == "deterministic"


def test_deterministic_is_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not arguments(["--no-deterministic"]).deterministic


@pytest.mark.parametrize("argv, message", [
    (["--variant", "base", "--k", "5", "--queries", "64", "--dc-weight", "2"],
     "--k: has no effect in this run: only stage 2 of a variant with clues reads this option"),
    (["--stage", "1", "--lora-rank", "8"], "--lora-rank: has no effect in this run: only stage 2 reads"),
    (["--val-reports", "50"], "--val-reports: has no effect in this run: only stage 2 with --select BLEU-4 or CIDEr"),
    (["--stage1", "x"], "--stage1: has no effect in this run: only a run of --stage 2 alone"),
    (["--stage", "2", "--sentences", "2"], "--sentences: has no effect in this run: only stage 1 reads"),
    (["--stage", "1", "--shard"], "--shard: has no effect in this run: only stage 2")])
def test_what_nothing_reads_is_refused_in_one_line(argv, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        arguments(argv)
    assert "\n" not in str(refused.value)


def test_the_program_reads_every_option():
    program = "".join(path.read_text() for path in [ROOT / "train.py", *(ROOT / "training").glob("*.py")])
    in_config = {field.name for field in fields(trrg.TRRGConfig)}
    assert [name for name in OPTIONS if name not in in_config and not re.search(rf"\bargs\.{name}\b", program)] == []


@pytest.mark.parametrize("preset", options.PRESETS)
def test_help_names_every_option_and_its_default(preset, capsys):
    with pytest.raises(SystemExit):
        arguments(["--help", "--preset", preset], train.__doc__)
    printed = " ".join(capsys.readouterr().out.split())
    assert "torchrun --nproc_per_node 4 train.py" in printed
    args = vars(arguments(["--preset", preset]))
    parser = options.parser({**args, "precision": "auto"}, "")
    told = {action.dest: action.help for action in parser._actions if action.dest != "help"}
    assert told.keys() == args.keys() == OPTIONS.keys()
    for name, text in told.items():
        value = ", ".join(map(str, args[name])) if isinstance(args[name], list) else args[name]
        value = "{} for stage 1, {} for stage 2".format(*value) if name in options.PER_STAGE else value
        value = {"stage": "both", "stage1": "RUN/stage1.safetensors", "max_steps": "all epochs",
                 "precision": "auto"}.get(name, value)
        assert f"(default: {value})" in text or name in ("fresh", "dry_run") or args[name] in (None, []), name
        assert flag(name) in printed and " ".join(text.split()[:3]) in printed


def test_a_new_option_must_say_who_reads_it():
    for option in OPTIONS.values():
        assert isinstance(option.reader, options.Reader) and option.same in (True, False, "later")


@pytest.mark.parametrize("preset, epochs, new_tokens", [("iu_xray", 20, 100), ("mimic_cxr", 5, 150)])
def test_the_presets_are_the_papers(preset, epochs, new_tokens):
    args = arguments(["--preset", preset])
    assert (args.batch_size, args.lr, args.epochs) == ((8, 8), (1e-4, 1e-4), (epochs, epochs))
    assert (args.optimizer, args.weight_decay, args.warm_up, args.clip) == (("adamw", "adamw"), 0.05, 0.03, 1.0)
    assert (args.sentences, args.same_sentence_positives, args.select) == (1, False, "loss")
    assert (args.max_new_tokens, args.repetition_penalty) == (new_tokens, 1)
    # what the presets give is what the model's own configuration says
    assert stage2_config(of_stage(args, 2)) == trrg.TRRGConfig()
    config = trrg.TRRGConfig()
    assert (config.k, config.queries, config.heads, config.dc_weight, config.views) == (3, 32, 8, 1.0, "concat")
    assert (config.clue_threshold, config.prompts_per_disease) == (0.0, 0)
    assert (config.clue_bank, config.clue_form, config.dc_pull) == ("prompts", "tokens", "both")
    assert (config.clue_sureness, config.clue_dropout) == ((), 0.0)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (16, 16, 0.1)
    assert config.lora_targets == ("q_proj", "v_proj")
    aligned = trrg.AlignmentConfig()
    assert (aligned.d, aligned.tau, aligned.sentence_tokens, aligned.same_sentence_positives) == (1024, 0.07, 64, False)


def test_the_rung_that_is_ours_has_its_choices_and_each_can_be_given():
    args = arguments(["--variant", "steered", "--clue-dropout", "0.3"])
    assert (args.clue_form, args.clue_sureness, args.clue_dropout) == ("words", [0.15, 0.4], 0.3)
    preset = options.PRESETS["demo"]
    of_demo = {name: preset[name] for name in ("queries", "lora_rank", "lora_alpha", "lora_dropout")}
    of_demo["lora_targets"] = tuple(preset["lora_targets"])
    ours = {**trrg.STEERED, "clue_dropout": 0.3}
    assert stage2_config(args) == trrg.TRRGConfig(variant="steered", **ours, **of_demo)


def test_one_value_on_the_command_line_is_for_both_stages():
    args, (_, epochs) = arguments(["--lr", "0.5"]), options.PRESETS["demo"]["epochs"]
    assert args.lr == (0.5, 0.5) and args.epochs == options.PRESETS["demo"]["epochs"]
    assert (of_stage(args, 2).lr, of_stage(args, 2).epochs, of_stage(args, 2).stage) == (0.5, epochs, 2)


def test_two_values_are_one_per_stage():
    args = arguments(["--epochs", "34", "5", "--optimizer", "muon", "adamw"])
    assert args.epochs == (34, 5) and (of_stage(args, 1).optimizer, of_stage(args, 2).optimizer) == ("muon", "adamw")
    for argv in (["--epochs", "34", "5", "--stage", "2"], ["--epochs", "3", "4", "5"]):
        with pytest.raises(UserError, match="^--epochs .*: takes one value, or, if both stages run, two: one for"):
            arguments(argv)


def test_a_run_that_goes_on_is_asked_for_what_its_stage_reads():
    first, second = (same_again(of_stage(arguments(["--variant", "cmci"]), number)) for number in (1, 2))
    assert first["--sentences"] == 4 and "--variant" not in first and first["--prompts-per-disease"] == 0
    assert second["--variant"] == "cmci" and second["--k"] == 3 and second["--max-new-tokens"] == 120
    assert not {"--dc-weight", "--val-reports", "--sentences", "--run", "--workers"} & second.keys()
    assert isinstance(argparse.Namespace(**vars(arguments([]))).lora_targets, list)      # as JSON gives it back
