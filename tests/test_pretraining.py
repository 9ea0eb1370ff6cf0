"""The demo's base language model, pre-trained in a process of its own beside stage 1: stopped, killed and failing."""

import errno
import os
import signal
import time

import pytest

from data import prepare
from model.mistral import Mistral
from tests import runs
from tests.test_resume import alive


def small():
    """One epoch of each pre-training; the process beside stage 1 is forked, and has it too."""
    from training import demo
    meaning, writing = demo.teach_meaning, demo.teach_writing
    demo.teach_meaning = lambda *args: meaning(*args, epochs=1)
    demo.teach_writing = lambda *args: writing(*args, epochs=1)


def stop_beside(number, once_written=""):
    """Tells the run to stop after its third step, while the language model is not written, or only this file of it."""
    import train
    from training import demo
    small()
    learning_rate, work, calls = train.learning_rate, demo.language_model, []

    def waiting(folder, *args):
        replace = os.replace

        def stand_still(source, target):
            if str(target).endswith(once_written or "tokenizer.model"):
                if once_written:
                    replace(source, target)
                print("language model", os.getpid(), flush=True)
                (folder / "stands").touch()
                time.sleep(60)
            replace(source, target)

        os.replace = stand_still
        work(folder, *args)

    def stopping(*args):
        calls.append(1)
        if len(calls) == 2:                  # noticed in the step after
            folder = demo.started[0]
            while not (folder / "stands").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), number)
        return learning_rate(*args)

    prepare_demo = demo.prepare
    demo.prepare = lambda data, weights, *args: (demo.started.append(weights), prepare_demo(data, weights, *args))[1]
    demo.started, demo.language_model, train.learning_rate = [], waiting, stopping


def interrupted():
    stop_beside(signal.SIGINT)


def told_to_stop():
    stop_beside(signal.SIGTERM, once_written="mistral/config.json")


def killed():
    stop_beside(signal.SIGKILL)


def die_as(file):
    """Kills the process of the language model before this file of it has its name."""
    small()
    replace = os.replace

    def deadly(source, target):
        if str(target).endswith(file):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = deadly


def die_before_the_weights():
    die_as("mistral/model.safetensors")


def die_before_the_configuration():
    die_as("mistral/config.json")


def full_disk():
    small()
    replace = os.replace

    def full(source, target):
        if "mistral" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    os.replace = full


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a phantom of few studies and a run that nothing disturbed, and the command's arguments but one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare.phantom(folder / "data", counts=(96, 8, 4), size=128)
    argv = ["--data", folder / "data", "--max-steps", "4", "--batch-size", "8", "--save-every", "1", "--samples", "0"]
    demo_of(folder, argv)
    return folder, argv


def demo_of(folder, argv, hook=small, code=0):
    """(output, errors) of the demo with base weights and run of its own under `folder`."""
    (folder / "weights").mkdir(exist_ok=True)
    found, out, err = runs.run("train", [*argv, "--weights", folder / "weights", "--run", folder / "run"],
                               folder / "out", hook=hook)
    assert found == code, err
    return out, err


def assert_same(folder, other):
    """Base weights and checkpoints of two folders hold the same bits."""
    for name in ("weights/swin/model", "weights/bert/model", "weights/mistral/model", "run/stage1", "run/ckpt"):
        assert runs.same_weights(folder / f"{name}.safetensors", other / f"{name}.safetensors"), name


@pytest.mark.parametrize("hook, code, step", [(interrupted, 130, 3), (told_to_stop, 143, 3),
                                              (killed, -signal.SIGKILL, 1)])
def test_stopped_beside_stage_1(undisturbed, tmp_path, hook, code, step):
    """Its process ends with the run; nothing of it is used, and both go on to the same bits."""
    folder, argv = undisturbed
    out, err = demo_of(tmp_path, argv, hook, code)
    told = err.splitlines()[-1].startswith("stage1: stopped after step 3 of 4; the state is saved")
    assert told == (code > 0)
    pid = int(out.partition("language model ")[2].split()[0])
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(pid) and not (tmp_path / "weights" / "mistral" / "model.safetensors").exists()
    out, _ = demo_of(tmp_path, argv)
    assert "the base language model, at the same time as stage 1" in out
    assert f"stage1: going on after step {step} of 4" in out
    assert_same(tmp_path, folder)


@pytest.mark.parametrize("hook", [die_before_the_weights, die_before_the_configuration])
def test_killed_while_it_is_written(undisturbed, tmp_path, hook):
    """Stage 1 is finished first, then one line; the next start makes the language model anew."""
    folder, argv = undisturbed
    out, err = demo_of(tmp_path, argv, hook, code=2)
    assert "best loss on val" in out and "Traceback" not in err
    assert err.splitlines()[-1] == (f"{tmp_path}/weights: the language model's pre-training failed (killed by "
                                    "signal 9); stage 1 is saved: run the command again")
    out, _ = demo_of(tmp_path, argv)
    assert "stage1 is finished" in out
    Mistral.from_pretrained(tmp_path / "weights" / "mistral")
    assert_same(tmp_path, folder)
    assert "base language model" not in demo_of(tmp_path, argv)[0]


def test_a_full_disk(undisturbed, tmp_path):
    _, err = demo_of(tmp_path, undisturbed[1], full_disk, code=2)
    assert f"{tmp_path}/weights/mistral: No space left on device\n" in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"{tmp_path}/weights: the language model's pre-training failed (exit")


def test_base_weights_count_as_made_with_both_sides(tmp_path):
    """The language model may be written before the text encoder; weights that the demo did not make are left alone."""
    from training import demo  # here, as in the hooks above
    for name in ("mistral/model.safetensors", "bert/vocab.txt"):
        (tmp_path / name).parent.mkdir()
    (tmp_path / "mistral" / "model.safetensors").touch()
    assert demo.written(tmp_path)
    (tmp_path / demo.MARK).touch()
    assert not demo.written(tmp_path)
    (tmp_path / "bert" / "vocab.txt").touch()
    assert demo.written(tmp_path)
