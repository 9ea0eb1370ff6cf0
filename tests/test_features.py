"""--cache-features: what is cached; runs that read it, stopped and on several processes; what they leave behind."""

import os
import pickle
import signal

import pytest
import torch

from data.dataset import Prepared, Visits, collate
from tests import runs, tiny
from tests.test_train import assert_close
from training.features import cache_features
from training.processes import Processes


def test_a_cached_picture_is_the_picture_encoded_anew_without_augmentation(tmp_path):
    tiny.write_data(tmp_path / "data")
    prepared, model = Prepared(tmp_path / "data"), tiny.model()
    features = cache_features(model, prepared, tmp_path / "features", Processes(), batch_size=5)
    for split in ("train", "val"):
        studies = prepared.split(split)
        cached = Visits(prepared, studies, 2, tiny.CROP, seed=0, features=features)
        plain = Visits(prepared, studies, 2, tiny.CROP, seed=None)
        again, anew = (collate([visits[3, i] for i in range(len(studies))]) for visits in (cached, plain))
        assert again["texts"] == anew["texts"] and again["ids"] == anew["ids"]
        torch.testing.assert_close(again["images"], model.view_tokens(anew["images"]), rtol=1e-5, atol=1e-6)
        assert not again["images"].requires_grad
        ids, labels, _ = model.supervise(anew["texts"], 40)
        losses = [model.total(model(visits["images"], ids, labels)) for visits in (again, anew)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    # A loader process maps the same file; test pictures are nobody's to train on
    copy = pickle.loads(pickle.dumps(features))
    assert copy.path == features.path and copy.tokens.equal(features.tokens)
    assert not features[[row for study in prepared.split("test") for row in study["views"]]].any()


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    """The arguments of a stage 2 with cached features on a small stage 1, but for the run's folder."""
    folder = tmp_path_factory.mktemp("features")
    argv = runs.prepare(folder, dropout=0.0, train=29)
    code, _, err = runs.run("train", [*argv, "--stage", "1", "--max-steps", "1", "--run", folder / "one"], folder)
    assert code == 0, err
    return [*argv, *runs.WRITER, "--stage", "2", "--stage1", folder / "one" / "stage1.safetensors", "--epochs", "2",
            "--cache-features", "--samples", "0", "--lora-dropout", "0"]


def finish(argv, run, world=1, hook=None, code=0):
    found, out, err = runs.run("train", [*argv, "--run", run], run.with_suffix(".out"), world, hook)
    assert found == code, err
    assert not (run / ".features.tmp").exists()                  # as large as all pictures' tokens: it does not stay
    return out


def stop_in_the_third_step():
    from training.stages import Stage2
    original, calls = Stage2.read, []

    def stopping(self, *args):
        calls.extend([1] * self.model.training)
        if len(calls) == 3 and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    Stage2.read = stopping


@pytest.mark.parametrize("world, workers", [(1, 1), (2, 0)])
def test_stopped_and_gone_on(tuning, tmp_path, world, workers):
    argv = [*tuning, "--batch-size", 8 // world]
    finish(argv, tmp_path / "reference", world)
    argv = [*argv, "--workers", workers]                         # who loads them moves nothing
    finish(argv, tmp_path / "run", world, stop_in_the_third_step, 143)
    assert "stage2: going on after step 3 of 8" in finish(argv, tmp_path / "run", world)
    assert runs.same_weights(tmp_path / "run" / "ckpt.safetensors", tmp_path / "reference" / "ckpt.safetensors")
    assert runs.log_of(tmp_path / "run") == runs.log_of(tmp_path / "reference")


def test_three_processes_train_as_one(tuning, tmp_path):
    """Each encodes a third of the pictures, and reads what the others encoded."""
    for world, size in ((1, 6), (3, 2)):
        finish([*tuning, "--batch-size", size], tmp_path / f"by{world}", world)
    assert_close(tmp_path / "by1", tmp_path / "by3", names=["ckpt"])
