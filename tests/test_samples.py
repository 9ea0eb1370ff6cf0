"""Reports of fixed val studies at every validation of stage 2: printed, and rows of log.jsonl."""

import os
import signal

import pytest

from data.reports import clean_report
from tests import runs, tiny


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    """The arguments of a stage 2 of two epochs on a small stage 1, but for the run's folder."""
    folder = tmp_path_factory.mktemp("samples")
    argv = runs.prepare(folder, dropout=0.0, train=16)
    code, _, err = runs.run("train", [*argv, "--stage", "1", "--max-steps", "1", "--run", folder / "one"], folder)
    assert code == 0, err
    return [*argv, *runs.WRITER, "--stage", "2", "--stage1", folder / "one" / "stage1.safetensors", "--epochs", "2",
            "--lora-dropout", "0", "--max-new-tokens", "8", "--save-every", "100"]


def finish(argv, run, world=1, hook=None, code=0):
    found, out, err = runs.run("train", [*argv, "--run", run], run.with_suffix(".out"), world, hook)
    assert found == code, err
    return out


def samples(run):
    return [row for row in runs.log_of(run) if "sample" in row]


@pytest.fixture(scope="module")
def two_of_them(tuning, tmp_path_factory):
    """(the run with --samples 2 on one process, its output)."""
    run = tmp_path_factory.mktemp("two") / "run"
    return run, finish([*tuning, "--batch-size", "8", "--samples", "2"], run)


def test_each_validation_writes_the_same_studies(two_of_them):
    run, out = two_of_them
    rows = samples(run)
    assert [(row["stage"], row["step"], row["sample"]["id"]) for row in rows] == [
        ("stage2", step, f"val-{i}") for step in (2, 4) for i in (0, 1)]
    for row in rows:
        sample, number = row["sample"], int(row["sample"]["id"][-1])
        assert sample["reference"] == clean_report(tiny.REPORTS[number]) and isinstance(sample["report"], str)
        assert len(sample["clues"]) == 3 and all(0 < weight < 1 for _, weight in sample["clues"])
        assert f"  {sample['id']}\n    report     {sample['report'] or '(empty)'}\n    reference  " in out
    kinds = [next(key for key in ("loss", "validation", "sample") if key in row) for row in runs.log_of(run)]
    assert kinds == ["loss", "loss", "validation", "sample", "sample"] * 2


def test_none_are_written_where_none_are_asked_for(tuning, two_of_them, tmp_path):
    """And nothing of the run changes with it."""
    out = finish([*tuning, "--batch-size", "8", "--samples", "0"], tmp_path / "run")
    assert "    reference  " not in out
    assert runs.log_of(tmp_path / "run") == [row for row in runs.log_of(two_of_them[0]) if "sample" not in row]
    assert runs.same_weights(tmp_path / "run" / "ckpt.safetensors", two_of_them[0] / "ckpt.safetensors")


def test_three_processes_write_each_once(tuning, two_of_them, tmp_path):
    """Two studies among three processes: one has none to write."""
    out = finish([*tuning, "--batch-size", "2", "--samples", "2"], tmp_path / "run", world=3)
    rows = samples(tmp_path / "run")
    assert [row["sample"]["id"] for row in rows] == ["val-0", "val-1"] * 2 and out.count("    reference  ") == 4
    clues = [[prompt for prompt, _ in row["sample"]["clues"]] for row in rows]
    assert clues == [[prompt for prompt, _ in row["sample"]["clues"]] for row in samples(two_of_them[0])]


def killed_between_two_samples():
    import train
    original, calls = train.sample_text, []

    def deadly(sample):
        calls.append(1)
        if len(calls) == 4:                                      # the second of the second validation
            os.kill(os.getpid(), signal.SIGKILL)
        return original(sample)

    train.sample_text = deadly


def test_a_validation_made_again_writes_them_once(tuning, two_of_them, tmp_path):
    argv = [*tuning, "--batch-size", "8", "--samples", "2"]
    finish(argv, tmp_path / "run", hook=killed_between_two_samples, code=-signal.SIGKILL)
    assert len(samples(tmp_path / "run")) == 3
    finish(argv, tmp_path / "run")
    assert runs.log_of(tmp_path / "run") == runs.log_of(two_of_them[0])


def test_a_run_goes_on_with_another_number_of_them(tuning, two_of_them, tmp_path):
    """They are for the eye: no setting that must be the same again."""
    argv = [*tuning, "--batch-size", "8"]
    finish([*argv, "--samples", "2"], tmp_path / "run", hook=killed_between_two_samples, code=-signal.SIGKILL)
    finish([*argv, "--samples", "1"], tmp_path / "run")
    assert samples(tmp_path / "run") == [row for row in samples(two_of_them[0]) if row != samples(two_of_them[0])[3]]
