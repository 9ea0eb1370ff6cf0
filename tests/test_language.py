"""BLEU, ROUGE-L, CIDEr and METEOR against values recorded from pycocoevalcap (tests/bench/record_metrics.py)."""

import gzip
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import metrics
from data.files import UserError
from data.reports import clean_r2gen_iu, clean_r2gen_mimic
from metrics.bleu import bleu
from metrics.cider import cider
from metrics.meteor import meteor
from metrics.meteor_data import find_data
from metrics.meteor_words import java_hash, normalize
from metrics.rouge import common_length, rouge_l
from metrics.stemmer import stem
from tests.bench.record_metrics import write_meteor_data

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "language.json").read_text(encoding="utf-8"))
HYPOTHESES, REFERENCES = map(list, zip(*RECORDED["pairs"]))


def assert_equal(found, name, tolerance=1e-12):
    corpus, items = RECORDED["scores"][name]
    assert np.allclose(found[0], corpus, rtol=0, atol=tolerance)
    assert np.allclose(found[1], items, rtol=0, atol=tolerance)


def made_up_meteor_data(folder, rows=(("clear", "unremarkable"),)):
    """A folder of METEOR's two files: empty word lists, and a table of these rows."""
    (folder / "data").mkdir(parents=True)
    table = "".join(f"0.5\n{phrase}\n{other}\n" for phrase, other in rows)
    (folder / "data" / "paraphrase-en.gz").write_bytes(gzip.compress(table.encode()))
    with zipfile.ZipFile(folder / "meteor-1.5.jar", "w") as jar:
        for name in ("synsets", "exceptions"):
            jar.writestr(f"synonym/english.{name}", "")
    return folder


@pytest.mark.parametrize("scorer, name", [(bleu, "bleu"), (rouge_l, "rouge"), (cider, "cider")])
def test_scores_equal_the_recorded(scorer, name):
    assert_equal(scorer(HYPOTHESES, REFERENCES), name)


def test_meteor_exact_stem_equals_the_recorded():
    assert_equal(meteor(HYPOTHESES, REFERENCES, data=False), "meteor exact+stem")


@pytest.mark.skipif(find_data() is None, reason="METEOR's data is not installed (pycocoevalcap)")
def test_meteor_full_equals_the_recorded():
    assert_equal(meteor(HYPOTHESES, REFERENCES), "meteor")


def test_meteor_full_equals_the_jar_on_data_of_our_own(tmp_path):
    """Synonyms, irregular forms and paraphrases of up to seven words, on any machine; the jar had the same data."""
    recorded = json.loads((GOLDEN / "meteor.json").read_text(encoding="utf-8"))
    (tmp_path / "data").mkdir()
    write_meteor_data(recorded, tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "meteor-1.5.jar", "w") as jar:
        for name in ("english.synsets", "english.exceptions"):
            jar.write(tmp_path / "data" / name, f"synonym/{name}")
    hypotheses, references = zip(*recorded["pairs"])
    corpus, items = meteor(hypotheses, references, tmp_path)
    assert corpus == pytest.approx(recorded["scores"][0], abs=1e-12)
    assert items == pytest.approx(recorded["scores"][1], abs=1e-12)
    short = meteor(hypotheses, references, False)[1]
    assert sum(abs(a - b) > 1e-6 for a, b in zip(items, short)) > 40, "the data has a say in most pairs"


def test_recorded_pairs_make_every_shortcut_show():
    """Full and exact+stem differ, items differ from the corpus: the comparison above can fail."""
    full, short = RECORDED["scores"]["meteor"], RECORDED["scores"]["meteor exact+stem"]
    assert abs(full[0] - short[0]) > 1e-4 and abs(full[0] - np.mean(full[1])) > 1e-3
    assert sum(a != b for a, b in zip(full[1], short[1])) > 20


def test_stems_equal_the_recorded():
    stems = json.loads((GOLDEN / "stems.json").read_text(encoding="utf-8"))
    assert len(stems) > 3000 and {word: stem(word) for word in stems} == stems


def test_hashes_are_javas():
    assert java_hash("t8") == java_hash("rv") and java_hash("c5") == java_hash("as") != java_hash("sa")
    assert java_hash("hello") == 99162322 and java_hash("\U0001f600") == 0xD83D * 31 + 0xDE00


def test_meteor_words():
    assert normalize("t8-t9 u.s. x") == ["t8", "t9", "us", "x"]
    assert normalize("the patient 's a/b, 3,4. End.") == "the patient ' s a / b , 3,4 . end .".split()
    assert normalize("a ||| b") == ["a", "b"]


def test_hand_worked_values():
    assert rouge_l(["a b c"], [["a c"]])[0] == pytest.approx(2.44 * (2 / 3) / (1 + 1.44 * 2 / 3))
    assert rouge_l([""], [[""]]) == (1.0, [1.0])
    assert common_length("a b c a".split(), "c a b".split()) == 2
    assert bleu(["a b"], [["a b"]])[0][:2] == pytest.approx([1, 1], abs=2e-9)
    assert cider(["a b c d"], [["a b c d"]])[0] == 0
    assert cider(["a b c d", "x"], [["a b c d"], ["x"]]) == (pytest.approx(6.25), pytest.approx([10, 2.5]))
    # One exact content word of two on both sides: P = R = 1/2, one chunk over one matched word.
    assert meteor(["lungs red"], [["lungs blue"]], data=False)[0] == pytest.approx(0.5 * (1 - 0.6))


def test_names_tell_which_meteor():
    scores = metrics.score(["lungs clear"], ["lungs clear"], meteor_data=False)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR (exact+stem)", "ROUGE-L", "CIDEr"]
    if find_data():
        assert "METEOR" in metrics.score(["lungs clear"], ["lungs clear"])


def test_protocols_prepare_as_they_say():
    text = "1. Heart size normal. No effusion (2.3 cm)."
    hypotheses, references = metrics.prepare([text], [[text, "Clear."]], "coco")
    assert hypotheses == ["1 heart size normal no effusion -lrb- 2.3 cm -rrb-"] and references[0][1] == "clear"
    long = "lungs clear. " * 100
    for cleaning, clean, limit in (("iu", clean_r2gen_iu, 60), ("mimic", clean_r2gen_mimic, 100)):
        hypotheses, references = metrics.prepare([long], [long], "r2gen", cleaning)
        assert hypotheses == [" ".join(clean(long).split())] and references == [[" ".join(clean(long).split()[:limit])]]
    assert metrics.prepare(["a"], [long], "r2gen", "iu", 59)[1][0][0].count(" ") == 58


def test_item_order_and_subsets_of_items_leave_item_values():
    order = np.random.default_rng(0).permutation(len(HYPOTHESES))
    for scorer in (bleu, rouge_l, cider, lambda h, r: meteor(h, r, data=False)):
        corpus, items = scorer(HYPOTHESES, REFERENCES)
        shuffled_corpus, shuffled = scorer([HYPOTHESES[i] for i in order], [REFERENCES[i] for i in order])
        assert np.allclose(np.asarray(items)[..., order], shuffled) and np.allclose(corpus, shuffled_corpus)


@pytest.mark.parametrize("hypotheses, references, protocol", [
    ([], [], "coco"), (["a"], [], "coco"), (["a"], [[]], "coco"), ([None], ["a"], "coco"), (["a"], [["a", 3]], "coco"),
    (["a"], ["a"], "best"),
])
def test_mistakes_are_one_line(hypotheses, references, protocol):
    with pytest.raises(UserError) as caught:
        metrics.score(hypotheses, references, protocol, meteor_data=False)
    assert "\n" not in str(caught.value)


def test_wrong_meteor_folder(tmp_path):
    with pytest.raises(UserError, match="meteor-1.5.jar"):
        metrics.score(["a"], ["a"], meteor_data=tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "meteor-1.5.jar").write_bytes(b"no zip")
    (tmp_path / "data" / "paraphrase-en.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError) as caught:
        metrics.score(["a"], ["a"], meteor_data=tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_half_a_surrogate_pair_does_not_break_the_search_for_paraphrases(tmp_path):
    made_up_meteor_data(tmp_path)
    found, none = (metrics.score([f"lungs \ud800 {word}"], ["lungs are clear"], "r2gen", meteor_data=tmp_path)["METEOR"]
                   for word in ("unremarkable", "seven"))
    assert found > none > 0


def test_meteors_tables_are_read_once_per_process(tmp_path, monkeypatch):
    """A second call of one pair opens no file; texts with words that the first call had not are scored right."""
    made_up_meteor_data(tmp_path, [("clear", "unremarkable"), ("no sign of", "free of"), ("clear", "clean as glass")])
    opened = []
    monkeypatch.setattr(gzip, "open", lambda path, open_=gzip.open: opened.append(path) or open_(path))
    first = metrics.score(["lungs unremarkable"], ["lungs clear"], meteor_data=tmp_path)["METEOR"]
    others = [metrics.score([text], ["lungs clear no sign of edema"], meteor_data=str(tmp_path))["METEOR"]
              for text in ("lungs clean as glass free of edema", "lungs xx xx xx xx of edema")]
    assert first > metrics.score(["lungs unremarkable"], ["lungs clear"], meteor_data=False)["METEOR (exact+stem)"]
    assert others[0] > others[1] > 0 and len(opened) == 1


@pytest.mark.skipif(find_data() is None, reason="METEOR's data is not installed (pycocoevalcap)")
def test_a_second_pair_takes_milliseconds():
    metrics.score(["lungs clear"], ["lungs clear"])
    begun = time.perf_counter()
    metrics.score(["no effusion on the left"], ["there is no pleural effusion"])
    assert time.perf_counter() - begun < 0.2


def test_pairs_scored_one_by_one_equal_pairs_scored_together(tmp_path):
    """What METEOR's lexicon remembers of earlier texts has no say."""
    data = made_up_meteor_data(tmp_path, [("normal", "unremarkable"), ("the heart", "cardiac"), ("is", "was")])
    hypotheses, references = HYPOTHESES[:30], REFERENCES[:30]
    together = meteor(hypotheses, references, data)[1]
    assert together == [meteor([a], [b], data)[0] for a, b in reversed(list(zip(hypotheses, references)))][::-1]
