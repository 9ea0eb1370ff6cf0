"""What only a GPU can show: the same numbers, tokens and files as on the CPU, and runs that go on bit for bit.

    python -m pytest -m cuda
"""

import json
import signal
import time

import pytest
import torch
from PIL import Image

import trrg
from data.prompts import clue_prompts
from model.decode import generate
from tests import runs, tiny

pytestmark = pytest.mark.cuda
CUDA = "cuda"


@pytest.fixture(autouse=True)
def whole_convolutions():
    """fp32 without TF32, whose numbers have ten bits; products are never in it by default, convolutions are."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def gradients(model, loss):
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def assert_close(model, loss_on):
    """The loss and its gradients are the same on both devices."""
    on_cpu = loss_on("cpu")
    expected = gradients(model, on_cpu)
    model.to(CUDA)
    on_gpu = loss_on(CUDA)
    found = gradients(model, on_gpu)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item() + 1e-7,
                                   msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("equal_sentences", [False, True])
def test_stage_1(equal_sentences):
    model = tiny.alignment()
    ids, mask = trrg.encode_words(model.wordpiece, ["The heart is normal.", "No pneumothorax."], 64)
    same = torch.ones(2, 2, dtype=torch.bool) if equal_sentences else None

    def loss(device):
        v, t, tau = model(tiny.batch()[:, 0].to(device), ids.to(device), mask.to(device))
        return trrg.contrastive_loss(v, t, tau, None if same is None else same.to(device))

    assert_close(model, loss)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_stage_2(variant, views, checkpointing):
    model = tiny.model(variant=variant, lora_dropout=0.0).train()
    model.language_model.checkpoint = checkpointing
    ids, labels, _ = model.supervise(tiny.REPORTS[:2], 40)

    def loss(device):
        return model.total(model(tiny.batch(views=views).to(device), ids.to(device), labels.to(device)))

    assert_close(model, loss)


def test_bf16_is_close_to_fp32():
    model = tiny.model().train().to(CUDA)
    ids, labels, _ = model.supervise(tiny.REPORTS[:2], 40)
    losses = []
    for enabled in (False, True):
        with torch.autocast(CUDA, torch.bfloat16, enabled=enabled):
            losses.append(model.total(model(tiny.batch().to(CUDA), ids.to(CUDA), labels.to(CUDA))).item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("decoding", [{}, {"beams": 3}, {"beams": 3, "repetition_penalty": 1.3, "length_penalty": 2.0,
                                                         "min_new_tokens": 5}])
def test_reports_and_clues_are_the_same(decoding):
    model = tiny.model()
    with torch.no_grad():
        for parameter in model.language_model.parameters():             # far from ties, which rounding would decide
            parameter.mul_(5)
    expected, _ = model.write(tiny.batch(3, views=2), max_new_tokens=20, **decoding)
    found, _ = model.to(CUDA).write(tiny.batch(3, views=2).to(CUDA), max_new_tokens=20, **decoding)
    assert [report.text for report in found] == [report.text for report in expected]
    for ours, theirs in zip(found, expected):
        assert [text for text, _ in ours.clues] == [text for text, _ in theirs.clues]
        assert [w for _, w in ours.clues] == pytest.approx([w for _, w in theirs.clues], rel=1e-3)


@pytest.mark.parametrize("rows, beams", [(1, 1), (5, 1), (1, 3), (4, 3)])
def test_recorded_steps_give_the_same_tokens(rows, beams):
    model = tiny.mistral(300).to(CUDA).eval()
    for prompt in (9, 30, 9):                                           # the third is a replay of the first's recording
        ids = torch.randint(3, 300, (rows, prompt), generator=torch.Generator().manual_seed(prompt)).to(CUDA)
        plain, recorded = (generate(model, ids=ids, max_new_tokens=40, eos_id=2, beams=beams, capture=capture)
                           for capture in (False, True))
        assert plain == recorded


def test_drawn_tokens_are_the_same_again():
    model = tiny.mistral(300).to(CUDA).eval()
    ids = torch.randint(3, 300, (4, 9), device=CUDA)
    rows = [generate(model, ids=ids, max_new_tokens=12, eos_id=2, temperature=0.8, top_p=0.9, seed=1) for _ in range(2)]
    assert rows[0] == rows[1]


def test_the_bank():
    model = tiny.alignment()
    expected = trrg.encode_bank(model, clue_prompts())
    found = trrg.encode_bank(model.to(CUDA), clue_prompts()).to("cpu")
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of both stages, in bf16 and deterministic, as the defaults are; and its arguments."""
    folder = tmp_path_factory.mktemp("cuda")
    argv = [*runs.prepare(folder), *runs.WRITER, "--batch-size", "6", "--epochs", "3", "--save-every", "1"]
    code, _, err = runs.run("train", [*argv, "--run", folder / "run"], folder / "out")
    assert code == 0, err
    return folder, argv


def test_a_killed_run_ends_with_the_same_bits(whole, tmp_path):
    folder, argv = whole
    for stop in (2, 6):                                                 # lines of the log: in stage 1, in stage 2
        run = tmp_path / str(stop)
        started = runs.Started("train", [*argv, "--run", run], tmp_path / "out")
        while started.processes[0].is_alive() and lines(run) < stop:
            time.sleep(0.002)
        started.kill()
        assert started.processes[0].exitcode == -signal.SIGKILL
        code, out, err = runs.run("train", [*argv, "--run", run], tmp_path / "out")
        assert code == 0 and "going on after step" in out + err, err
        for name in ("stage1", "ckpt"):
            assert runs.same_weights(run / f"{name}.safetensors", folder / "run" / f"{name}.safetensors"), name
        assert runs.log_of(run) == runs.log_of(folder / "run")


def lines(run):
    return (run / "log.jsonl").read_bytes().count(b"\n") if (run / "log.jsonl").exists() else 0


def test_checkpointing_changes_no_loss(whole, tmp_path):
    folder, argv = whole
    code, _, err = runs.run("train", [*argv, "--checkpointing", "--run", tmp_path / "run"], tmp_path / "out")
    assert code == 0, err
    losses = [[row["loss"] for row in runs.log_of(run) if "loss" in row] for run in (tmp_path / "run", folder / "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_evaluation(whole, tmp_path):
    folder, _ = whole
    for name in ("stage1", "ckpt"):
        code, _, err = runs.run("evaluate", ["--ckpt", folder / "run" / f"{name}.safetensors", "--out", tmp_path / name,
                                             "--draws", "20", "--batch-size", "2"], tmp_path / "out")
        assert code == 0, err
        assert json.loads((tmp_path / name / "metrics.json").read_text())["settings"]
    Image.new("L", (40, 40), 90).save(tmp_path / "picture.png")
    code, out, err = runs.run("evaluate", ["--ckpt", folder / "run" / "ckpt.safetensors", "--image",
                                           tmp_path / "picture.png", "--json"], tmp_path / "out")
    assert code == 0 and json.loads(out)["clues"], err
