import hashlib
import json
import re

import pytest

from data.reports import LABELS, clean_r2gen_iu, clean_r2gen_mimic, clean_r2gengpt_mimic, clean_report, sentences
from tests import real

# What R2Gen's and R2GenGPT's own code gives (R2Gen IU, R2Gen MIMIC, R2GenGPT MIMIC).
ORIGINALS = [
    ("", " .", " .", " ."),
    ("Seen at T11. No pneumothorax.", "seen at t1no pneumothorax .", "seen at t1no pneumothorax .",
     "seen at t1no pneumothorax ."),
    ("A 4.1 cm mass.", "a 41 cm mass .", "a 41 cm mass .", "a 41 cm mass ."),
    ("Grade 2. Stable.", "grade . stable .", "grade . stable .", "grade . stable ."),
    ("1. One. 2. Two. 3. Three. 4. Four. 5. Five. 6. Six.", "one . two . three . four . five . 6 . six .",
     "one . two . three . four . five . 6 . six .", "one . two . three . four . five . 6 . six ."),
    ("Right/left <5 mm, \"x\" e.g. [A]: no-one's = @ 3:24 p.m.", "rightleft 5 mm x eg . a no-ones   324 pm .",
     "rightleft 5 mm x eg . a no-ones   324 pm .", "rightleft <5 mm x eg . a : no-ones = @ 3 :24 pm ."),
    ("Lungs  clear\n ___ since ____ prior...", "lungs  clear\n  since  prior .", "lungs clear  since  prior .",
     "lungs clear  since  prior ."),
    ("Effusion...No edema. . . XXXX", "effusionno edema .  .  . xxxx .", "effusionno edema .  .  . xxxx .",
     "effusionno edema .  .  . xxxx ."),
]
PIECES = [". ", "1. ", " 2. ", ". 4. ", " 5. ", "6. ", "..", "...", "_", "__", "  ", "\n", ":", "[", "]", "-", "A", "b",
          "'", '"', "/", "\\", "?", "!", "<", "=", ">", "@", "T11. No", "4.1 cm", "(x)", "{y}", "%", " "]
# SHA-256 of the originals' output on strange_texts(), a line each.
DIGESTS = {
    clean_r2gen_iu: "e8f398a51e210754852e9df2b49cee8be9cc7e1bcd6b920ad027c50401ec9bc8",
    clean_r2gen_mimic: "869e3dcfdd64c44b407b899bde8b48b86588a8901072807c1a6b54d20bc37670",
    clean_r2gengpt_mimic: "6ee35bfe4ebc9ead729228ac0cbad2965d44f77f6620c3aab29a00c8ec5cd51e",
}


def strange_texts():
    for number in range(3000):
        dice = hashlib.sha256(str(number).encode()).digest()
        yield "".join(PIECES[byte % len(PIECES)] for byte in dice[1:2 + dice[0] % 24])


def test_labels_are_in_chexberts_order():
    assert len(LABELS) == len(set(LABELS)) == 14
    assert (LABELS[0], LABELS[2], LABELS[3], LABELS[13]) == (
        "Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "No Finding")
    assert list(LABELS) != sorted(LABELS)


@pytest.mark.parametrize(("text", "iu", "mimic", "gpt"), ORIGINALS)
def test_peers_cleaning_keeps_every_slip(text, iu, mimic, gpt):
    assert clean_r2gen_iu(text) == iu
    assert clean_r2gen_mimic(text) == mimic
    assert clean_r2gengpt_mimic(text) == gpt


@pytest.mark.parametrize("clean", DIGESTS)
def test_peers_cleaning_equals_the_originals_on_strange_texts(clean):
    digest = hashlib.sha256("".join(clean(text) + "\n" for text in strange_texts()).encode()).hexdigest()
    assert digest == DIGESTS[clean]


@pytest.mark.parametrize(("raw", "cleaned"), [
    ("  Lungs \n are\tclear. ", "Lungs are clear."),
    ("1. Cardiomegaly 2. Small effusion. 3. No edema", "Cardiomegaly. Small effusion. No edema"),
    ("1. First\n 2. second\n\n3. Third", "First. second. Third"),
    ("1.Lucency in bone 2.No edema. 3)Mild", "Lucency in bone. No edema. Mild"),
    ("1.4 cm nodule. 2.5 mm at T11.No effusion.", "1.4 cm nodule. 2.5 mm at T11.No effusion."),
    ("Rib 4.The rest", "Rib 4.The rest"),
    ("Stable grade 2. No change. The right rib 4. The rest", "Stable grade 2. No change. The right rib 4. The rest"),
    ("Size 4.1 x 2.0 cm at T11. No effusion.", "Size 4.1 x 2.0 cm at T11. No effusion."),
    ("Hand 1. Fracture. Chest 1. No acute disease.", "Hand. Fracture. Chest. No acute disease."),
    ("Findings:\n - Clear lungs\n - No effusion", "Findings: Clear lungs. No effusion"),
    ("Compared to ___, no change.", "Compared to, no change."),
    ("Discussed with Dr. ___ at 8 a.m. on ___.", "Discussed with at 8 a.m. on."),
    ("Normal chest x-XXXX.", "Normal chest x-ray."),
    ("XXXX are unremarkable. XXXX. Lungs clear.", "Are unremarkable. Lungs clear."),
    ("Left XXXX-A-XXXX and XXXX/granulomas, XXXX's (XXXX).", "Left and granulomas."),
    ("No effusion\n \n No edema", "No effusion. No edema"),
    ("___", ""), ("", ""), (" . ", ""),
])
def test_clean_report(raw, cleaned):
    assert clean_report(raw) == cleaned
    assert clean_report(cleaned) == cleaned


@pytest.mark.parametrize(("raw", "found"), [
    ("Lungs clear. No pneumothorax.", ["Lungs clear.", "No pneumothorax."]),
    ("A 4.1 cm mass. It measured 3.5 before.", ["A 4.1 cm mass.", "It measured 3.5 before."]),
    ("Nodule of 4 mm. in size, 2 cm. Effusion.", ["Nodule of 4 mm. in size, 2 cm.", "Effusion."]),
    ("Seen by Dr. Smith at 3:24 p.m. today vs. before.", ["Seen by Dr. Smith at 3:24 p.m. today vs. before."]),
    ("Told Dr. ___ at 3 p.m. Clear lungs.", ["Told at 3 p.m.", "Clear lungs."]),
    ("Heart normal.No effusion.Clear", ["Heart normal.", "No effusion.", "Clear"]),
    ("1. Cardiomegaly. 2. Edema. 3.", ["Cardiomegaly.", "Edema."]),
    ("lungs clear . no effusion .", ["lungs clear.", "no effusion."]),
    ("XXXX. ___. 12. Effusion? Yes!", ["Effusion?", "Yes!"]),
    ("Cardiomegaly", ["Cardiomegaly"]),
    ("", []), ("___ .. 3.", []),
])
def test_sentences(raw, found):
    assert sentences(raw) == found


def test_sentences_of_the_real_findings():
    path = real("iu_xray_annotation.json")
    reports = [entry["report"] for split in json.loads(path.read_text("utf-8")).values() for entry in split]
    found = [sentences(report) for report in reports]
    assert all(found), "every report with findings has a sentence"
    pieces = [piece for some in found for piece in some]
    # GLoRIA's plainer split gives 4.65 a report on all 3,425.
    assert 4.4 < len(pieces) / len(reports) < 5.2
    for report, some in zip(reports, found, strict=True):
        cleaned = clean_report(report)
        assert clean_report(cleaned) == cleaned
        assert not re.search("XXXX|___|  |\n", cleaned)
        assert " ".join(some).split() == cleaned.split() or len(" ".join(some)) >= len(cleaned) - 12
        decimals = re.findall(r"\d+\.\d+", cleaned)
        assert re.findall(r"\d+\.\d+", "\n".join(some)) == decimals
    assert any(len(piece.split()) == 2 for piece in pieces)
