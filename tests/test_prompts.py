"""The clue prompts and the zero-shot pairs: their wording, and their order."""

from data.prompts import clue_prompt, clue_prompts, clue_sentences, zero_shot_pairs
from data.reports import LABELS


def test_the_papers_template():
    assert clue_prompt("mild", "pneumonia", "the right lower lung zone") == "Clue: mild pneumonia at the right lower lung zone"
    assert clue_prompt("", "pneumonia", "the lungs") == "Clue: pneumonia at the lungs"


def test_wordings_of_their_own():
    bank = dict(zip(LABELS, clue_prompts()))
    assert bank["No Finding"] == ["Clue: no finding, the lungs are clear and the heart is normal"]
    assert bank["Support Devices"][:2] == ["Clue: support device in place", "Clue: central venous catheter in place"]


def test_the_general_prompt_stands_first_and_names_no_side():
    whole, one = clue_prompts(), clue_prompts(1)
    assert [prompts[0] for prompts in whole] == [prompt for prompt, in one]
    assert not any(side in prompt for prompt, in one for side in ("right", "left"))
    assert len(set(sum(whole, []))) == len(sum(whole, []))
    assert len(dict(zip(LABELS, whole))["Pneumonia"]) == 1 + 3 * 6            # severities × zones


def test_no_finding_has_a_pair_of_its_own():
    pairs = dict(zip(LABELS, zero_shot_pairs()))
    assert pairs["No Finding"] == ("no finding", "abnormal")
    assert pairs["Pneumothorax"] == ("pneumothorax", "no pneumothorax")
    assert all(negative == f"no {positive}" for name, (positive, negative) in pairs.items() if name != "No Finding")


def test_the_reports_own_sentences_as_clue_prompts():
    """Present ones only, most frequent first; "No Finding" names nothing else; who is named nowhere keeps its prompts."""
    edema, none, heart = (LABELS.index(name) for name in ("Edema", "No Finding", "Cardiomegaly"))
    coded = {"Edema, mild.": {edema: 1}, "Edema, severe.": {edema: 1}, "No edema.": {edema: 2, none: 1},
             "A normal chest.": {none: 1}, "Perhaps a large heart.": {heart: 3}}

    def label(texts):
        return [[coded[text].get(i, 0) for i in range(14)] for text in texts]

    reports = [["Edema, mild.", "Perhaps a large heart."], ["Edema, severe."], ["Edema, severe.", "No edema."], ["A normal chest."]]
    bank = clue_sentences(reports, label)
    assert bank[edema] == ["Edema, severe.", "Edema, mild."] and bank[none] == ["A normal chest."]
    assert bank[heart] == clue_prompts()[heart] and len(bank) == 14
    assert clue_sentences(reports, label, most=1)[edema] == ["Edema, severe."]
