"""The experiments' driver and measures, at toy size: what is swapped, counted, still to do, and shown in the tables."""

import json
import subprocess
import sys

import pytest

from data.dataset import Prepared
from data.prepare import phantom
from data.reports import LABELS
from evaluation.changed import of_other_findings, outcomes, own_clues
from evaluation.labels import labels_of, phantom_labeler, with_labels
from evaluation.writing import as_row
from metrics.clinical import clinical_scores
from metrics.truth import measure_truth
from tests import tiny
from tests.experiments import __main__ as experiments
from tests.experiments import measures
from tests.experiments.grid import checkpoint, folder
from tests.experiments.tables import tables
from training.options import PRESETS
from training.processes import Processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small phantom and base weights."""
    path = tmp_path_factory.mktemp("experiments")
    phantom(path / "data", (8, 4, 16), 0, tiny.SIZE, 1)
    tiny.write_weights(path / "weights")
    return path


@pytest.fixture
def args(place, tmp_path):
    def parsed(*more):
        given = ["--data", str(place / "data"), "--weights", str(place / "weights"), "--runs", str(tmp_path / "runs"),
                 "--results", str(tmp_path / "results.jsonl"), "--seeds", "1", *more]
        (tmp_path / "runs").mkdir(exist_ok=True)
        found = experiments.parser().parse_args(given)
        found.given = given
        return found
    return parsed


def jobs_of(args, only=("ladder", "swap")):
    return {job.name: job for job in experiments.with_needed(experiments.experiments(args, 0), only)}


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def test_what_each_kind_of_swap_and_mix_injects(place):
    prepared = Prepared(place / "data")
    studies, model = prepared.split("test"), tiny.model()
    own = own_clues(outcomes(model, prepared, studies, Processes(), 16, write=False))
    present = [{i for i, value in enumerate(study["labels"]) if value == 1} for study in studies]
    injected = {kind: [set(of_study) for of_study in measures.other_clues(model, own, studies, kind).diseases()]
                for kind in (*measures.SWAPS, *measures.MIXES)}
    assert injected["none"] == [set()] * len(studies)
    assert all(len(clues) == 3 and not clues & {*true, LABELS.index("No Finding")}
               for clues, true in zip(injected["absent"], present))
    assert all(clues <= true and len(clues) == min(3, len(true)) for clues, true in zip(injected["true"], present))
    others = of_other_findings([study["labels"] for study in studies])
    assert all(present[other] != true for other, true in zip(others, present))
    assert injected["another"] == [set(own.disease[other].tolist()) for other in others]

    # A mix has as many clues as there are true ones, and the larger share holds what is right of the smaller.
    assert injected["mix-100"] == injected["true"] and not any(a & b for a, b in zip(injected["mix-0"], present))
    right = {kind: [clues & true for clues, true in zip(injected[kind], present)] for kind in measures.MIXES}
    for less, more in zip(list(measures.MIXES), list(measures.MIXES)[1:]):
        assert list(map(len, injected[less])) == list(map(len, injected["true"]))
        assert all(a <= b for a, b in zip(right[less], right[more]))
    assert 0 < sum(map(len, right["mix-33"])) < sum(map(len, right["mix-67"])) < sum(map(len, right["mix-100"]))


def test_counts_a_study_give_the_scores_of_all(place):
    studies = Prepared(place / "data").split("test")
    rows = [as_row(study, studies[i // 2]["report"]) for i, study in enumerate(studies)]
    rows, _ = with_labels(rows, phantom_labeler())
    found = measures.measured(measures.counts(rows))
    found = {name: float(value) for (name,), value in found.values(found.statistics.sum(0)).items()}
    h, r = labels_of(rows, "hypothesis"), labels_of(rows, "reference")
    assert found["micro F1"] == pytest.approx(clinical_scores(h, r)["micro"]["14"]["positive"]["f1"])
    truth = measure_truth(h, r, [[]] * len(rows), [[]] * len(rows)).statistics.sum(0)
    assert (found["invented"], found["missed"]) == pytest.approx((truth[0] / len(rows), truth[1] / len(rows)))


def test_a_metric_stands_under_the_name_it_is_computed_under(place):
    prepared = Prepared(place / "data")
    figures, counts = measures.reports(tiny.model(variant="base"), prepared, prepared.split("test")[:3], Processes())
    assert "METEOR (exact+stem)" in figures and "METEOR" not in figures
    assert figures["side accuracy, n"] >= 0 and all(len(digits) == 3 for digits in counts.values())


# ---------------------------------------------------------------------------------------------------------------------
# The grid


def test_jobs_with_equal_settings_are_one(args):
    grid = experiments.experiments(args(), 0)
    assert grid["clues"]["k 3"].job is grid["clues"]["queries 16"].job is grid["ladder"]["trrg"].job
    assert grid["data"]["100 %, base"].job is grid["ladder"]["base"].job
    assert grid["clues"]["k 1"].job is not grid["ladder"]["trrg"].job
    assert experiments.experiments(args("--train2", "--k 1"), 0)["clues"]["k 1"].job.name == "trrg"


def test_options_of_one_stage_reach_no_other(args):
    given = args("--train", "--epochs 4", "--train1", "--lr 0.5 --sentences 2", "--train2", "--lr 0.25 --accumulate 3")
    jobs = jobs_of(given)
    one, two = (experiments.options(given, jobs[name]) for name in ("stage1", "trrg"))
    assert (one["lr"], one["sentences"], one["accumulate"], one["epochs"]) == (0.5, 2, 1, 4)
    assert (two["lr"], two["sentences"], two["accumulate"], two["epochs"]) == (0.25, PRESETS["demo"]["sentences"], 3, 4)
    less = experiments.experiments(args("--train1", "--epochs 2", "--train2", "--epochs 3"), 0)["data"]["10 %, trrg"].job
    assert less.options[-2:] == ("--epochs", "30") and less.after.options[-2:] == ("--epochs", "20")


def test_what_was_interrupted_is_not_taken_for_finished(args):
    """train.py writes its checkpoint at the first validation already."""
    given = args()
    jobs = jobs_of(given)
    wanted = [jobs["trrg-true"], jobs["trrg-none"]]
    for name in ("stage1", "trrg"):
        experiments.record(given, {"name": name, "seed": 0, "settings": experiments.settings(given, jobs[name]), "metrics": {}})
        folder(given, jobs[name]).mkdir()
        checkpoint(given, jobs[name]).write_bytes(b"the best so far")

    def names(*more):
        return [job.name for job in experiments.outstanding(args(*more), wanted)]

    assert names() == ["stage1", "trrg", "trrg-true", "trrg-none"]
    for name in ("stage1", "trrg"):
        experiments.done(given, jobs[name]).write_text(experiments.digest(given, jobs[name]), encoding="utf-8")
    assert names() == ["trrg-true", "trrg-none"]
    assert names("--limit", "5") == ["stage1", "trrg", "trrg-true", "trrg-none"]          # measured on other studies
    assert experiments.trained(args("--limit", "5"), jobs["trrg"])                        # but trained alike
    assert not experiments.trained(args("--train", "--epochs 2"), jobs["trrg"])
    experiments.record(given, {"name": "trrg-true", "seed": 0, "settings": experiments.settings(given, wanted[0])})
    assert names() == ["trrg-none"]


@pytest.mark.parametrize("code", (0, 3))
def test_only_a_training_that_ended_well_is_done(args, monkeypatch, code):
    given = args()
    job = jobs_of(given)["stage1"]
    folder(given, job).mkdir()
    experiments.done(given, job).write_text(experiments.digest(given, job), encoding="utf-8")

    def train(argv):
        assert not experiments.done(given, job).exists()              # begun again, it is no longer over
        checkpoint(given, job).write_bytes(b"")
        return code

    monkeypatch.setattr(experiments.train, "main", train)
    monkeypatch.setattr(experiments.trrg, "load", lambda *_, **__: tiny.alignment())
    monkeypatch.setattr(measures, "recognition", lambda *_: {"macro AUROC": 0.5})
    assert experiments.work(given, "ladder", job) == code
    assert experiments.trained(given, job) == (code == 0) == bool(experiments.read_results(given.results))


def test_a_failed_job_takes_those_along_that_need_it(args, monkeypatch, capsys):
    given = args("--jobs", "2")
    jobs = jobs_of(given)
    started = []

    def start(args, job):
        started.append(job.name)
        folder(args, job).mkdir()
        (folder(args, job) / "output.txt").write_text("begun\nno room\n")
        return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({5 * (job.name == 'dci')})"])

    monkeypatch.setattr(experiments, "start", start)
    failed = experiments.run(given, [jobs[name] for name in ("stage1", "dci", "dci-true", "trrg", "trrg-true")])
    assert [job.name for job in failed] == ["dci", "dci-true"]
    assert started[0] == "stage1" and set(started) == {"stage1", "dci", "trrg", "trrg-true"}
    assert "FAILED (5)" in (told := capsys.readouterr().out) and "no room" in told and "1 left out for it" in told


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def line(args, job, score=0.5, studies=16):
    counts = {name: "1" * studies for name in measures.COUNTS}
    return {"name": job.name, "seed": job.seed, "settings": json.loads(json.dumps(experiments.settings(args, job))),
            "metrics": {"micro F1": score, "METEOR (exact+stem)": 0.25}, "studies": counts}


def test_tables_hold_no_line_of_other_settings(args, capsys):
    given = args("--only", "ladder", "--limit", "7")
    jobs = jobs_of(given)
    for name in ("base", "dci"):
        experiments.record(given, line(given, jobs[name], studies=7))
    experiments.record(given, line(args(), jobs["cmci"], score=0.75))
    stale = line(given, jobs["trrg"], score=0.625, studies=7)
    stale["settings"]["weights"] = "others"
    experiments.record(given, stale)
    assert experiments.main([*given.given, "--tables"]) == 0
    printed = capsys.readouterr().out
    assert "--limit=7" in printed and "cmci, seed 0; trrg, seed 0" in printed
    assert "0.500" in printed and "0.750" not in printed and "0.625" not in printed and "METEOR (exact+stem)" in printed
    assert "| cmci |" in printed and "| dci | base | +0.000" in printed
    results = experiments.read_results(given.results)
    assert len(experiments.shown(given, results, jobs.values())[0]) == 2
    assert len(experiments.shown(args("--only", "ladder"), results, jobs.values())[0]) == 1


def test_a_table_without_any_result(args):
    grid = experiments.experiments(args(), 0)
    for name in experiments.COLUMNS:
        lines = tables({}, [grid], name)
        assert lines[0].startswith("|") and "–" in lines[2]
    assert "at most k" in "".join(tables({}, [grid], "swap"))
