"""The plan that train.py prints: its lines, how what is measured corrects it, and whose minutes count."""

import train
from training import demo, timetable
from training.options import arguments
from training.timetable import MEASURED, Part, Timetable, minutes, slowness


def plan(monkeypatch, *parts):
    """(a Timetable of these parts, what it says, a clock to be moved by hand)."""
    said, clock = [], [100.0]
    monkeypatch.setattr(timetable.time, "perf_counter", lambda: clock[0])
    return Timetable(list(parts), said.append), said, clock


def test_the_parts_are_numbered_with_their_minutes(monkeypatch):
    _, said, _ = plan(monkeypatch, Part("a", "drawing", 90), Part("b", "a model, beside c", 60, beside=True),
                      Part("c", "stage 1"))
    assert said == ["1 of 3 drawing: about 1.5 min", "2 of 3 a model, beside c: about 1.0 min", "3 of 3 stage 1"]
    assert (minutes(7199), minutes(7200), minutes(3)) == ("120.0 min", "2.0 h", "0.1 min")


def test_what_took_twice_as_long_makes_the_rest_twice_as_long(monkeypatch):
    """What runs beside another part adds nothing to what is left, and is corrected as well."""
    table, said, clock = plan(monkeypatch, Part("a", "A", 60), Part("b", "B", 90, beside=True), Part("c", "C", 120))
    table.begin("a")
    assert said.pop() == "1 of 3 A; about 3.0 min to go"
    clock[0] += 120
    table.end()
    table.begin("c")
    assert said.pop() == "3 of 3 C; about 4.0 min to go"
    assert [part.seconds for part in table.parts] == [120, 180, 240]


def test_where_nothing_is_known_nothing_is_said(monkeypatch):
    table, said, clock = plan(monkeypatch, Part("a", "A"), Part("b", "B"))
    table.begin("a")
    assert said[-1] == "1 of 2 A"
    clock[0] += 60
    table.end()
    table.begin("b")
    assert said[-1] == "2 of 2 B"


def test_a_stage_is_measured_by_its_own_steps(monkeypatch):
    """The first step waits for all that comes before it, so it is no measure of the others."""
    table, said, clock = plan(monkeypatch, Part("stage1", "S1", 100), Part("stage2", "S2", 50))
    table.begin("stage1")
    clock[0] += 30                                                        # before the first step
    steps = 4 * MEASURED
    for done in range(1, steps + 1):
        clock[0] += 2
        table.measured(done, steps)
    assert said[2:] == ["1 of 2 S1; about 2.5 min to go", "stage1: 80 steps of 2.00 s: about 2.7 min"]
    whole = 30 + 2 * steps
    assert table.parts[0].seconds == whole and table.parts[1].seconds == 50 * whole / 100
    table.end()
    table.begin("stage2")
    for done in range(1, MEASURED + 1):                                   # as few as are measured: nothing to tell
        table.measured(done, MEASURED)
    assert said[-1] == f"2 of 2 S2; about {50 * whole / 100 / 60:.1f} min to go"


def test_slowness_is_relative_to_the_reference(monkeypatch):
    assert timetable.work().shape == (784, 128) and timetable.work().isfinite().all()
    clock = [0.0]
    monkeypatch.setattr(timetable.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timetable, "work", lambda: clock.__setitem__(0, clock[0] + 3 * timetable.REFERENCE))
    assert abs(slowness() - 3) < 1e-9


def test_what_a_command_line_plans(tmp_path, monkeypatch):
    """The demo's parts where they are missing, the stages that are asked for, and minutes in proportion to visits."""
    monkeypatch.setattr(train, "slowness", lambda: 2.0)
    here = ["--data", str(tmp_path / "data"), "--weights", str(tmp_path / "weights")]
    parts = train.expected_parts(arguments(here))
    assert [part.name for part in parts] == ["drawing", "meaning", "writing", "stage1", "stage2"]
    assert [part.name for part in parts if part.beside] == ["writing"] and all(part.seconds > 0 for part in parts)

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").touch()
    (tmp_path / "weights" / "mistral").mkdir(parents=True)
    (tmp_path / "weights" / "mistral" / "model.safetensors").touch()
    (one,), (two,) = (train.expected_parts(arguments([*here, "--stage", "2", "--epochs", str(n)])) for n in (3, 6))
    assert (one.name, two.seconds) == ("stage2", 2 * one.seconds)
    assert one.seconds == 2.0 * demo.VISIT[1] * 3 * demo.STUDIES[0]
    (few,) = train.expected_parts(arguments([*here, "--stage", "2", "--max-steps", "10", "--batch-size", "8"]))
    assert few.seconds == 2.0 * demo.VISIT[1] * 10 * 8
    assert [part.seconds for part in train.expected_parts(arguments(["--preset", "mimic_cxr"]))] == [None, None]
