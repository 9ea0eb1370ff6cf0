"""The prepared data set, and visits that depend on nothing but (seed, epoch, study)."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from data.dataset import Prepared, Visits, collate, plan_epoch
from data.files import UserError
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    tiny.write_data(tmp_path / "data")
    return tmp_path / "data"


def test_splits_and_pictures(folder):
    prepared = Prepared(folder)
    assert [len(prepared.split(name)) for name in ("train", "val", "test")] == [12, 4, 4]
    pictures = prepared.pictures(prepared.split("val")[1])
    assert torch.equal(pictures, torch.from_numpy(np.load(folder / "images.npy")[26:28]))
    assert torch.equal(pictures, pickle.loads(pickle.dumps(prepared)).pictures(prepared.split("val")[1]))


def test_visits_are_a_function_of_seed_epoch_and_study(folder):
    prepared = Prepared(folder)
    studies = prepared.split("train")
    a, b = Visits(prepared, studies, 1, tiny.CROP, seed=3), Visits(prepared, studies, 1, tiny.CROP, seed=3)
    torch.manual_seed(1)
    first = a[2, 5]
    torch.manual_seed(99)
    b[0, 0], b[7, 1]
    again = b[2, 5]
    assert torch.equal(first["images"], again["images"]) and first["text"] == again["text"]
    assert not torch.equal(first["images"], a[3, 5]["images"])
    assert not torch.equal(first["images"], Visits(prepared, studies, 1, tiny.CROP, seed=4)[2, 5]["images"])


def test_a_stage_1_visit_draws_every_view_and_sentence_evenly(folder):
    prepared = Prepared(folder)
    visits = Visits(prepared, prepared.split("train"), 1, tiny.SIZE, seed=0)        # no room to crop: jitter only
    texts = [visits[epoch, 0]["text"][0] for epoch in range(300)]
    counts = {text: texts.count(text) for text in set(texts)}
    assert set(counts) == {
        "The heart is normal in size.", "There is a small right pleural effusion.", "No pneumothorax."}
    assert min(counts.values()) > 70
    assert visits[0, 0]["images"].shape == (1, 3, tiny.SIZE, tiny.SIZE)


def test_a_stage_2_visit_shows_all_views_and_the_whole_report(folder):
    prepared = Prepared(folder)
    visit = Visits(prepared, prepared.split("train"), 2, tiny.CROP, seed=0)[0, 1]
    assert visit["images"].shape == (2, 3, tiny.CROP, tiny.CROP) and visit["text"] == tiny.REPORTS[1]


def test_without_a_seed_nothing_is_random(folder):
    prepared = Prepared(folder)
    visits = Visits(prepared, prepared.split("test"), 1, tiny.CROP)
    assert torch.equal(visits[0, 3]["images"], visits[5, 3]["images"])
    assert visits[0, 3]["text"] == visits[9, 3]["text"] == ["Heart size is normal."]


def test_more_sentences_a_visit_on_request(folder):
    prepared = Prepared(folder)
    studies = prepared.split("train")
    fixed = Visits(prepared, studies, 1, tiny.CROP, sentences=4)[0, 0]["text"]
    assert fixed == ["The heart is normal in size.", "There is a small right pleural effusion.", "No pneumothorax.",
                     "The heart is normal in size."]
    visits = Visits(prepared, studies, 1, tiny.CROP, seed=0, sentences=4)
    drawn = [tuple(visits[epoch, 0]["text"]) for epoch in range(20)]
    assert all(len(four) == 4 and set(four) <= set(fixed) for four in drawn) and len(set(drawn)) > 5


def test_collate_stacks_equal_view_counts(folder):
    prepared = Prepared(folder)
    visits = Visits(prepared, prepared.split("train"), 2, tiny.CROP)
    batch = collate([visits[0, n] for n in (4, 2)])
    assert batch["ids"] == ["train-4", "train-2"] and batch["images"].shape == (2, 2, 3, tiny.CROP, tiny.CROP)


def test_a_plan_holds_every_study_once_in_groups_of_equal_views():
    views = [1, 2, 2, 1, 2, 3, 2, 2, 1, 2, 2]
    for seed, epoch in ((None, 0), (0, 0), (0, 1), (5, 3)):
        batches = plan_epoch(views, 3, seed, epoch)
        assert sorted(n for batch in batches for n in batch) == list(range(len(views)))
        assert all(len({views[n] for n in batch}) == 1 and len(batch) <= 3 for batch in batches)
        assert len(batches) == 1 + 3 + 1
    assert plan_epoch(views, 3, 0, 0) == plan_epoch(views, 3, 0, 0) != plan_epoch(views, 3, 0, 1)
    assert plan_epoch([1] * 5, 2) == [[0, 1], [2, 3], [4]]


def test_a_data_set_that_a_windows_editor_has_saved(folder):
    before = Prepared(folder)
    for name in ("studies.jsonl", "manifest.json"):
        path = folder / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    after = Prepared(folder)
    assert after.studies == before.studies and after.manifest == before.manifest


def rewrite(folder, change):
    rows = [json.loads(line) for line in (folder / "studies.jsonl").read_text().splitlines()]
    change(rows)
    (folder / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows[3].pop("report"), "line 4: no report"),
    (lambda rows: rows[1].update(id="train-0"), "line 2: an earlier line has the same id 'train-0'"),
    (lambda rows: rows[0].update(views=[999]), "line 1: views"),
    (lambda rows: rows[0].update(views=[]), "line 1: views"),
    (lambda rows: rows[0].update(views="0"), "line 1: views"),
    (lambda rows: rows[2].update(report=None), "line 3: the report is None, not text"),
    (lambda rows: rows[0].update(split="validate"), "line 1: split 'validate'"),
])
def test_a_broken_line_is_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        Prepared(folder)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: not a prepared data set, studies.jsonl is missing"):
        Prepared(tmp_path / "nowhere")
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:500])
    with pytest.raises(UserError, match="images.npy: cannot be read .*; prepare the data set again"):
        Prepared(folder)
    for strange in (np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 4)),
                    np.asfortranarray(np.zeros((3, 4, 4), np.uint8))):
        np.save(folder / "images.npy", strange)
        with pytest.raises(UserError, match=r"is not uint8 \(N, S, S\); prepare the data set again"):
            Prepared(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_off_while_it_is_read_names_the_study(folder, workers):
    """A memory map would end the process here."""
    prepared = Prepared(folder)
    visits = Visits(prepared, prepared.split("train"), 2, tiny.CROP)
    size = (folder / "images.npy").stat().st_size
    os.truncate(folder / "images.npy", size - 35 * tiny.SIZE ** 2)                # in train-2's views
    loader = torch.utils.data.DataLoader(visits, batch_sampler=[[(0, 0), (0, 1)], [(0, 2)]], collate_fn=collate,
                                         num_workers=workers)
    batches = iter(loader)
    assert next(batches)["ids"] == ["train-0", "train-1"]
    with pytest.raises(UserError) as raised:
        next(batches)
    assert str(raised.value).strip().splitlines()[-1].endswith(
        f"{folder}: study 'train-2' cannot be read: images.npy no longer reaches byte 5248; prepare the data set again")


def test_a_read_that_comes_in_pieces_is_put_together(folder, monkeypatch):
    whole = Prepared(folder).pictures({"id": "a", "views": [3, 9]})
    original = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, position: original(file, [buffers[0][:100]], position))
    assert torch.equal(Prepared(folder).pictures({"id": "a", "views": [3, 9]}), whole)


def test_an_empty_report_names_its_study(folder):
    rewrite(folder, lambda rows: rows[2].update(report=" \n"))
    prepared = Prepared(folder)
    with pytest.raises(UserError, match="study 'train-2' has an empty report"):
        Visits(prepared, prepared.split("train"), 2, tiny.CROP)


def test_too_small_pictures_name_the_remedy(folder):
    prepared = Prepared(folder)
    with pytest.raises(UserError, match="--size 256"):
        Visits(prepared, prepared.split("train"), 2, 224)
    with pytest.raises(UserError, match="--size 448"):
        Visits(prepared, prepared.split("train"), 2, 384)
    with pytest.raises(UserError, match="no study in the split 'val'"):
        rewrite(folder, lambda rows: [row.update(split="train") for row in rows])
        Prepared(folder).split("val")
