"""What the experiments measure of a checkpoint: recognition, reports with its own and other clues, and diagnoses."""

import copy
import re
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from data.files import UserError
from data.phantom import label
from data.reports import LABELS, clean_report
from evaluation.labels import labels_of, phantom_labeler, with_labels
from evaluation.recognition import zero_shot
from evaluation.results import Scoring, evaluate_texts
from evaluation.writing import another_study, as_row, over_batches
from metrics.clinical import UNCERTAIN
from metrics.intervals import Measured
from metrics.truth import measure_truth, side
from model.clues import Clues
from model.interaction import disease_consistency

BATCH = 16
COUNTS = ("tp", "fp", "fn", "invented", "missed")          # of each study; what is compared study by study
SWAPS = {"another": "another study's", "absent": "of absent diseases", "true": "the true ones", "none": "none"}
MIXES = {"mix-0": "none right", "mix-33": "a third right", "mix-67": "two thirds right", "mix-100": "all right"}


def recognition(model, prepared, studies, processes):
    """{figure: value} of a stage-1 checkpoint: zero-shot AUROC, by the clue prompts."""
    auroc = zero_shot(model, prepared, studies, processes)[0]["zero_shot"]["auroc"]
    return {"macro AUROC": auroc["macro"]["value"],
            "AUROC": {name: cell["value"] for name, cell in auroc["per_finding"].items()}}


# ---------------------------------------------------------------------------------------------------------------------
# Clues for a whole split, whoever chose them


def rows(clues, numbers):
    """The `Clues` of some studies."""
    return Clues(*(field[numbers] for field in clues))


def recognised(model, prepared, studies, processes):
    """The model's own `Clues` of all studies, on the CPU."""
    @torch.no_grad()
    def work(visits):
        clues = model.recognise(model.encode(visits["images"].to(model.mapper.weight.device)))
        return [[field[i].cpu() for field in clues] for i in range(len(visits["ids"]))]

    done = over_batches(prepared, studies, model.pictures["crop"], BATCH, processes, "clues", work)
    return Clues(*map(torch.stack, zip(*done)))


def of_other_findings(studies, seed=0):
    """For each study the number of one whose positive labels are not the same: its clues are wrong."""
    dice, positive = np.random.default_rng(seed), np.array([study["labels"] for study in studies]) == 1
    others = [np.flatnonzero((positive != own).any(1)) for own in positive]
    if not all(map(len, others)):
        raise UserError("all studies have the same labels, so no clues can be another study's; measure on more of them")
    return torch.tensor([dice.choice(numbers) for numbers in others])


def injected(bank, own, chosen, best):
    """`Clues` of the `chosen` (N, m) diseases, at most k, with their prompts `best` (N, m); empty slots are masked out.

    Of more than k those are taken that the model itself finds likeliest: `own` are its clues.
    """
    disease = (2 * chosen + own.weights).topk(own.disease.shape[1]).indices
    return bank.inject(chosen.float(), best, disease, threshold=0.5)


def swapped(model, own, studies, kind):
    """Other clues than the model's `own`, by `kind` of SWAPS, on the CPU."""
    if kind == "another":
        return rows(own, of_other_findings(studies))
    bank = copy.deepcopy(model.bank).cpu()
    prompts = [(bank.disease == disease).nonzero()[:, 0] for disease in range(len(LABELS))]
    best = torch.stack([numbers[0] for numbers in prompts]).repeat(len(studies), 1)
    present = torch.tensor([study["labels"] for study in studies]) == 1
    if kind == "none":
        return injected(bank, own, torch.zeros_like(present), best)
    if kind == "absent":
        dice = torch.Generator().manual_seed(0)
        for disease, numbers in enumerate(prompts):
            best[:, disease] = numbers[torch.randint(len(numbers), (len(studies),), generator=dice)]
        lots = torch.rand(present.shape, generator=dice).masked_fill(present, -1)
        lots[:, LABELS.index("No Finding")] = -1                       # a clue that nothing is there invents nothing
        chosen = torch.zeros_like(present).scatter(1, lots.topk(own.disease.shape[1]).indices, True) & (lots >= 0)
        return injected(bank, own, chosen, best)
    if kind in MIXES:
        share = int(kind.removeprefix("mix-")) / 100
        present = mixed(present, own, share, best, prompts)
    texts = model.prompt_texts
    for number, study in enumerate(studies):
        for finding in study["findings"]:
            disease = LABELS.index(finding["finding"])
            of_disease = [texts[prompt] for prompt in prompts[disease]]
            best[number, disease] = prompts[disease][fitting(of_disease, finding, study["report"])]
    return injected(bank, own, present, best)


def mixed(present, own, share, best, prompts):
    """Of each study's true diseases (N, m), at most k, all but `share` replaced by absent ones, as many in all.

    The absent ones get a prompt of theirs in `best`. Each true one is kept or not by a lot of its own.
    """
    dice = torch.Generator().manual_seed(0)
    lots, k = torch.rand(present.shape, generator=dice), own.disease.shape[1]
    likeliest = (2 * present + own.weights).topk(k).indices
    kept = torch.zeros_like(present).scatter(1, likeliest, True) & present
    right = kept & (lots < share)

    absent = torch.rand(present.shape, generator=dice).masked_fill(present, -1)
    absent[:, LABELS.index("No Finding")] = -1                         # a clue that nothing is there invents nothing
    rank = absent.argsort(1, descending=True).argsort(1)
    wrong = (rank < (kept & ~right).sum(1, keepdim=True)) & (absent >= 0)
    for disease, numbers in enumerate(prompts):
        drawn = numbers[torch.randint(len(numbers), (len(present),), generator=dice)]
        best[:, disease] = torch.where(wrong[:, disease], drawn, best[:, disease])
    return right | wrong


def fitting(prompts, finding, report):
    """The number of the prompt that says most of what is true of a finding: its severity, side and zone.

    Saying nothing is better than saying what is wrong. Among equals, the prompt with the most further words, if all of
    them stand in the report ("pacemaker", "displaced"), then the first, which is the most general.
    """
    true, words = aspects(finding), re.findall("[a-z]+", report.lower())

    def points(prompt):
        right = sum((1 if said == actual else -1) for said, actual in zip(read(prompt), true) if said)
        further = set(prompt.split()) - set(prompts[0].split())
        return right, len(further) if further <= set(words) else -1

    scores = [points(prompt) for prompt in prompts]
    return scores.index(max(scores))


def aspects(finding):
    return finding["severity"], side(finding["location"]), finding["location"].partition(" ")[2]


@lru_cache(maxsize=None)
def read(prompt):
    """Severity, side and zone that a prompt names, as the phantom's labeler reads it."""
    return aspects(label(prompt)[1][0])


# ---------------------------------------------------------------------------------------------------------------------
# Reports


def write(model, prepared, studies, processes, clues=None, **decoding):
    """[(`trrg.Report`, numbers of the diseases whose clues it had)], with the model's own clues or with these."""
    device = model.mapper.weight.device

    def work(visits):
        given = clues and Clues(*(field.to(device) for field in rows(clues, visits["numbers"])))
        reports, prompt = model.write(visits["images"].to(device), given, **{**model.decoding, **decoding})
        return list(zip(reports, diseases(prompt.clues) if prompt.clues else [[]] * len(reports)))

    return over_batches(prepared, studies, model.pictures["crop"], BATCH, processes, "reports", work)


def diseases(clues):
    """The numbers of the diseases of each study's clues, without those that are masked out."""
    there = clues.mask.unflatten(1, (clues.disease.shape[1], -1)).any(-1)
    return [disease[injected].tolist() for disease, injected in zip(clues.disease, there)]


def reports(model, prepared, studies, processes, kind="own", **decoding):
    """({figure: value}, {count: a hexadecimal digit a study}) of reports with clues of a kind of SWAPS, or its own."""
    clues = None
    if kind in SWAPS or kind in MIXES:
        clues = swapped(model, recognised(model, prepared, studies, processes), studies, kind)
    written = write(model, prepared, studies, processes, clues, **decoding)
    texts, labels_from = with_labels(
        [as_row(study, report.text, report.clues) for study, (report, _) in zip(studies, written)], phantom_labeler())
    found = evaluate_texts(texts, Scoring(("coco",), meteor_data=False, draws=1), labels_from)
    language, grid = found["language"]["coco"], found["clinical"]["grid"]
    figures = {name: cell["value"] for name, cell in language.items() if name not in ("BLEU-1", "BLEU-2", "BLEU-3")}
    figures |= {f"{average} F1": grid[average]["14"]["positive"]["f1"]["value"] for average in ("micro", "macro")}
    figures |= {name.removesuffix("_per_report").replace("_", " "): cell["value"]
                for name, cell in found["truth"].items()}
    figures |= {f"{what} accuracy, n": found["truth"][f"{what}_accuracy"]["n"] for what in ("side", "severity")}
    if model.config.clues:
        right = [sum(study["labels"][i] == 1 for i in of_study) for study, (_, of_study) in zip(studies, written)]
        figures |= {"right clues": float(np.mean(right)),
                    "wrong clues": float(np.mean([len(of_study) for _, of_study in written]) - np.mean(right))}
    return figures, counts(texts)


def counts(texts):
    """{count: a hexadecimal digit a study} of labelled rows: micro F1's over the 14 labels, and the truth's two."""
    h, r = labels_of(texts, "hypothesis"), labels_of(texts, "reference")
    truth = measure_truth(h, r, [[]] * len(texts), [[]] * len(texts)).statistics
    h, r = (np.isin(labels, UNCERTAIN["positive"]) for labels in (h, r))
    columns = [(h & r).sum(1), (h & ~r).sum(1), (~h & r).sum(1), truth[:, 0], truth[:, 1]]
    return {name: "".join(f"{int(value):x}" for value in column) for name, column in zip(COUNTS, columns)}


def measured(counts):
    """`Measured` of what `counts` gives, for intervals and paired differences."""
    statistics = np.array([[int(digit, 16) for digit in counts[name]] for name in COUNTS])

    def values(summed):
        tp, fp, fn, invented, missed, n = np.moveaxis(summed, -1, 0)
        with np.errstate(invalid="ignore"):
            return {("micro F1",): 2 * tp / (2 * tp + fp + fn), ("invented",): invented / n, ("missed",): missed / n}

    return Measured(np.column_stack([*statistics, np.ones(statistics.shape[1])]), values)


# ---------------------------------------------------------------------------------------------------------------------
# Diagnoses of a model with queries


@contextmanager
def reading(model, clues):
    """Within it the model recognises these clues, whatever it sees."""
    device = model.mapper.weight.device
    model.recognise = lambda v_e: Clues(*(field.to(device) for field in clues))
    try:
        yield
    finally:
        del model.recognise


def diagnosis(model, prepared, studies, processes):
    """{figure: value}, as far as the variant has what it speaks of:

    L_DC                          Eq. (4) on these studies; -1 is perfect consistency, or collapse
    alike, E^v and E^c            mean cosine between two queries of one study: 1 where all L say the same
    of its study, E^v and E^c     share of the queries' squared length that differs from study to study: 0 where they
                                  say the same of everyone
    CE …                          cross-entropy of the true reports, a token; then how much it rises with another
                                  study's clues, without any, and with another study's picture (and its own clues)
    """
    on, figures, own = (model, prepared, studies, processes), {}, None
    if model.config.interaction:
        e_v, e_c = queries(*on)
        L = e_v.shape[1]
        figures["L_DC"] = disease_consistency(e_v, e_c).mean().item()
        for name, e in (("E^v", e_v), ("E^c", e_c)):
            cosines = cosine_similarity(e[:, :, None], e[:, None], dim=-1).sum((1, 2)).mean().item()
            figures[f"alike, {name}"] = (cosines - L) / (L * (L - 1)) if L > 1 else 1.0
            figures[f"of its study, {name}"] = ((e - e.mean(0)).square().sum() / e.square().sum()).item()
    if model.config.clues:
        own = recognised(*on)
    figures["CE"] = cross_entropy(*on, own)
    if model.config.clues:
        figures["CE + other clues"] = cross_entropy(*on, swapped(model, own, studies, "another")) - figures["CE"]
        figures["CE + no clues"] = cross_entropy(*on, swapped(model, own, studies, "none")) - figures["CE"]
    figures["CE + other picture"] = cross_entropy(*on, own, another_study(studies)) - figures["CE"]
    return figures


def queries(model, prepared, studies, processes):
    """E^v and E^c of all studies: (N, L, d) each, on the CPU."""
    @torch.no_grad()
    def work(visits):
        prompt = model.prompt(visits["images"].to(model.mapper.weight.device))
        return list(zip(prompt.e_v.float().cpu(), prompt.e_c.float().cpu()))

    done = over_batches(prepared, studies, model.pictures["crop"], BATCH, processes, "queries", work)
    return [torch.stack(stream) for stream in zip(*done)]


def cross_entropy(model, prepared, studies, processes, clues, pictures=None):
    """Of the studies' own reports, mean over all tokens, given these clues and the pictures of studies `pictures`."""
    device = model.mapper.weight.device
    texts = [clean_report(study["report"]) for study in studies]

    @torch.no_grad()
    def work(visits):
        numbers = visits["numbers"]
        ids, labels, _ = model.supervise([texts[number] for number in numbers], max_tokens=10**6)
        with reading(model, rows(clues, numbers)) if clues else nullcontext():
            loss = model(visits["images"].to(device), ids.to(device), labels.to(device))
        return [(loss.ce.item() / len(numbers), loss.tokens.item() / len(numbers))] * len(numbers)

    shown = studies if pictures is None else [studies[number] for number in pictures]
    done = over_batches(prepared, shown, model.pictures["crop"], BATCH, processes, "cross-entropy", work)
    ce, tokens = np.sum(done, axis=0)
    return float(ce / tokens)
