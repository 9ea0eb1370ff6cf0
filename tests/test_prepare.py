import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import builder, prepare
from data.dataset import Prepared
from data.files import UserError
from data.images import Outshone
from data.source import Source, Study
from tests import test_mimic_cxr, test_openi, test_r2gen, test_table

ROOT = Path(__file__).resolve().parents[1]


def studies(count=30, views=2):
    splits = ("train", "train", "train", "val", "test")
    return [Study(f"s{n}", splits[n % 5], f"Lungs clear in case {n}.", [f"{n}-{v}" for v in range(views)], {"key": n})
            for n in range(count)]


def read(picture, size):
    study, view = map(int, picture.split("-"))
    return np.full((size, size), (2 * study + view) % 251, np.uint8)


def read_some(picture, size):
    """Study 0's second picture is broken, as is every picture of study 7 and the last study's first."""
    if picture in ("0-1", "7-0", "7-1", "29-0"):
        raise UserError(f"{picture}.png: broken")
    return read(picture, size)


def read_slowly(picture, size):
    """The second half takes so long that whoever waits for the first cannot miss it."""
    time.sleep(0.01 if int(picture.split("-")[0]) < 15 else 0.5)
    return read_some(picture, size)


def build(out, some=None, reader=read, workers=1, **others):
    source = Source(studies() if some is None else some, **others)
    return prepare.build(source, reader, out, size=8, workers=workers, options={"source": "test"})


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_three_files_that_the_reader_understands(tmp_path):
    manifest = build(tmp_path / "set")
    assert sorted(os.listdir(tmp_path / "set")) == ["images.npy", "manifest.json", "studies.jsonl"]
    prepared = Prepared(tmp_path / "set")
    assert prepared.images.shape == (60, 8, 8)
    assert [study["views"] for study in prepared.studies] == [[2 * n, 2 * n + 1] for n in range(30)]
    for n, study in enumerate(prepared.studies):
        assert study["report"] == f"Lungs clear in case {n}." and study["key"] == n
        assert [int(picture[0, 0]) for picture in prepared.pictures(study)] == [2 * n, 2 * n + 1]
    assert manifest == prepared.manifest == json.loads((tmp_path / "set/manifest.json").read_text("utf-8"))
    assert manifest["counts"] == {"train": 18, "val": 6, "test": 6} and manifest["pictures"] == 60
    assert manifest["options"] == {"source": "test", "size": 8} and manifest["skipped"] == []


def test_a_study_with_an_unreadable_picture_is_left_out_and_named(tmp_path):
    manifest = build(tmp_path, reader=read_some, left_out=[{"id": "x", "why": "the source's"}])
    prepared = Prepared(tmp_path)
    assert manifest["skipped"] == [{"id": "x", "why": "the source's"}, {"id": "s0", "why": "0-1.png: broken"},
                                   {"id": "s7", "why": "7-0.png: broken"}, {"id": "s29", "why": "29-0.png: broken"}]
    assert manifest["counts"] == {"train": 16, "val": 6, "test": 5} and manifest["pictures"] == 54
    assert [study["id"] for study in prepared.studies] == [f"s{n}" for n in range(30) if n not in (0, 7, 29)]
    assert prepared.images.shape == (54, 8, 8)
    assert sorted(row for study in prepared.studies for row in study["views"]) == list(range(54)), "no row is unused"
    for study in prepared.studies:
        expected = [2 * study["key"], 2 * study["key"] + 1]
        assert [int(picture[0, 0]) for picture in prepared.pictures(study)] == expected


def read_outshone(picture, size):
    """Every picture of the last ten studies has a hot pixel."""
    if int(picture.split("-")[0]) >= 20:
        warnings.warn("a hot pixel", Outshone)
    return read_some(picture, size)


@pytest.mark.parametrize("workers", [1, 2])
def test_pictures_with_outshining_pixels_are_counted(tmp_path, workers, capsys):
    """Of the twenty, two belong to a study that is left out; a build that was killed counts them all the same."""
    def stop_at_29(picture, size):
        if picture == "29-0":
            raise KeyboardInterrupt
        return read_outshone(picture, size)

    assert build(tmp_path / "set", reader=read_outshone, workers=workers)["clipped_pictures"] == 18
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "stopped", reader=stop_at_29)
    assert build(tmp_path / "stopped", reader=read_outshone)["clipped_pictures"] == 18
    assert digest(tmp_path / "set") == digest(tmp_path / "stopped")
    assert build(tmp_path / "clean")["clipped_pictures"] == 0
    prepare._print_summary("set", build(tmp_path / "set", reader=read_outshone))
    assert "18 pictures have a few pixels far brighter than all others" in capsys.readouterr().out


def test_the_same_bytes_for_any_number_of_workers(tmp_path):
    for workers in (1, 2, 5):
        build(tmp_path / str(workers), reader=read_some, workers=workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "2") == digest(tmp_path / "5")


def test_a_finished_data_set_is_left_alone_and_another_is_not_overwritten(tmp_path):
    build(tmp_path)
    before = digest(tmp_path)

    def never(picture, size):
        raise AssertionError("nothing is to be read")

    assert build(tmp_path, reader=never)["counts"]["train"] == 18
    with pytest.raises(UserError, match=r"another source \('test'\); choose another --out"):
        prepare.build(Source(studies()), never, tmp_path, size=8, workers=1, options={"source": "other"})
    with pytest.raises(UserError, match=r"another size \(8\)"):
        prepare.build(Source(studies()), never, tmp_path, size=16, workers=1, options={"source": "test"})
    assert digest(tmp_path) == before
    (tmp_path / "images.npy").unlink()
    build(tmp_path)
    assert digest(tmp_path) == before, "a data set with a file missing is made anew"


def children(pid):
    return subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, workers):
    code = ("import sys; sys.path.insert(0, %r); from tests import test_prepare as t; from data import builder; "
            "builder.SAVE_EVERY = 0; t.build(%r, reader=t.read_slowly, workers=%d)")
    process = subprocess.Popen([sys.executable, "-c", code % (str(ROOT), str(tmp_path / "killed"), workers)],
                               stderr=subprocess.DEVNULL)
    state, limit = tmp_path / "killed" / ".state.part", time.monotonic() + 60
    while time.monotonic() < limit and (not state.exists() or state.read_bytes()[32:].count(builder.READ) < 10):
        time.sleep(0.002)
    pids = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = state.read_bytes()[32:].count(builder.READ)
    assert 10 <= done < 56 and len(pids) == (0 if workers == 1 else workers)
    assert not (tmp_path / "killed" / "manifest.json").exists() and not (tmp_path / "killed" / "images.npy").exists()

    calls = []

    def counting(picture, size):
        calls.append(picture)
        return read_some(picture, size)

    build(tmp_path / "killed", reader=counting)
    assert len(calls) == 60 - done, "what was read is not read again"
    build(tmp_path / "whole", reader=read_some)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    while time.monotonic() < limit and any(Path("/proc", pid).exists() for pid in pids):
        time.sleep(0.05)
    assert not any(Path("/proc", pid).exists() for pid in pids), "no worker outlives its parent"


class Stop(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("step", range(15))
def test_stopped_at_any_step_of_the_end(tmp_path, monkeypatch, step):
    build(tmp_path / "whole", reader=read_some)
    counter = iter(range(1000))

    def stopping(call):
        def stopped(*args, **kwargs):
            if next(counter) == step:
                raise Stop
            return call(*args, **kwargs)
        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping(os.replace))
        patch.setattr(os, "fsync", stopping(os.fsync))
        patch.setattr(builder, "_header", stopping(builder._header))
        with pytest.raises(Stop):
            build(tmp_path / "stopped", reader=read_some)
        assert not (tmp_path / "stopped" / "manifest.json").exists()
    build(tmp_path / "stopped", reader=read_some)
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_a_mended_picture_is_used_and_a_changed_plan_starts_over(tmp_path, monkeypatch):
    def stop_at_20(picture, size):
        if picture == "20-0":
            raise KeyboardInterrupt
        return read_some(picture, size)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "mended", reader=stop_at_20)
    assert build(tmp_path / "mended")["counts"] == {"train": 18, "val": 6, "test": 6}
    build(tmp_path / "whole")
    assert digest(tmp_path / "mended") == digest(tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "changed", reader=stop_at_20)
    other = [study._replace(report="Other words.") for study in studies()]
    build(tmp_path / "changed", some=other[::-1])
    build(tmp_path / "other", some=other[::-1])
    assert digest(tmp_path / "changed") == digest(tmp_path / "other")


def test_lost_parts_are_read_again(tmp_path):
    def stop_at_20(picture, size):
        if picture == "20-0":
            raise KeyboardInterrupt
        return read(picture, size)

    build(tmp_path / "whole")
    for name in (".images.npy.part", ".state.part"):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / name, reader=stop_at_20)
        (tmp_path / name / name).unlink()
        build(tmp_path / name)
        assert digest(tmp_path / name) == digest(tmp_path / "whole"), "no row may stay black"


def die(picture, size):
    os._exit(9)


def test_a_dead_worker_is_said(tmp_path):
    with pytest.raises(UserError, match="a worker process has died"):
        build(tmp_path, reader=die, workers=2)


def test_anothers_manifest_is_not_overwritten(tmp_path):
    for text in ("[]", "{}", "not JSON", '{"options": 3}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="not the manifest of a prepared data set"):
            build(tmp_path)
        assert (tmp_path / "manifest.json").read_text() == text


def test_repeats_are_counted_for_every_data_set(tmp_path):
    some = studies()
    for n in (0, 3, 4, 9):
        some[n] = some[n]._replace(report="Normal.")
    assert build(tmp_path, some=some)["repeats"] == {"val": 1, "test": 2}


def test_text_only(tmp_path):
    manifest = build(tmp_path, reader=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "studies.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "studies.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 30 and all(line["views"] == [] for line in lines)
    assert manifest["counts"]["train"] == 18 and manifest["options"]["size"] is None


def test_what_cannot_be_a_data_set(tmp_path):
    with pytest.raises(UserError, match="two studies have the id 's1'"):
        build(tmp_path / "x", some=studies()[:2] + studies()[1:2])
    with pytest.raises(UserError, match="split 'dev' is none"):
        build(tmp_path / "x", some=[studies()[0]._replace(split="dev")])
    with pytest.raises(UserError, match="RAW: no study is left; 1 of 1 .* no words in the report; .* docs/data.md"):
        build(tmp_path / "x", some=[studies()[0]._replace(report=" ___. 12 ")], folder="RAW")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="no study is left: the source is empty"):
        build(tmp_path / "x", some=[])
    # What the source itself left out is not why: the pictures are.
    others = [{"id": str(n), "why": "no findings in the report"} for n in range(5)]
    with pytest.raises(UserError, match="RAW: no study is left; 1 of 1 .* 0-1.png: broken"):
        build(tmp_path / "x", some=studies()[:1], reader=read_some, left_out=others, folder="RAW")
    assert not list((tmp_path / "x").iterdir()), "no parts stay behind"
    manifest = build(tmp_path / "y", some=studies()[:3] + [studies()[3]._replace(report="XXXX.")])
    assert manifest["skipped"] == [{"id": "s3", "why": "no words in the report"}]


def test_too_little_disk_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="GB are free"):
        build(tmp_path)


def test_phantom(tmp_path):
    manifest = prepare.phantom(tmp_path / "one", counts=(4, 1, 2), seed=3, size=32, workers=1)
    assert manifest["counts"] == {"train": 4, "val": 1, "test": 2}
    assert manifest["pictures"] == sum(len(study["views"]) for study in Prepared(tmp_path / "one").studies) > 7
    prepare.phantom(tmp_path / "two", counts=(4, 1, 2), seed=3, size=32, workers=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    study = Prepared(tmp_path / "one").studies[0]
    assert len(study["labels"]) == 14 and "findings" in study
    assert np.load(tmp_path / "one/images.npy").std() > 10


def test_the_command(tmp_path, capsys):
    command = ["phantom", "--out", str(tmp_path / "set"), "--studies", "3", "1", "1", "--size", "32", "--workers", "2"]
    first = subprocess.run([sys.executable, "-m", "data.prepare", *command], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0 and "3 / 1 / 1 studies" in first.stdout and first.stderr == ""
    before = digest(tmp_path / "set")
    assert prepare.main(command) == 0
    assert "already prepared" in capsys.readouterr().out and digest(tmp_path / "set") == before
    for wrong in (command + ["--seed", "1"], command + ["--seed", "-1"], command + ["--size", "a"],
                  command + ["--wrong"], [], ["openi", "--raw", str(tmp_path / "no"), "--out", str(tmp_path / "x")]):
        assert prepare.main(wrong) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("out", ["file", "file/x", "file/x/y"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, out):
    (tmp_path / "file").write_text("")
    assert prepare.main(["phantom", "--out", str(tmp_path / out)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"{tmp_path / out}: can't be written" in message and "--out" in message


def test_a_terminal_without_utf8_ends_nothing(tmp_path):
    """The summary names three of the studies left out and an ellipsis, which ASCII lacks."""
    entries = [{"id": f"Grü{n}", "report": "x" if n else "Clear.", "image_path": [f"{n}.png"]} for n in range(6)]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": entries}), "utf-8")
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8), 99).save(tmp_path / "images/0.png")
    command = ["r2gen", "--raw", str(tmp_path), "--out", str(tmp_path / "set"), "--workers", "1"]
    done = subprocess.run([sys.executable, "-m", "data.prepare", *command], cwd=ROOT, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (done.returncode, done.stderr) == (0, b"") and b"5  left out: no such file (" in done.stdout


def test_ctrl_c_while_it_imports_is_one_line(tmp_path):
    """A torch that sends the signal stands in for a user who presses the keys in these seconds."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run([sys.executable, "-m", "data.prepare", "phantom", "--out", str(tmp_path / "set")], cwd=ROOT,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (130, "stopped; the same command continues from here\n")


def test_ctrl_c_while_it_forks_is_not_lost(tmp_path):
    """Python drops what is raised in the hooks that run around a fork."""
    hook = ("import os, runpy, signal, sys\n"
            "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
            "sys.argv[0] = 'data.prepare'\n"
            "runpy.run_module('data.prepare', run_name='__main__')\n")
    command = ["phantom", "--out", str(tmp_path / "set"), "--studies", "300", "1", "1", "--size", "64", "--workers", "2"]
    done = subprocess.run([sys.executable, "-c", hook, *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped; the same command continues from here\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_it_draws_is_one_line_and_loses_nothing(tmp_path, workers):
    command = ["phantom", "--out", str(tmp_path / "set"), "--studies", "3000", "1", "1", "--size", "64",
               "--workers", str(workers)]
    process = subprocess.Popen([sys.executable, "-m", "data.prepare", *command], cwd=ROOT, stderr=subprocess.PIPE,
                               text=True)
    state, limit = tmp_path / "set/.state.part", time.monotonic() + 60
    while time.monotonic() < limit and not state.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and error.splitlines()[-1] == "stopped; the same command continues from here"
    assert "Traceback" not in error and state.exists()


# A value that is not the default, for every option of every source: a new option can't escape.
VALUES = {"--size": ["17"], "--workers": ["3"], "--views": ["1"], "--text-only": [], "--target": ["impression"],
          "--seed": ["5"], "--split-from": ["SPLIT"], "--count": ["images"], "--studies": ["3", "1", "1"]}


def options_of(source):
    """The optional arguments of a source's own parser."""
    sources = next(action for action in prepare._parser()._actions if action.dest == "source").choices
    return [action.option_strings[0] for action in sources[source]._actions
            if action.option_strings and not action.required and action.dest != "help"]


@pytest.mark.parametrize("source, raw", [
    ("openi", lambda raw: test_openi.small(raw)), ("r2gen", lambda raw: test_r2gen.small(raw)),
    ("mimic_cxr", lambda raw: test_mimic_cxr.tree(raw)), ("csv", lambda raw: test_table.tree(raw)),
    ("csv", lambda raw: test_table.tree(raw, test_table.THREE.replace("split", "fold"))), ("phantom", None)])
def test_no_option_is_accepted_and_ignored(tmp_path, monkeypatch, capsys, source, raw):
    """Whatever is given beside it, an option changes what is built or is refused by its name."""
    annotation = tmp_path / "annotation.json"
    annotation.write_text(json.dumps({"train": [], "test": [
        {"id": name, "report": "x", "image_path": ["x"]} for name in ("CXR2_IM-0002", "CXR10_IM-0010")]}))
    asked = []

    def record(source, read, out, *, size, workers, options):
        asked.append((source.studies, options, read and (size, workers)))
        return {"found": {}, "skipped": [], "counts": {"train": 0, "val": 0, "test": 0}, "pictures": 0, "repeats": {}}

    monkeypatch.setattr(prepare, "build", record)
    where = [] if raw is None else ["--raw", str(raw(tmp_path / "raw"))]

    def outcome(*options):
        words = [word for option in options for word in (option, *VALUES[option])]
        words = [str(annotation) if word == "SPLIT" else word for word in words]
        code = prepare.main([source, "--out", str(tmp_path / "set"), *where, *words])
        return asked.pop() if code == 0 else capsys.readouterr().err

    few = ["--studies"] if source == "phantom" else []          # 2,800 phantoms would take their time
    refused = set()
    for others in [few, *([*few, option] for option in options_of(source) if option not in few)]:
        before = outcome(*others)
        for option in options_of(source):
            if option not in others and not isinstance(before, str):
                after = outcome(*others, option)
                if isinstance(after, str):
                    assert "has no effect" in after and any(name in after for name in (option, *others)), after
                    refused.add((*others, option))
                else:
                    assert after != before, f"{option} changes nothing beside {others}"
    pairs = {"openi": [("--split-from", "--seed")], "mimic_cxr": [("--count", "--views")]}.get(source, [])
    if source != "phantom":
        pairs += [("--text-only", "--size"), ("--text-only", "--workers")]
    assert {tuple(sorted(pair)) for pair in refused if len(pair) == 2} >= {tuple(sorted(pair)) for pair in pairs}
