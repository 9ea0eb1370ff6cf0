"""Training: the same on any number of processes, what the user gets to see, and what stops a run."""

import inspect
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard

import train
import trrg
from data.dataset import PictureFile
from tests import runs, tiny
from tests.runs import ROOT
from training import schedule
from training.log import read_rows, threads_told
from training.optimizer import optimizer_for
from training.options import arguments
from training.state import newest_state

WRITER = [*runs.WRITER, "--lora-dropout", "0", "--no-cache-features"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with toy data and weights without dropout, and the arguments that name them."""
    folder = tmp_path_factory.mktemp("toy")
    return folder, [*map(str, runs.prepare(folder, dropout=0.0, train=29)), "--epochs", "2"]


def torchrun(argv, agents=1, processes=2):
    """Starts train.py by real torchrun agents on this machine that meet over the loopback; → their handles."""
    port = str(runs.free_port())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(agents), "--nproc_per_node", str(processes),
         "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", port,
         "--local_addr", "127.0.0.1", "train.py", *map(str, argv)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(agents)]


def trained(argv, folder, world=1):
    """The output of a run that ends well."""
    code, out, err = runs.run("train", argv, folder / "out", world)
    assert code == 0, err
    return out


def tuning(toy, one, run, *more):
    """The arguments for a stage 2 on the stage 1 of `one`."""
    return [*toy[1], *WRITER, "--stage", "2", "--stage1", str(one / "stage1.safetensors"), "--run", str(run), *more]


@pytest.fixture(scope="module")
def one(toy):
    """One process × 8, two batches per step, the last one not full: 29 studies are 8 + 8, 8 + 5."""
    folder, argv = toy
    trained([*argv, *WRITER, "--batch-size", "8", "--accumulate", "2", "--same-sentence-positives",
             "--run", folder / "one"], folder)
    return folder / "one"


def assert_close(a, b, atol=3e-5, names=("stage1", "ckpt")):
    """The same parameters to rounding. A key's bias shifts all scores alike: its gradient is nothing but rounding,
    which Adam blows up, and it changes no output."""
    for name in names:
        a_tensors, b_tensors = load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
        for key, value in a_tensors.items():
            if not key.endswith("key.bias"):
                torch.testing.assert_close(value, b_tensors[key], rtol=1e-4, atol=atol,
                                           msg=lambda text: f"{key}: {text}")
    for x, y in zip(runs.log_of(a), runs.log_of(b)):
        assert x.keys() == y.keys() and x.get("cut") == y.get("cut")
        for key in ("loss", "gradient_norm", "ce", "dc", "contrastive", "tau", "lr"):
            assert x.get(key, 0) == pytest.approx(y.get(key, 0), rel=1e-4), key


def test_four_processes_of_two_machines_train_as_one(toy, one):
    folder, argv = toy
    agents = torchrun([*argv, *WRITER, "--batch-size", "2", "--accumulate", "2", "--same-sentence-positives",
                       "--run-dir", folder / "four"], agents=2)
    outputs = [agent.communicate(timeout=120) for agent in agents]
    assert all(agent.returncode == 0 for agent in agents), outputs
    assert_close(one, folder / "four")
    assert sum(out.count("best loss on val") for out, _ in outputs) == 2         # one process alone speaks
    assert not any("find_unused_parameters" in err for _, err in outputs)
    start = load_file(folder / "weights" / "bert" / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert (load_file(one / "stage1.safetensors")["bert.embeddings.word_embeddings.weight"] - start).abs().max() > 0.01


def test_four_times_eight_is_thirty_two(toy):
    """The paper's four GPUs of 8: 93 studies are 32 + 32, 29, so the last step has one batch, which is not full."""
    folder, argv = toy
    tiny.write_data(folder / "data93", train=93)
    argv = [*argv, *WRITER, "--data", folder / "data93", "--accumulate", "2", "--same-sentence-positives",
            "--prompts-per-disease", "1"]
    for world, size in ((1, 32), (4, 8)):
        trained([*argv, "--batch-size", size, "--run", folder / f"by{size}"], folder, world)
    assert_close(folder / "by32", folder / "by8", atol=6e-5)     # one hundredth of a step: Adam enlarges rounding


def test_a_batch_with_fewer_studies_than_processes(toy):
    folder, argv = toy
    argv = [*argv, *WRITER, "--max-steps", "8"]
    for world, size in ((1, 3), (3, 1)):
        trained([*argv, "--batch-size", size, "--run", folder / f"few{world}"], folder, world)
    assert_close(folder / "few1", folder / "few3", atol=3e-4)         # batches of two: Adam divides by next to nothing


def test_muon_takes_the_same_steps_on_two_processes(toy):
    """A step turns every direction of a matrix by about scale × lr, 0.02 at most. Newton–Schulz amplifies rounding
    up to 3.4445⁵ = 485 times, to 5e-5 of a step: 1e-6, and 2e-6 is seen. A learning rate that is 0.1 % off shows.
    Longer runs may part further: which prompt is a disease's best can hang on rounding."""
    folder, argv = toy
    argv = [*argv, *WRITER, "--optimizer", "muon", "--lr", "1e-3", "--accumulate", "2", "--same-sentence-positives",
            "--prompts-per-disease", "1"]
    for world, size in ((1, 8), (2, 4)):
        trained([*argv, "--batch-size", size, "--run", folder / f"muon{world}"], folder, world)
    assert_close(folder / "muon1", folder / "muon2", atol=1e-5)


def test_sharding_the_language_model_changes_no_loss(toy, one):
    folder, argv = toy
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        pytest.skip("torch 2.6 can't leave adapters whole")
    for name, extra in (("whole", []), ("shards", ["--shard", "--checkpointing"])):
        out = trained(tuning(toy, one, folder / name, "--batch-size", "4", *extra), folder, world=2)
        told = name == "shards"                      # no process could write them
        assert out.count("validations of stage 2 print no reports (--samples)") == told
        assert any("sample" in row for row in runs.log_of(folder / name)) != told
    rows, others = runs.log_of(folder / "whole"), runs.log_of(folder / "shards")
    losses, others = ([row["loss"] for row in log if "loss" in row] for log in (rows, others))
    assert len(losses) == 8 and losses == pytest.approx(others, rel=1e-6)
    whole, shards = (load_file(folder / name / "ckpt.safetensors") for name in ("whole", "shards"))
    assert any(".lora_B" in name and value.abs().max() > 0 for name, value in shards.items())
    for name, value in whole.items():
        torch.testing.assert_close(value, shards[name], rtol=1e-5, atol=1e-6)


def test_evaluation_writes_the_same_bytes_from_three_processes(toy, one):
    folder, _ = toy
    for checkpoint, extra in (("stage1", []), ("ckpt", ["--protocol", "coco", "--beams", "2"])):
        for world in (1, 3):
            argv = ["--ckpt", one / f"{checkpoint}.safetensors", "--out", folder / f"{checkpoint}-{world}",
                    "--draws", "20", "--batch-size", "1", *extra]
            code, _, err = runs.run("evaluate", argv, folder / "out", world)
            assert code == 0, err
        by_one, by_three = folder / f"{checkpoint}-1", folder / f"{checkpoint}-3"
        files = sorted(path.name for path in by_one.iterdir())
        assert "metrics.json" in files and files == sorted(path.name for path in by_three.iterdir())
        for name in files:
            assert (by_one / name).read_bytes() == (by_three / name).read_bytes(), name
    rows = [json.loads(line) for line in (folder / "ckpt-3" / "reports.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(4)]


def test_evaluation_of_one_and_two_views_in_batches_writes_the_same_bytes(toy, one):
    """7 studies in batches of 2: groups of 4 with one view and of 3 with two, so the last batch is not full."""
    folder, _ = toy
    tiny.write_data(folder / "mixed", test=7)
    rows = [json.loads(line) for line in (folder / "mixed" / "studies.jsonl").read_text().splitlines()]
    for row in rows[-7::2]:
        row["views"] = row["views"][:1]
    (folder / "mixed" / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for world in (1, 3):
        argv = ["--ckpt", one / "ckpt.safetensors", "--data", folder / "mixed", "--out", folder / f"mixed-{world}",
                "--draws", "20", "--protocol", "coco", "--batch-size", "2", "--beams", "2"]
        code, _, err = runs.run("evaluate", argv, folder / "out", world)
        assert code == 0, err
    for path in (folder / "mixed-1").iterdir():
        assert path.read_bytes() == (folder / "mixed-3" / path.name).read_bytes(), path.name
    assert len((folder / "mixed-3" / "reports.jsonl").read_text().splitlines()) == 7


def test_generated_scores_are_the_same_on_two_processes(toy, one):
    folder, scores = toy[0], []
    for world, size in ((1, 8), (2, 4)):
        run = folder / f"scored{world}"
        argv = tuning(toy, one, run, "--select", "CIDEr", "--max-new-tokens", "4", "--max-steps", "2")
        out = trained([*argv, "--batch-size", size], folder, world)
        assert out.count("best CIDEr on val") == 1
        scores.append(next(row["validation"] for row in runs.log_of(run) if "validation" in row))
    assert scores[0] == pytest.approx(scores[1], rel=1e-4) and scores[0].keys() == {"loss", "BLEU-4", "CIDEr"}


def poison_a_gradient():
    """On the second process, in the second step: √0 adds nothing to the loss, and NaN to a gradient."""
    original, calls = train.Stage1.step, []

    def step(self, *args):
        calls.extend([1] * self.model.training)
        loss = original(self, *args)
        poison = (0 * self.model.log_scale).sqrt() if len(calls) == 2 else 0
        return loss._replace(contrastive=loss.contrastive + poison)

    if os.environ["RANK"] == "1":
        train.Stage1.step = step


def test_a_gradient_that_is_not_finite_on_one_process_is_left_out_on_all(toy):
    folder, argv = toy
    argv = [*argv, "--stage", "1", "--batch-size", "8", "--run", folder / "poisoned"]
    code, out, err = runs.run("train", argv, folder / "out", 2, poison_a_gradient)
    assert code == 0 and out.count("; step skipped, no update") == 1, err
    assert "stage1: step 2: loss " in out and "loss nan" not in out and "gradient norm nan, on the studies train-" in out
    assert all(value.isfinite().all() for value in load_file(folder / "poisoned" / "stage1.safetensors").values())


def test_a_dying_process_ends_the_run_with_a_reason(toy):
    folder, argv = toy
    (agent,) = torchrun([*argv, "--epochs", "2000", "--stage", "1", "--batch-size", "2", "--run-dir", folder / "dying"])
    log = folder / "dying" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.05)
        assert agent.poll() is None, agent.communicate()
    listed = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True).stdout
    children = [int(pid) for pid in listed.split()]
    workers = [pid for pid in children if b"RANK=1" in open(f"/proc/{pid}/environ", "rb").read().split(b"\0")]
    os.kill(workers[0], signal.SIGKILL)
    _, err = agent.communicate(timeout=60)
    assert agent.returncode != 0 and "SIGKILL" in err
    assert "process 0: another process ended or was killed" in err


# --- one process, in this one


def fails(capfd, argv):
    """The one line on stderr of a command line that exits with 2."""
    assert train.main([str(a) for a in argv]) == 2
    err = capfd.readouterr().err
    assert len([line for line in err.splitlines() if line.strip() and "%|" not in line]) == 1, err
    return err


@pytest.mark.parametrize("argv, message", [
    (["--preset", "nothing"], "--preset nothing: no such preset; there are demo, iu_xray, mimic_cxr"),
    (["--epochs", "0"], "--epochs: '0' is not a whole number of 1 or more"), (["--lr", "nan"], "--lr: 'nan' is not a number"),
    (["--lora-alpha", "nan"], "--lora-alpha: 'nan' is not a number"),
    (["--seed", "9" * 20], "--seed " + "9" * 20 + ": too large; give a value below 2**63"),
    (["--lr", "x"], "argument --lr"), (["--k", "15"], "argument --k"), (["--speed"], "unrecognized arguments: --speed"),
    (["--shard", "--embed-base"], "--shard"), (["--preset", "iu_xray", "--shard"], "--shard: splits the language "
                                                                                   "model"),
    (["--lora-dropout", "1"], "--lora-dropout 1.0: too large; give a value below 1"),
    (["--preset", "iu_xray", "--data", "/nowhere"], "/nowhere: not a prepared data set"),
    (["--preset", "iu_xray", "--weights", "weigths/iu"],
     "--weights weigths/iu: no such folder; give the folder that holds swin/, bert/ and mistral/"),
    (["--weights", "weigths/demo"], "--weights weigths/demo: no such folder"),
    (["--preset", "iu_xray", "--run", "/dev/null/run"],
     "--run /dev/null/run: the folder cannot be created or written (Not a directory)")])
def test_mistakes_on_the_command_line_are_one_line(tmp_path, capfd, argv, message):
    (tmp_path / "weights").mkdir()
    argv = ["--weights", tmp_path / "weights", *argv]
    assert message in fails(capfd, ["--run", tmp_path / "run", *argv])


def test_ctrl_c_while_importing_is_one_line(tmp_path):
    """The signal comes as torch is looked for, from a module that stands before it on the path."""
    (tmp_path / "torch.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    run = subprocess.run([sys.executable, "train.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                         capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "stopped\n")


def test_stage_2_wants_stage_1(toy, tmp_path, capfd):
    err = fails(capfd, [*toy[1], "--stage", "2", "--run", tmp_path])
    assert f"{tmp_path}/stage1.safetensors: no such stage-1 checkpoint" in err


def test_the_demo_fills_no_folder_of_the_users(toy, tmp_path, monkeypatch, capfd):
    made = []
    monkeypatch.setattr(train.demo, "prepare",
                        lambda data, weights, seed, timetable: made.append((str(data), str(weights))))
    data, begun = toy[0] / "data", tmp_path / "begun"
    (begun / "swin").mkdir(parents=True)
    argv = ["--run", tmp_path / "run"]
    assert f"{tmp_path}/typo: not a prepared data set" in fails(capfd, [*argv, "--data", tmp_path / "typo"])
    assert f"{begun}: not a prepared data set" in fails(capfd, [*argv, "--data", begun])
    err = fails(capfd, [*argv, "--data", data, "--weights", begun])
    assert f"--weights {begun}: is not empty, but lacks the demo's mistral/model.safetensors" in err
    assert not made and sorted(path.name for path in tmp_path.rglob("*")) == ["begun", "swin"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for extra in ([], *(["--data", data, "--weights", folder] for folder in (tmp_path / "empty", toy[0] / "weights"))):
        train.prepare_run(arguments([*map(str, extra)]), timetable=None)[0].close()
    assert made == [("datasets/demo", "weights/demo"), (str(data), f"{tmp_path}/empty"),
                    (str(data), f"{toy[0]}/weights")]


def test_a_tokenizer_with_more_tokens_than_the_model_is_named(toy, one, tmp_path, capfd):
    shutil.copytree(toy[0] / "weights", tmp_path / "weights")
    tiny.bert(100).save_pretrained(tmp_path / "weights" / "bert")
    tiny.mistral(100).save_pretrained(tmp_path / "weights" / "mistral")
    of_stage = {"1": [], "2": ["--stage1", one / "stage1.safetensors"]}
    for stage, part, file in (("1", "bert", "vocab.txt"), ("2", "mistral", "tokenizer.model")):
        folder = tmp_path / "weights" / part
        err = fails(capfd, [*toy[1], "--weights", tmp_path / "weights", "--stage", stage, *of_stage[stage],
                            "--run", tmp_path / "run"])
        assert f"{folder / file}: has " in err and f" tokens, but vocab_size in {folder / 'config.json'} is 100;" in err


def test_the_threads_are_told_in_words(monkeypatch):
    told = []
    for chosen, used in ((1, 1), (3, 3), (0, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda: used)
        told.append(threads_told(chosen))
    assert told == ["1 CPU thread per process (--threads): a second thread gains little with small networks, and costs "
                    "much beside another program", "3 CPU threads per process (--threads)",
                    "8 CPU threads per process (--threads): PyTorch's own choice"]


def test_the_learning_rate_by_hand():
    rates = [schedule.learning_rate(step, 100, 1.0, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)


def test_decay_is_for_matrices():
    """By name: no bias, no norm and not the temperature."""
    parameters = dict(tiny.alignment().named_parameters())
    groups = optimizer_for(parameters, 1e-3, 0.05).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(parameters) and set(decay.values()) == {0, 0.05}
    spared = {name for name, p in parameters.items() if decay[id(p)] == 0}
    assert spared == {name for name in parameters
                      if name.endswith(".bias") or "norm" in name.lower() or name == "log_scale"}
    assert {"log_scale", "swin.layernorm.weight", "image_projection.weight"} - spared == {"image_projection.weight"}


def test_a_plan_shows_every_study_once_per_epoch():
    plan = schedule.Plan([1] * 29, train.Processes(), batch_size=4, accumulate=3, epochs=2, max_steps=None, seed=0)
    assert plan.steps_per_epoch == 3 and plan.steps == 6
    assert [step for step in range(8) if plan.validates(step)] == [3, 6]
    orders = []
    for epoch in range(2):
        steps = [plan.shares(3 * epoch + i) for i in range(3)]
        assert all(share.epoch == epoch for shares in steps for share in shares)
        orders.append([n for shares in steps for share in shares for n in share.batch])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(29)) and orders[0] != orders[1]


def poisoned(monkeypatch, which):
    """Makes the loss of stage 1 infinite in the steps `which`, before it is divided."""
    original, calls = train.Stage1.step, []

    def step(self, *args):
        loss = original(self, *args)
        calls.extend([len(calls)] * self.model.training)
        poison = math.inf if self.model.training and calls[-1] in which else 1
        return loss._replace(contrastive=loss.contrastive * poison)

    monkeypatch.setattr(train.Stage1, "step", step)


def test_a_loss_that_is_not_finite_names_step_and_studies_and_is_left_out(toy, tmp_path, monkeypatch, capfd):
    poisoned(monkeypatch, {1, 2, 3, 5})
    argv = [*toy[1], "--stage", "1", "--batch-size", "8", "--run", str(tmp_path), "--save-every", "1"]
    assert train.main(argv) == 0
    out = capfd.readouterr().out
    assert out.count("; step skipped, no update") == 4
    assert "stage1: step 2: loss inf, gradient norm nan, on the studies train-" in out
    assert "4 steps skipped, since the loss or gradient was not finite" in out
    for path in (tmp_path / "state").iterdir():
        assert all(value.isfinite().all() for value in load_file(path).values() if value.is_floating_point())


def test_four_in_a_row_end_the_run(toy, tmp_path, monkeypatch, capfd):
    poisoned(monkeypatch, {1, 2, 3, 4})
    assert train.main([*toy[1], "--stage", "1", "--batch-size", "8", "--run", str(tmp_path), "--save-every", "1"]) == 1
    err = capfd.readouterr().err.splitlines()[-1]
    assert "step 5: loss inf" in err and "not finite in 4 steps in a row" in err
    (newest,) = (path for path in (tmp_path / "state").iterdir() if "00000004" in path.name)
    assert all(value.isfinite().all() for value in load_file(newest).values() if value.is_floating_point())


def test_a_text_and_a_picture_that_cannot_be_read_name_the_study(toy, one, tmp_path, monkeypatch, capfd):
    shutil.copytree(toy[0] / "data", tmp_path / "data")
    rows = (tmp_path / "data" / "studies.jsonl").read_text().splitlines()
    rows[3] = json.dumps({**json.loads(rows[3]), "report": "The heart \ud800 is normal."})
    (tmp_path / "data" / "studies.jsonl").write_text("\n".join(rows) + "\n")
    argv = [*toy[1], "--stage", "1", "--batch-size", "4", "--run", str(tmp_path / "run"),
            "--data", str(tmp_path / "data")]
    assert train.main(argv) == 2 and "the text of study 'train-3' cannot be tokenized" in capfd.readouterr().err

    original = PictureFile.read

    def read(self, position, out):
        if position // out.size in (14, 15):            # views of train-7
            raise OSError(5, "Input/output error")
        return original(self, position, out)

    monkeypatch.setattr(PictureFile, "read", read)
    kept, shut = [], schedule.shut
    monkeypatch.setattr(schedule, "shut", lambda loader: kept.append(loader) or shut(loader))
    for workers in ("0", "2"):
        assert train.main(tuning(toy, one, tmp_path / "pictures", "--workers", workers)) == 2
        assert capfd.readouterr().err.splitlines()[-1] == \
            f"{toy[0]}/data: study 'train-7' cannot be read: [Errno 5] Input/output error; prepare the data set again"
        assert len(kept.pop()._workers if workers == "2" else []) == int(workers)
        # a loader process that outlives its run would hold up the interpreter's end
        assert not multiprocessing.active_children()


def test_pictures_cut_off_under_a_run_end_it_in_one_line(toy, tmp_path, monkeypatch, capfd):
    shutil.copytree(toy[0] / "data", tmp_path / "data")
    loaded = train.loaded
    pictures = tmp_path / "data" / "images.npy"
    monkeypatch.setattr(train, "loaded", lambda *args: (os.truncate(pictures, 10_000), loaded(*args))[1])
    err = fails(capfd, [*toy[1], "--stage", "1", "--run", tmp_path / "run", "--data", tmp_path / "data"])
    assert f"\n{tmp_path}/data: study 'train-" in err
    assert "cannot be read: images.npy no longer reaches byte" in err and err.endswith("; prepare the data set again\n")


def test_cut_reports_are_counted(toy, one, tmp_path, capfd):
    assert train.main(tuning(toy, one, tmp_path, "--report-tokens", "25", "--epochs", "1")) == 0
    tokenizer = tiny.pieces()
    long = sum(len(tokenizer.encode(tiny.REPORTS[i % 4], special=False)) > 25 for i in range(29))
    assert 0 < long < 29 and f"{long} reports were cut to 25 tokens" in capfd.readouterr().out
    assert sum(row.get("cut", 0) for row in runs.log_of(tmp_path)) == long


def test_generated_scores_choose_the_checkpoint_on_request(toy, one, tmp_path, monkeypatch, capfd):
    seen, given = [], iter([0.3, 0.2])
    original = train.write_reports
    monkeypatch.setattr(train, "write_reports", lambda model, prepared, studies, *args, **more: (
        seen.append([study["id"] for study in studies]), original(model, prepared, studies, *args, **more))[1])
    monkeypatch.setattr(train, "score", lambda *args, **more: time.sleep(0.3) or {"BLEU-4": 0.5, "CIDEr": next(given)})
    assert train.main(tuning(toy, one, tmp_path, "--select", "CIDEr", "--val-reports", "2", "--max-new-tokens", "4",
                             "--samples", "0")) == 0
    _, header = newest_state(tmp_path / "state", "stage2")
    steps = sum(sum(row["seconds"].values()) for row in read_rows(tmp_path / "log.jsonl") if "loss" in row)
    assert header["facts"]["seconds"] > 0.6 + steps
    assert seen == [["val-0", "val-2"]] * 2                     # a fixed subset of val, and never of test
    assert "best CIDEr on val: 0.3000 after step 4" in capfd.readouterr().out
    model = trrg.load(tmp_path / "ckpt.safetensors")
    assert model.header["step"] == 4 and model.header["validation"]["CIDEr"] == 0.3
    assert model.header["trained_on"] == {"source": None, "studies": 29, "steps": 4, "pictures": 58}


def test_bf16_trains_and_its_checkpoint_writes_without_autocast(toy, one, tmp_path, capfd):
    assert train.main(tuning(toy, one, tmp_path, "--precision", "bf16", "--max-steps", "2")) == 0
    table = {line.split()[0]: line.split()[-1] for line in capfd.readouterr().out.splitlines() if line.strip()}
    types = [table[part] for part in ("swin", "language_model", "mapper")]
    assert types == ["bfloat16", "bfloat16/float32", "float32"]
    model = trrg.load(tmp_path / "ckpt.safetensors")
    assert model.swin.layernorm.weight.dtype == torch.bfloat16 and model.mapper.weight.dtype == torch.float32
    assert len(model.write(tiny.batch(views=2), max_new_tokens=4)[0]) == 2


def test_checkpointing_changes_no_bit(toy, one, tmp_path):
    for stage in (["--stage", "1"], [*WRITER, "--stage", "2", "--stage1", str(one / "stage1.safetensors")]):
        for name, extra in (("plain", []), ("again", ["--checkpointing"])):
            argv = [*toy[1], *stage, "--run", str(tmp_path / name), "--max-steps", "2", *extra]
            assert train.main(argv) == 0
    for name in ("stage1", "ckpt"):
        assert runs.same_weights(tmp_path / "plain" / f"{name}.safetensors", tmp_path / "again" / f"{name}.safetensors")
