"""The clue prompts and the zero-shot pairs: their wording, and their order."""

import pytest

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


@pytest.mark.parametrize("preset, epochs, new_tokens", [("iu_xray", 20, 100), ("mimic_cxr", 5, 150)])
def test_the_presets_are_the_papers(preset, epochs, new_tokens):
    import trrg
    from training.options import arguments

    args = arguments(["--preset", preset])
    assert (args.batch_size, args.lr, args.epochs, args.max_new_tokens) == ((8, 8), (1e-4, 1e-4), (epochs, epochs), new_tokens)
    assert (args.sentences, args.same_sentence_positives, args.optimizer) == (1, False, ("adamw", "adamw"))
    config = trrg.TRRGConfig()
    assert (args.k, args.queries, args.lora_rank, args.lora_alpha, args.lora_dropout) == (3, 32, 16, 16, 0.1) == \
        (config.k, config.queries, config.lora_rank, config.lora_alpha, config.lora_dropout)
    assert (config.heads, config.dc_weight, config.views, config.clue_threshold) == (8, 1.0, "concat", 0.0)
    assert (trrg.AlignmentConfig().d, trrg.AlignmentConfig().tau, trrg.AlignmentConfig().sentence_tokens) == (1024, 0.07, 64)


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
