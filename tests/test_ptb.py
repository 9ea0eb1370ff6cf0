"""The tokens against those recorded from pycocoevalcap (tests/bench/record_metrics.py)."""

import json
from pathlib import Path

import pytest

from metrics.ptb import _REACHES_OVER_BLANK, DROPPED, _all_tokens, tokenize

RECORDED = json.loads((Path(__file__).parent / "golden" / "ptb.json").read_text(encoding="utf-8"))


def test_recorded_texts_are_identical():
    wrong = [(text, wanted, tokenize(text)) for text, wanted in RECORDED if tokenize(text) != wanted]
    assert not wrong and len(RECORDED) == 440


@pytest.mark.parametrize("text, tokens", [
    ("IMPRESSION:1. No mass.", "impression :1 no mass"),
    ("chest CT. No MASS. seen", "chest ct. no mass. seen"),
    ("(stable) [old] {x}", "-lrb- stable -rrb- -lsb- old -rsb- -lcb- x -rcb-"),
    ("2.3cm 2cm x2.3 2.5-3.0", "2.3 cm 2cm x2 .3 2.5-3 .0"),
    ("doesn't cannot patient's they'll be", "does n't can not patient 's they 'll be"),
    ("1 1/2 cm at T8-T9 and/or +/-", "1\u00a01/2 cm at t8-t9 and/or + /"),
    ("type B. The lung. type A. no", "type b the lung type a. no"),
    ("type A. <b> x", "type a <b> x"),
    ("no. 3 is no. Fig. 2", "no. 3 is no fig. 2"),
    ("normal.The effusion,no effusion,left-sided", "normal.the effusion no effusion,left-sided"),
    ("al.-2.5 Rt.-a Rt.-sided", "al. -2.5 rt. a rt.-sided"), ("[a[b]@c.org] a@b.com>", "-lsb- a[b]@c.org] a@b.com>"),
    ("", ""), ("...", ""), ("\u200b\ufeff", ""),
])
def test_worked_examples(text, tokens):
    assert tokenize(text) == tokens


def test_line_separators_and_control_characters_are_blanks():
    for separator in "\n\r\v\f\x1c\x85\u2028\u2029\x00":
        assert "\n" not in tokenize(f"no effusion{separator}lungs clear")
        assert tokenize(f"lungs{separator}clear").split()[0] == "lungs"
    assert tokenize("a\rb\u2028c") == "a b c"


def test_reading_piece_by_piece_changes_nothing():
    """The short cut for texts without a rule that reaches over a blank equals lexing the text as a whole."""
    short = [text for text, _ in RECORDED if not _REACHES_OVER_BLANK.search(text + " ")]
    assert len(short) > 50
    for text in short:
        whole = _all_tokens(" ".join(text.split()) + "\n")
        assert tokenize(text) == " ".join(token for token in whole if token not in DROPPED)
