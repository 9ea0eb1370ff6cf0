"""Interrupted runs: killed, stopped, short of disk, with damaged states, and begun with other settings."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests import runs
from training import state
from training.log import Log, read_rows

STEPS = 8          # of stage 1: 4 epochs of 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of both stages on one process, dropout and all, and the arguments it was made with."""
    folder = tmp_path_factory.mktemp("whole")
    argv = [*runs.prepare(folder), "--batch-size", "6", "--epochs", "4", "--save-every", "1"]
    code, out, err = runs.run("train", [*argv, *runs.WRITER, "--run", folder / "run"], folder / "out")
    assert code == 0, err
    return folder, argv, out


def both(whole):
    """The folder, the arguments for both stages, and the output of `whole`."""
    folder, argv, out = whole
    return folder, [*argv, *runs.WRITER], out


def finish(argv, run, folder, **options):
    code, out, err = runs.run("train", [*argv, "--run", run], folder, **options)
    assert code == 0, err
    return out


def assert_same(run, whole, stages=("stage1", "ckpt")):
    assert all(runs.same_weights(run / f"{name}.safetensors", whole / f"{name}.safetensors") for name in stages)
    assert runs.log_of(run) == [row for row in runs.log_of(whole) if row["stage"] == "stage1" or len(stages) == 2]


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_random_moments(whole, tmp_path, world):
    folder, argv, _ = both(whole)
    run, reference, kills, rng = tmp_path / "run", folder / "run", 0, random.Random(world)
    if world > 1:
        reference, argv = tmp_path / "reference", [*argv, "--batch-size", "3"]
        finish(argv, reference, tmp_path / "out", world=world)
    begun = time.monotonic()
    while True:
        started = runs.Started("train", [*argv, "--run", run], tmp_path / "out", world)
        end, steps = time.monotonic() + 60, rng.randint(1, 6)
        lines = count_lines(run)
        while kills < 4 and time.monotonic() < end and any(p.is_alive() for p in started.processes):
            if count_lines(run) >= lines + steps:
                time.sleep(rng.random() * 0.05)
                started.processes[rng.randrange(world)].kill()
                kills += 1
                break
            time.sleep(0.002)
        codes = started.wait()
        if not any(codes):
            break
    assert kills == 4 and time.monotonic() - begun < 60
    assert_same(run, reference)


def die_in_the_fourth_step():
    import train
    original, calls = train.learning_rate, []

    def deadly(*args):
        calls.append(1)
        if len(calls) == 4:
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)     # the loader's
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    train.learning_rate = deadly


@pytest.mark.parametrize("world", [1, 2])
def test_muons_momentum_survives_a_kill_in_either_stage(whole, tmp_path, world):
    folder, argv, _ = both(whole)
    argv = [*argv, "--optimizer", "muon", "--epochs", "2", "--batch-size", 6 // world]
    finish(argv, tmp_path / "reference", tmp_path / "out", world=world)
    for stage, step in (("stage1", 3), ("stage2", 2)):               # of 4 each
        code, _, _ = runs.run("train", [*argv, "--run", tmp_path / "run"], tmp_path / "out", world,
                              die_in_the_fourth_step)
        path, header = state.newest_state(tmp_path / "run" / "state", stage)
        assert code == -signal.SIGKILL and header["step"] == step
        assert any(name.startswith("optimizer.momentum.") for name in load_file(path))
    assert "stage2: going on after step 2 of 4" in finish(argv, tmp_path / "run", tmp_path / "out", world=world)
    assert_same(tmp_path / "run", tmp_path / "reference")


def count_lines(run):
    path = run / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def die_before(call, wanted):
    """Kills this process at its first `call` (of the module os) on a path that holds `wanted`."""
    original = getattr(os, call)

    def deadly(path, *args):
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
        if wanted in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *args)

    setattr(os, call, deadly)


def die_at_fsync():
    die_before("fsync", "stage1-00000004")


def die_at_replace():
    die_before("replace", "stage1-00000004")


def die_at_rename():
    die_before("rename", "stage1-00000004")


def die_at_unlink():
    die_before("unlink", "stage1-00000002-")        # two states of one step, from before and after its validation


@pytest.mark.parametrize("hook", [die_at_fsync, die_at_replace, die_at_rename, die_at_unlink])
def test_killed_during_a_save(whole, tmp_path, hook):
    folder, argv, _ = whole
    argv, run = [*argv, "--stage", "1"], tmp_path / "run"
    code, _, _ = runs.run("train", [*argv, "--run", run], tmp_path / "out", hook=hook)
    assert code == -signal.SIGKILL
    newest = "00000002" if hook is die_at_unlink else "00000003"
    assert state.newest_state(run / "state", "stage1")[0].name.startswith(f"stage1-{newest}")
    assert "going on after step" in finish(argv, run, tmp_path / "out")
    assert_same(run, folder / "run", ["stage1"])
    assert len(list((run / "state").iterdir())) == 2 and not list(run.glob(".*.tmp"))


def stop_in_the_third_step():
    from training.stages import Stage1
    original, calls = Stage1.read, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 4:             # two steps, a validation, and this
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    Stage1.read = stopping


def interrupt_in_the_third_step():
    """Ctrl-C, after which torchrun sends SIGTERM as well."""
    kill = os.kill
    os.kill = lambda process, _: [kill(process, number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_in_the_third_step()


def stop_while_validating():
    import train
    original = train.Run.validate

    def stopping(self):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    train.Run.validate = stopping


@pytest.mark.parametrize("hook, step, exit_code", [
    (stop_in_the_third_step, 3, 143), (interrupt_in_the_third_step, 3, 130), (stop_while_validating, 2, 143)])
def test_a_signal_saves_and_stops(whole, tmp_path, hook, step, exit_code):
    folder, argv, _ = whole
    argv, run = [*argv, "--stage", "1", "--save-every", "100"], tmp_path / "run"
    code, _, err = runs.run("train", [*argv, "--run", run], tmp_path / "out", hook=hook)
    assert code == exit_code
    assert f"stage1: stopped after step {step} of {STEPS}; the state is saved, and the same command" in err
    assert state.newest_state(run / "state", "stage1")[1]["step"] == step
    finish(argv, run, tmp_path / "out")
    assert_same(run, folder / "run", ["stage1"])


def stop_in_the_last_step():
    import train
    original = train.learning_rate

    def stopping(step, *args):
        if step == STEPS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(step, *args)

    train.learning_rate = stopping


def test_sigterm_in_the_last_step_leaves_a_validation_to_the_next_run(whole, tmp_path):
    folder, argv, _ = whole
    argv, run = [*argv, "--stage", "1"], tmp_path / "run"
    code, _, err = runs.run("train", [*argv, "--run", run], tmp_path / "out", hook=stop_in_the_last_step)
    assert code == 143 and f"after step {STEPS} of {STEPS}" in err
    assert "is finished" not in finish(argv, run, tmp_path / "out")
    assert "stage1 is finished" in finish(argv, run, tmp_path / "out")
    assert_same(run, folder / "run", ["stage1"])
    assert [path.name.split("-")[1] for path in state.saved_states(run / "state", "stage1")] == ["00000007", "00000008"]


def test_two_processes_are_stopped_by_a_signal_to_either(whole, tmp_path):
    _, argv, _ = whole
    argv = [*argv, "--stage", "1", "--batch-size", "3"]
    code, _, err = runs.run("train", [*argv, "--run", tmp_path / "run"], tmp_path / "out", 2, stop_the_second)
    assert code == 143 and err.count("stage1: stopped after step 3 of") == 1
    finish(argv, tmp_path / "run", tmp_path / "out", world=2)
    finish(argv, tmp_path / "reference", tmp_path / "out", world=2)
    assert_same(tmp_path / "run", tmp_path / "reference", ["stage1"])


def stop_the_second():
    if os.environ["RANK"] == "1":
        stop_in_the_third_step()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_with_loader_processes_accumulation_and_bf16(whole, tmp_path):
    folder, argv, _ = both(whole)
    argv = [*argv, "--stage", "2", "--stage1", folder / "run" / "stage1.safetensors", "--workers", "2",
            "--accumulate", "2", "--batch-size", "2", "--precision", "bf16", "--epochs", "2"]
    code, _, _ = runs.run("train", [*argv, "--run", tmp_path / "run"], tmp_path / "out", hook=die_in_the_fourth_step)
    assert code == -signal.SIGKILL
    loaders = [int(pid) for pid in (tmp_path / "out" / "rank0.out").read_text().splitlines()[-1].split()]
    end = time.monotonic() + 10
    while any(map(alive, loaders)) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(loaders) == 2 and not any(map(alive, loaders))
    assert "stage2: going on after step 3 of 6" in finish(argv, tmp_path / "run", tmp_path / "out")
    finish([*argv, "--workers", "0"], tmp_path / "reference", tmp_path / "out")
    assert runs.same_weights(tmp_path / "run" / "ckpt.safetensors", tmp_path / "reference" / "ckpt.safetensors")
    assert runs.log_of(tmp_path / "run") == runs.log_of(tmp_path / "reference")


def little_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_full_disk_leaves_the_last_good_state(whole, tmp_path):
    folder, argv, _ = whole
    argv, run = [*argv, "--stage", "1"], tmp_path / "run"
    runs.run("train", [*argv, "--run", run], tmp_path / "out", hook=stop_in_the_third_step)
    before = sorted(path.name for path in (run / "state").iterdir())
    code, _, err = runs.run("train", [*argv, "--run", run], tmp_path / "out", hook=little_room)
    assert code == 1 and err.splitlines()[-1] == \
        f"{run}: File too large; the files already written are intact: make room and run the command again"
    assert sorted(path.name for path in (run / "state").iterdir()) == before
    finish(argv, run, tmp_path / "out")
    assert_same(run, folder / "run", ["stage1"])


@pytest.fixture
def one_thread():
    """As many as the runs in processes of their own have: other numbers of threads add in other orders."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("file", ["stage1-00000004", "stage1.safetensors"])
def test_a_disk_that_is_full_only_at_the_flush(whole, tmp_path, monkeypatch, capfd, one_thread, file):
    """As with delayed allocation; while a state is written, and while the checkpoint is."""
    import train
    folder, argv, _ = whole
    argv, run, original = [*map(str, argv), "--stage", "1", "--run", str(tmp_path / "run")], tmp_path / "run", os.fsync

    def full(descriptor):
        if file in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert train.main(argv) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{run}: No space left on device; the files already written are intact")
    assert not list(run.rglob("*.tmp"))
    assert state.newest_state(run / "state", "stage1")[1]["step"] == (3 if "-" in file else 2)
    monkeypatch.undo()
    assert train.main(argv) == 0
    assert_same(run, folder / "run", ["stage1"])


def test_a_damaged_newest_state_and_a_torn_log(whole, tmp_path):
    folder, argv, _ = whole
    argv, run = [*argv, "--stage", "1"], tmp_path / "run"
    runs.run("train", [*argv, "--run", run], tmp_path / "out", hook=stop_in_the_third_step)
    newest = state.saved_states(run / "state", "stage1")[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    with open(run / "log.jsonl", "a") as log:
        log.write('{"stage": "stage1", "step": 4, "seconds": {"data": 1}')
    out = finish(argv, run, tmp_path / "out")
    assert f"{newest}: damaged, going back to the state before it" in out and f"going on after step 2 of {STEPS}" in out
    assert_same(run, folder / "run", ["stage1"])


def test_a_finished_run_says_so_at_once_and_fresh_starts_over(whole, tmp_path):
    folder, argv, first = both(whole)
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    out = finish(argv, run, tmp_path / "out")
    assert "stage1 is finished" in out and "stage2 is finished" in out and "part  " not in out
    assert first.count("the best so far") and "best loss on val" in out
    assert_same(run, folder / "run")
    out = finish([*argv, "--stage", "2", "--fresh"], run, tmp_path / "out")
    assert "is finished" not in out and "going on" not in out
    assert_same(run, folder / "run")


@pytest.mark.parametrize("change, message", [
    (["--batch-size", "5"], "--batch-size was 6, now 5"),
    (["--seed", "3"], "--seed was 0, now 3"),
    (["--optimizer", "muon"], "--optimizer was adamw, now muon"),
    (["--validate-every", "2"], "--validate-every was 1, now 2"),
    (["--same-sentence-positives"], "--same-sentence-positives was False, now True"),
    (["--stage", "2", "--variant", "cmci"], "--variant was trrg, now cmci"),
    (["--stage", "2", "--stage1", "other"], "the stage-1 checkpoint was"),
    (["--data", "other"], "the data set was"),
    (["world"], "the number of processes was 1, now 2")])
def test_other_settings_are_refused_in_one_line(whole, tmp_path, change, message, capfd):
    import train
    folder, argv, _ = both(whole)
    world = 2 if change == ["world"] else 1
    if change[-1] == "other" and change[0] == "--data":
        shutil.copytree(folder / "data", tmp_path / "data")
        rows = (tmp_path / "data" / "studies.jsonl").read_text()
        (tmp_path / "data" / "studies.jsonl").write_text(rows.replace("Moderate", "Severe"))
        change = ["--data", str(tmp_path / "data")]
    elif change[-1] == "other":
        runs.run("train", [*whole[1], "--run", tmp_path / "run", "--stage", "1", "--seed", "1", "--max-steps", "1"],
                 tmp_path / "out")
        change = ["--stage", "2", "--stage1", str(tmp_path / "run" / "stage1.safetensors")]
    argv = [*map(str, argv), "--run", str(folder / "run"), *(change if world == 1 else [])]
    if world == 1:
        code, err = train.main(argv), capfd.readouterr().err
    else:
        code, _, err = runs.run("train", argv, tmp_path / "out", world)
    assert code == 2 and len(err.splitlines()) == 1, err
    assert message in err and err.endswith("start over with --fresh\n"), err


def slow_steps():
    import train
    original = train.learning_rate
    train.learning_rate = lambda *args: (time.sleep(0.2), original(*args))[1]


def test_two_runs_into_one_folder_are_refused(whole, tmp_path):
    _, argv, _ = whole
    argv = [*argv, "--stage", "1", "--run", tmp_path / "run"]
    first = runs.Started("train", argv, tmp_path / "first", hook=slow_steps)
    while not (tmp_path / "run" / "log.jsonl").exists():
        time.sleep(0.01)
    code, _, err = runs.run("train", argv, tmp_path / "second")
    assert code == 2 and "another train.py is writing into this folder" in err
    assert first.wait() == [0]


def test_steps_of_a_resumed_log_are_numbered_once(whole):
    rows = [json.loads(line) for line in (whole[0] / "run" / "log.jsonl").read_text().splitlines()]
    for stage in ("stage1", "stage2"):
        steps = [row["step"] for row in rows if row["stage"] == stage and "loss" in row]
        assert steps == list(range(1, STEPS + 1))
        assert [row["step"] for row in rows if row["stage"] == stage and "validation" in row] == [2, 4, 6, 8]
    step = rows[0]
    assert step["seconds"].keys() == {"data", "forward", "backward", "optimiser"}
    assert step["lr"] > 0 and step["studies_per_s"] > 0


def test_what_a_killed_validation_wrote_is_not_written_twice(tmp_path):
    """Killed after a sample of step 2, before the state that knows of this validation."""
    rows = [{"stage": "stage1", "step": 9, "loss": 1.0}, {"stage": "stage2", "step": 1, "loss": 1.0},
            {"stage": "stage2", "step": 2, "loss": 1.0}, {"stage": "stage2", "step": 2, "validation": {"loss": 1.0}},
            {"stage": "stage2", "step": 2, "sample": {}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Log(tmp_path / "log.jsonl", "stage2", first=2, validated=0, steps=4).close()
    assert read_rows(tmp_path / "log.jsonl") == rows[:3]
