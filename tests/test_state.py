"""The saved state: whole, the last two, damaged ones noticed; and what must be the same again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from data.dataset import Prepared
from tests import tiny
from training import state
from training.processes import Stopped

CPU = torch.device("cpu")


def trained(steps, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer, steps)
    return model, dict(model.named_parameters()), optimizer


def step(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()


def save(folder, step, parameters, optimizer, **facts):
    state.save_state(folder, "stage1", step, parameters, optimizer, [state.rng_state(CPU)], facts)


def test_a_state_goes_on_bit_for_bit(tmp_path):
    model, parameters, optimizer = trained(3)
    save(tmp_path, 3, parameters, optimizer, best=1.5)
    step(model, optimizer, 4)
    path, header = state.newest_state(tmp_path, "stage1")
    assert header["step"] == 3 and header["facts"] == {"best": 1.5}
    again, of_again, other = trained(0, seed=7)
    state.restore_state(path, of_again, other, 0, CPU)
    step(again, other, 4)
    assert all(torch.equal(p, of_again[name]) for name, p in parameters.items())
    assert all(torch.equal(optimizer.state[p]["exp_avg_sq"], other.state[of_again[name]]["exp_avg_sq"])
               for name, p in parameters.items())


def test_the_last_two_are_kept_and_stages_stay_apart(tmp_path):
    _, parameters, optimizer = trained(1)
    for number in (2, 4, 6, 1000):
        save(tmp_path, number, parameters, optimizer)
    state.save_state(tmp_path, "stage2", 1, parameters, optimizer, [], {})
    assert [int(path.name.split("-")[1]) for path in state.saved_states(tmp_path, "stage1")] == [6, 1000]
    state.drop_states(tmp_path, "stage1")
    assert [path.name[:6] for path in sorted(tmp_path.iterdir())] == ["stage2"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"",
                                    lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]])
def test_damage_is_noticed_and_the_state_before_is_taken(tmp_path, damage):
    _, parameters, optimizer = trained(1)
    save(tmp_path, 2, parameters, optimizer)
    save(tmp_path, 4, parameters, optimizer)
    older, newer = state.saved_states(tmp_path, "stage1")
    newer.write_bytes(damage(newer.read_bytes()))
    said = []
    assert state.newest_state(tmp_path, "stage1", said.append)[0] == older
    assert said == [f"{newer}: damaged, going back to the state before it"]
    older.write_bytes(b"")
    assert state.newest_state(tmp_path, "stage1", said.append) == (None, None) and "there is no older state" in said[-1]


def test_of_one_step_the_last_state_counts_and_the_one_before_it_stays(tmp_path):
    _, parameters, optimizer = trained(1)
    for validated in range(8):                  # the digest of one of them sorts before another's, by chance
        save(tmp_path, 4, parameters, optimizer)
        save(tmp_path, 6, parameters, optimizer, validated=validated)
        save(tmp_path, 6, parameters, optimizer, validated=validated + 1)
        path, header = state.newest_state(tmp_path, "stage1")
        assert header["facts"]["validated"] == validated + 1
        assert [int(path.name.split("-")[1]) for path in state.saved_states(tmp_path, "stage1")] == [4, 6]


@pytest.mark.parametrize("saved", [4, 3])
def test_a_damaged_state_never_pushes_out_a_good_one(tmp_path, saved):
    _, parameters, optimizer = trained(1)
    save(tmp_path, 2, parameters, optimizer)
    save(tmp_path, 4, parameters, optimizer)
    good, bad = state.saved_states(tmp_path, "stage1")
    bad.write_bytes(b"")
    save(tmp_path, saved, parameters, optimizer, again=True)
    assert good.exists() and len(state.saved_states(tmp_path, "stage1")) == 2
    assert all(state.file_digest(path) in path.name for path in tmp_path.iterdir())


def test_what_is_not_finite_is_never_saved(tmp_path):
    _, parameters, optimizer = trained(1)
    save(tmp_path, 1, parameters, optimizer)
    parameters["0.weight"].data[0, 0] = float("nan")
    with pytest.raises(Stopped, match="0.weight is not finite after step 2"):
        save(tmp_path, 2, parameters, optimizer)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_settings_are_named():
    assert state.differences({"--seed": 0, "--lr": 1e-4}, {"--seed": 1, "--lr": 1e-4}) == ["--seed was 0, now 1"]
    assert state.differences({"--seed": 0}, {"--seed": 0}) == []


def test_states_from_before_an_option_go_on():
    """What an older state lacks had its default, but for what was accepted then and not recorded."""
    now = {"--seed": 0, "--k": 3, "--max-new-tokens": 120, "the data set": "a"}
    before = {"--seed": 0, "the data set": "a", "--val-reports": 200}       # recorded then, and read by nothing now
    assert state.differences(before, now) == []
    assert state.differences(before, {**now, "--k": 5}) == ["--k was 3, now 5"]
    assert state.differences({**before, "--max-new-tokens": 100}, now) == ["--max-new-tokens was 100, now 120"]


def test_digests_follow_the_content(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny.write_data(tmp_path / name, seed=seed)
        tiny.write_weights(tmp_path / f"w{name}", seed=seed)
    a, b, c = (state.data_digest(Prepared(tmp_path / name)) for name in "abc")
    assert a == b != c
    a, b, c = (state.weights_digest(tmp_path / f"w{name}/swin", tmp_path / f"w{name}/bert") for name in "abc")
    assert a == b != c


def test_one_run_a_folder(tmp_path):
    lock = state.Lock(tmp_path)
    other = "import sys, pathlib; from training import state; state.Lock(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", other, str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert "another train.py is writing into this folder" in run.stderr
    lock.close()
    assert subprocess.run(command, cwd=root, capture_output=True).returncode == 0


def test_leftovers_of_a_kill_are_removed(tmp_path):
    (tmp_path / "state").mkdir()
    for name in (".stage1.safetensors.77.tmp", "state/.stage1-00000002.draft", "state/..stage1-00000002.draft.77.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "state" / "stage1-00000001-aa.safetensors").touch()
    state.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["stage1-00000001-aa.safetensors"]
