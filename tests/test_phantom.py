"""The phantom: the same bytes everywhere, the truth in picture and text, and a labeler that is not fooled."""

import hashlib
import pickle
import re
import time
from collections import Counter

import numpy as np
import pytest

from data.phantom import LABELS, SEVERITIES, draw, easy, label, studies
from data.phantom.labeler import ABSENT, PRESENT, UNCERTAIN
from data.phantom.text import CLEAR, IN_LUNG

DRAWN = LABELS[:12]
SIDED = [name for name in DRAWN if name not in ("Enlarged Cardiomediastinum", "Cardiomegaly", "Edema")]


@pytest.fixture(scope="module")
def all_studies():
    return studies()


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


# Determinism

def test_reports_keep_their_bytes(all_studies):
    text = "\n".join(f"{study.id} {study.split} {study.report} {study.extra}" for study in all_studies[:50])
    assert digest(text.encode()) == "96ced7dac01c951b"


def test_pictures_keep_their_bytes(all_studies):
    pictures = [picture for study in all_studies[:24] for picture in study.pictures]
    made = {size: digest(b"".join(draw(picture, size).tobytes() for picture in pictures)) for size in (128, 64)}
    assert made == {128: "09e0133b5c594523", 64: "9a2fc567455bbafc"}


def test_a_picture_is_drawn_the_same_after_pickling_and_in_any_order(all_studies):
    pictures = [picture for study in all_studies[:4] for picture in study.pictures]
    copies = pickle.loads(pickle.dumps(pictures))
    forward = [draw(picture, 96).tobytes() for picture in pictures]
    assert forward == [draw(picture, 96).tobytes() for picture in reversed(copies)][::-1]
    assert len(set(forward)) == len(forward)


def test_a_study_depends_on_seed_split_and_number_alone(all_studies):
    few = studies((3, 2, 4))
    assert [study.split for study in few] == ["train"] * 3 + ["val"] * 2 + ["test"] * 4
    assert few[:3] == all_studies[:3] and few[3:5] == all_studies[2000:2002] and few[5:] == all_studies[2300:2304]
    assert len({study.id for study in all_studies}) == 2800
    assert studies((3, 2, 4), seed=1) != few


def test_studies_are_dealt_and_drawn_quickly(all_studies):
    start = time.process_time()
    studies((300, 0, 0))
    assert time.process_time() - start < 1.5
    start = time.process_time()
    for study in all_studies[:20]:
        for picture in study.pictures:
            assert draw(picture, 128).dtype == np.uint8
    assert time.process_time() - start < 0.03 * sum(len(study.pictures) for study in all_studies[:20])


# Truth

def test_the_labeler_is_exact_on_every_report(all_studies):
    for study in all_studies + studies((700, 0, 0), seed=9):
        labels, findings = label(study.report)
        assert labels == study.extra["labels"] and findings == study.extra["findings"], study.report


def test_the_labeler_reads_a_report_in_any_dress(all_studies):
    for study in all_studies[:300]:
        bare = study.report.lower().replace(".", " .").replace(",", " ,").replace("-", " ")
        assert label(bare) == label(study.report.upper()) == label(study.report.replace(". ", ".\n"))
        assert label(bare)[0] == study.extra["labels"]


def test_what_is_drawn_is_what_is_named(all_studies):
    for study in all_studies:
        assert all(picture.findings == study.pictures[0].findings for picture in study.pictures)
        drawn = {finding.finding for finding in study.pictures[0].findings}
        labels = dict(zip(LABELS, study.extra["labels"]))
        assert drawn == {name for name in LABELS[:-1] if labels[name] == PRESENT}
        assert drawn == {finding["finding"] for finding in study.extra["findings"]}
        assert labels["No Finding"] == (not drawn - {"Support Devices"})


def test_every_sentence_alone_agrees_with_the_study(all_studies):
    for study in all_studies[:600]:
        for sentence in re.findall(r"[^.]+\.", study.report):
            labels, _ = label(sentence)
            for name, said, true in zip(LABELS[:-1], labels, study.extra["labels"]):
                assert said in (0, true), (sentence, name, study.report)
            if sentence.strip() in CLEAR:
                assert not {f["finding"] for f in study.extra["findings"]} & {*IN_LUNG, "Pleural Effusion"}


def test_prevalence_and_length(all_studies):
    labels = np.array([study.extra["labels"] for study in all_studies])
    rates = dict(zip(LABELS, (labels == PRESENT).mean(0)))
    assert 0.27 < rates["No Finding"] < 0.33
    assert all(rates[name] > 0.07 for name in LABELS)
    for split in (slice(2000, 2300), slice(2300, 2800)):
        assert ((labels[split] == PRESENT).sum(0) > 12).all()
    assert all(0.05 < (labels == ABSENT).mean(0)[LABELS.index(name)] < 0.8 for name in DRAWN)
    views = Counter(tuple(picture.view for picture in study.pictures) for study in all_studies)
    assert set(views) == {("frontal",), ("frontal", "lateral")}
    assert 0.35 < views["frontal", "lateral"] / len(all_studies) < 0.45
    assert all(study.extra["view_names"] == [picture.view for picture in study.pictures] for study in all_studies)
    counts = Counter(len(study.extra["findings"]) for study in all_studies)
    assert max(counts) <= 5 and counts[1] + counts[2] > 0.4 * len(all_studies)
    severities = Counter(f["severity"] for study in all_studies for f in study.extra["findings"] if f["severity"])
    assert set(severities) == set(SEVERITIES) and min(severities.values()) > 0.2 * sum(severities.values())
    words = [len(study.report.split()) for study in all_studies]
    assert 20 < np.mean(words) < 30 and min(words) >= 8 and max(words) <= 65
    assert all(3 <= study.report.count(".") <= 8 for study in all_studies)
    assert len({word for study in all_studies for word in re.findall(r"\w+", study.report.lower())}) < 500
    assert len({study.report for study in all_studies}) > 0.99 * len(all_studies)


# Pictures: what a finding adds is seen as the difference to the same chest without it.

def difference(finding, severity="severe", location="", keys=range(5)):
    """Mean signed and mean absolute difference over several patients, as (64, 64) arrays."""
    pairs = [(draw(easy(finding, severity, location, key=(key,)), 64).astype(float),
              draw(easy(None, key=(key,)), 64).astype(float)) for key in keys]
    return np.mean([a - b for a, b in pairs], axis=0), np.mean([abs(a - b) for a, b in pairs], axis=0)


@pytest.mark.parametrize("view", ["frontal", "lateral"])
@pytest.mark.parametrize("finding", [*DRAWN, "Support Devices"])
def test_every_finding_changes_the_picture_where_crops_keep_it(finding, view):
    def strongest(severity):
        plain, drawn = (draw(easy(name, severity, key=(3,), view=view), 128).astype(float) for name in (None, finding))
        change = abs(plain - drawn).reshape(32, 4, 32, 4).mean((1, 3))
        return change[4:-4, 4:-4].max()
    assert strongest("mild") > 12


@pytest.mark.parametrize("finding", SIDED)
def test_right_is_on_the_pictures_left(finding):
    for side, here, there in (("right", np.s_[:, :32], np.s_[:, 32:]), ("left", np.s_[:, 32:], np.s_[:, :32])):
        location = f"{side} lower zone" if finding in IN_LUNG + ("Fracture",) else side
        _, change = difference(finding, "severe", location)
        assert change[here].mean() > 1.5 * change[there].mean()


def test_signs_have_their_sign():
    effusion, _ = difference("Pleural Effusion", "severe", "right")
    assert effusion[34:46, 10:26].mean() > 25 and abs(effusion[34:46, 40:54].mean()) < 12
    pneumothorax, _ = difference("Pneumothorax", "severe", "left")
    assert pneumothorax[14:30, 44:52].mean() < -3
    heart, _ = difference("Cardiomegaly")
    assert heart[34:42, 42:50].mean() > 15
    wide, _ = difference("Enlarged Cardiomediastinum")
    assert wide[16:28, 22:42].mean() > 15
    for zone, rows in (("upper", np.s_[12:26]), ("mid", np.s_[24:36]), ("lower", np.s_[34:46])):
        patch, _ = difference("Consolidation", "severe", f"right {zone} zone")
        assert patch[rows, 10:28].mean() > 2 * abs(np.delete(patch, np.r_[rows], axis=0)[:, 10:28].mean())


@pytest.mark.parametrize("finding", DRAWN)
def test_more_severe_is_more_picture(finding):
    amounts = []
    for severity in SEVERITIES:
        _, change = difference(finding, severity, keys=range(8))
        amounts.append(change.mean())
    assert amounts[0] < amounts[1] < amounts[2]


def test_no_pixel_and_no_mean_tells_a_small_finding(all_studies):
    chosen = all_studies[:400]
    pictures = np.stack([draw(study.pictures[0], 64) for study in chosen]).astype(float)
    labels = np.array([study.extra["labels"] for study in chosen]) == PRESENT

    def auroc(values, truth):
        ranks = values.argsort(0).argsort(0) + 1
        n = truth.sum()
        return (ranks[truth].sum(0) - n * (n + 1) / 2) / (n * (len(truth) - n))

    for name in LABELS:
        truth = labels[:, LABELS.index(name)]
        assert abs(auroc(pictures.mean((1, 2)), truth) - 0.5) < 0.25
        pixels = pictures[:, 4:60:2, 4:60:2].reshape(len(chosen), -1)
        best = abs(auroc(pixels[:200], truth[:200]) - 0.5).argmax()
        assert abs(auroc(pixels[200:, best], truth[200:]) - 0.5) < 0.40


# The labeler on sentences it must not be fooled by: {label: state}; every other label (No Finding aside) stays 0.
EC, CM, LO, LL, ED, CO, PN, AT, PT, PE, PO, FX, SD, NF = LABELS
TRAPS = [
    ("No pneumothorax, effusion, or consolidation.", {PT: 2, PE: 2, CO: 2}),
    ("Without evidence of pneumothorax or pleural effusion.", {PT: 2, PE: 2}),
    ("Neither pneumothorax nor pleural effusion is seen.", {PT: 2, PE: 2}),
    ("No pneumothorax. Small right pleural effusion.", {PT: 2, PE: 1}),
    ("no pneumothorax but a small right pleural effusion", {PT: 2, PE: 1}),
    ("No pneumothorax, small left pleural effusion.", {PT: 2, PE: 1}),
    ("No pneumothorax, small effusion, or large mass.", {PT: 2, PE: 2, LL: 2}),
    ("No consolidation with a small pleural effusion.", {CO: 2, PE: 1}),
    ("no pneumothorax there is a mild right lower lung consolidation", {PT: 2, CO: 1}),
    ("There is no pneumothorax the heart is mildly enlarged.", {PT: 2, CM: 1}),
    ("Small right pleural effusion and no pneumothorax.", {PE: 1, PT: 2}),
    ("Small right pleural effusion without pneumothorax.", {PE: 1, PT: 2}),
    ("Pneumothorax is not seen.", {PT: 2}),
    ("Pneumothorax and effusion are absent.", {PT: 2, PE: 2}),
    ("The effusion is small, pneumothorax is not seen.", {PE: 1, PT: 2}),
    ("The right pleural effusion has resolved.", {PE: 2}),
    ("The right pleural effusion has not resolved.", {PE: 1}),
    ("Resolution of the left pneumothorax.", {PT: 2}),
    ("The pneumothorax is no longer present.", {PT: 2}),
    ("No change in the moderate left effusion.", {PE: 1}),
    ("No significant interval change in moderate pulmonary edema.", {ED: 1}),
    ("Not only consolidation but also a small pleural effusion.", {CO: 1, PE: 1}),
    ("Possible pneumonia in the right lower lung.", {PN: 3}),
    ("Pneumonia cannot be excluded.", {PN: 3}),
    ("Cannot exclude a small pneumothorax.", {PT: 3}),
    ("A small left pleural effusion is not excluded.", {PE: 3}),
    ("Pneumothorax is excluded.", {PT: 2}),
    ("Hazy opacity in the right lower zone may represent pneumonia.", {LO: 1, PN: 3}),
    ("Left lower consolidation suspicious for pneumonia.", {CO: 1, PN: 3}),
    ("Atelectasis versus pneumonia at the left base.", {AT: 3, PN: 3}),
    ("Atelectasis or pneumonia at the left base.", {AT: 3, PN: 3}),
    ("No suspicious nodule.", {LL: 2}),
    ("Questionable nodule in the left upper lung.", {LL: 3}),
    ("Is there a pneumothorax?", {PT: 3}),
    ("The heart is borderline in size.", {CM: 3}),
    ("The heart is not enlarged.", {CM: 2}),
    ("The heart and mediastinum are normal.", {CM: 2, EC: 2}),
    ("The heart is enlarged and the mediastinum is normal.", {CM: 1, EC: 2}),
    ("Enlarged heart with normal mediastinum.", {CM: 1, EC: 2}),
    ("The heart size is not normal.", {}),
    ("The cardiomediastinal silhouette is enlarged.", {EC: 1}),
    ("The cardiomediastinal silhouette is within normal limits.", {EC: 2, CM: 2}),
    ("Mediastinum not widened.", {EC: 2}),
    ("No widening of the mediastinum.", {EC: 2}),
    ("Normal mediastinal width, widened mediastinum is excluded.", {EC: 2}),
    ("Lungs: clear. Heart: normal.", {LO: 2, CM: 2}),
    ("The lungs are clear of consolidation.", {CO: 2}),
    ("The left lung is clear.", {}),
    ("The lungs are otherwise clear.", {}),
    ("The lungs are not clear.", {}),
    ("The costophrenic angles are sharp.", {PE: 2}),
    ("The right costophrenic angle is blunted.", {PE: 1}),
    ("The ribs are intact.", {FX: 2}),
    ("Sternal wires are intact.", {SD: 1}),
    ("The chest tube has been removed.", {SD: 2}),
    ("Removal of the endotracheal tube.", {SD: 2}),
    ("No lines or tubes.", {SD: 2}),
    ("Small pneumothorax with a visible pleural line.", {PT: 1}),
    ("Small pericardial effusion.", {}),
    ("Evaluate for pneumonia.", {}),
    ("History of pneumonia.", {}),
    ("Rule out pneumothorax.", {}),
    ("There isn't a pneumothorax.", {PT: 2}),
    ("Pleural thickening but no effusion.", {PO: 1, PE: 2}),
    ("No pleural thickening or plaque.", {PO: 2}),
    ("No displaced rib fracture; there is a healing left rib fracture.", {FX: 1}),
    ("Large mass, no mass effect.", {LL: 1}),
    ("pleural pleural the of right no no pneumothorax pneumothorax", {PT: 2}),
    ("no rib fracture moderate left pleural effusion", {FX: 2, PE: 1}),
    ("Pneumothorax absent, effusion present on the right.", {PT: 2, PE: 1}),
    ("Resolved pneumothorax.", {PT: 2}),
    ("The heart is top normal in size.", {CM: 3}),
    ("Pneumonia is unlikely.", {PN: 3}),
    ("Pneumothorax: none. Effusion: small, right.", {PT: 2, PE: 1}),
    ("No effusion on the left. Moderate effusion on the right.", {PE: 1}),
    ("The pleural surfaces are not smooth.", {}),
    ("The chest is free of pneumothorax but shows an effusion.", {PT: 2, PE: 1}),
    ("", {}),
    ("The the right of small.", {}),
]


@pytest.mark.parametrize("text, expected", TRAPS, ids=[text or "nothing" for text, _ in TRAPS])
def test_traps(text, expected):
    labels, findings = label(text)
    assert {name: state for name, state in zip(LABELS, labels) if state and name != NF} == expected
    assert [finding["finding"] for finding in findings] == [name for name in LABELS if expected.get(name) == PRESENT]


PLACES = [
    ("Small right and moderate left pleural effusions.", PE, "moderate", "bilateral"),
    ("Pleural effusions on both sides, large.", PE, "severe", "bilateral"),
    ("In the right lower zone, there is a small nodule.", LL, "mild", "right lower zone"),
    ("Small right pleural effusion, large left upper mass.", LL, "severe", "left upper zone"),
    ("Small right pleural effusion, large left upper mass.", PE, "mild", "right"),
    ("Moderate left pleural effusion with mild adjacent atelectasis.", AT, "mild", "left"),
    ("Mild to moderate edema in both lungs.", ED, "moderate", "bilateral"),
    ("Small apical pneumothorax on the left.", PT, "mild", "left"),
    ("Severely enlarged heart, more on the left.", CM, "severe", ""),
    ("A pacemaker with leads in the right atrium and right ventricle.", SD, "", ""),
    ("Left pacemaker with leads in the right ventricle.", SD, "", "left"),
    ("Mild consolidation in the right middle lobe.", CO, "mild", "right mid zone"),
    ("Bibasilar atelectasis.", AT, "", "bilateral lower zone"),
    ("No left pneumothorax. Large right effusion.", PE, "severe", "right"),
    ("No large pneumothorax, small right nodule.", LL, "mild", "right"),
]


@pytest.mark.parametrize("text, name, severity, location", PLACES)
def test_severity_and_location(text, name, severity, location):
    assert {"finding": name, "severity": severity, "location": location} in label(text)[1]


def test_no_finding_wants_evidence_and_no_disease():
    def no_finding(text):
        return label(text)[0][LABELS.index(NF)]
    assert no_finding("No acute finding.") == no_finding("The lungs are clear. A pacemaker is in place.") == PRESENT
    assert no_finding("No pneumothorax.") == PRESENT
    for text in ("", "A pacemaker is in place.", "No pneumothorax. Possible pneumonia.", "This is not a normal chest.",
                 "The lungs are clear. Small effusion.", "This is an abnormal chest. No pneumothorax."):
        assert no_finding(text) == 0, text


def test_a_report_of_contradictions_is_read_as_present():
    labels, _ = label("No pneumothorax. There is a small right pneumothorax. Possible pneumonia. No pneumonia.")
    assert labels[LABELS.index(PT)] == PRESENT and labels[LABELS.index(PN)] == UNCERTAIN
