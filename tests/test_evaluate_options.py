"""evaluate.py: no option is accepted and ignored. What an option says of itself is held against what really happens."""

import argparse

import pytest

import evaluate
from evaluation import checkpoint, image, listing, serve, swap
from tests import tiny

OPTIONS = [option for option in evaluate.parser()._actions if option.dest != "help"]
CHOOSE = ("--ckpt", "--reports", "--image", "--explain", "--swap", "--list", "--serve")     # these say which way it is
# A command line per way to evaluate, and which of MODES it is.
WAYS = {
    "reports": (["--reports", "{run}/pairs.jsonl"], {"reports", "scores", "r2gen"}),
    "reports, coco": (["--reports", "{run}/pairs.jsonl", "--protocol", "coco"], {"reports", "scores"}),
    "labels of reports": (["--reports", "{run}/pairs.jsonl", "--labels-only"], {"reports"}),
    "stage 1": (["--ckpt", "{run}/stage1.safetensors"], {"stage1"}),
    "stage 2": (["--ckpt", "{run}/ckpt.safetensors"], {"stage2", "scores", "r2gen"}),
    "stage 2, coco": (["--ckpt", "{run}/ckpt.safetensors", "--protocol", "coco"], {"stage2", "scores"}),
    "labels of stage 2": (["--ckpt", "{run}/ckpt.safetensors", "--labels-only"], {"stage2"}),
    "swap": (["--ckpt", "{run}/ckpt.safetensors", "--swap"], {"swap"}),
    "list": (["--ckpt", "{run}/ckpt.safetensors", "--list", "{run}/list.jsonl"], {"list"}),
    "rexrank": (["--reports", "{run}/pairs.json"], {"reports", "scores", "r2gen", "sections"}),
    "image": (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/frontal.png"], {"image"}),
    "serve": (["--ckpt", "{run}/ckpt.safetensors", "--serve"], {"serve"}),
    "explain": (["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/frontal.png", "--explain"], {"explain"}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder)
    (folder / "pairs.jsonl").write_text('{"id": 1, "hypothesis": "no edema", "reference": "no effusion"}\n')
    (folder / "pairs.json").write_text('{"1": {"model_prediction": "no edema", "section_findings": "no effusion"}}')
    (folder / "list.jsonl").write_text('{"id": 1, "images": ["frontal.png"]}')
    return folder


def value_of(option):
    """An option on a command line, its default where it has one: that must not be accepted either where nothing reads
    it."""
    name = option.option_strings[0]
    if option.nargs == 0:
        return [name]
    if option.default is not None:
        return [name, str(option.default)]
    return [name, str(option.choices[0] if option.choices else 3)]


def test_every_option_says_where_it_is_read():
    for option in OPTIONS:
        assert option.modes and set(option.modes) <= evaluate.MODES.keys(), option.dest


@pytest.mark.parametrize("way", WAYS)
def test_what_nothing_reads_is_refused(run, capsys, way):
    words, modes = WAYS[way]
    words = [word.format(run=run) for word in words]
    for option in OPTIONS:
        if set(option.modes) & modes or option.option_strings[0] in (*words, *CHOOSE):
            continue
        # First, so that a list of pictures does not swallow it.
        assert evaluate.main([*value_of(option), *words]) == 2, option.dest
        told = capsys.readouterr().err
        assert option.option_strings[0] in told and told.count("\n") == 1, told
        assert "has no effect" in told or "which writes no reports" in told, told


@pytest.mark.parametrize("words", [
    ["--ckpt", "{run}/ckpt.safetensors", "--reports", "{run}/pairs.jsonl"], [],
    ["--reports", "{run}/pairs.jsonl", "--image", "{run}/frontal.png"],
    ["--reports", "{run}/pairs.jsonl", "--explain"], ["--ckpt", "{run}/ckpt.safetensors", "--explain"],
    ["--ckpt", "{run}/stage1.safetensors", "--image", "{run}/frontal.png"],
    ["--ckpt", "{run}/stage1.safetensors", "--swap"], ["--reports", "{run}/pairs.jsonl", "--swap"],
    ["--ckpt", "{run}/ckpt.safetensors", "--swap", "--image", "{run}/frontal.png"],
    ["--ckpt", "{run}/ckpt.safetensors", "--image", "{run}/frontal.png", "--explain", "--json"]])
def test_ways_that_do_not_go_together(run, capsys, words):
    assert evaluate.main([word.format(run=run) for word in words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class Noted(argparse.Namespace):
    """A command line that notes what is read of it."""

    def __init__(self, args, seen):
        super().__init__(**vars(args))
        object.__setattr__(self, "seen", seen)

    def __getattribute__(self, name):
        if not name.startswith("_") and name != "seen":
            object.__getattribute__(self, "seen").add(name)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_accepted_is_read(run, tmp_path, monkeypatch, way):
    words, modes = WAYS[way]
    seen = set()

    def noting(module, name):
        work = getattr(module, name)
        monkeypatch.setattr(module, name, lambda args, *rest: work(Noted(args, seen), *rest))

    noting(evaluate, "score_reports")
    noting(image, "report_on_images")
    noting(swap, "evaluate_swaps")
    noting(listing, "report_on_list")
    noting(serve, "serve_page")
    monkeypatch.setattr(serve, "serve", lambda writer, port: None)             # which would wait for a browser
    for name in ("evaluate_alignment", "evaluate_trrg"):
        noting(checkpoint, name)
    more = [] if modes & {"image", "explain", "serve"} else ["--out", str(tmp_path)]
    more += ["--draws", "2"] if modes & {"scores", "stage1", "swap"} else []
    more += ["--labeler", "phantom"] if "labels" in way else []
    assert evaluate.main([*(word.format(run=run) for word in words), *more]) == 0
    accepted = {option.dest for option in OPTIONS if set(option.modes) & modes} - {"swap", "serve"}
    assert accepted <= seen, f"accepted, but read by nothing: {accepted - seen}"


def test_a_seed_reaches_the_bootstrap_of_stage_1(run, tmp_path):
    """Not only read, but of effect."""
    texts = []
    for seed, draws in (("0", "50"), ("1", "50"), ("0", "60")):
        out = tmp_path / f"{seed}-{draws}"
        assert evaluate.main(["--ckpt", str(run / "stage1.safetensors"), "--seed", seed, "--draws", draws,
                              "--batch-size", "2", "--out", str(out)]) == 0
        texts.append((out / "metrics.json").read_text().partition('"retrieval"')[2])
    assert len(set(texts)) == 3
