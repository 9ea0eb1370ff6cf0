"""What the experiments measure of a checkpoint: recognition, reports with its own and other clues, and diagnoses."""

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from evaluation.changed import injected, outcomes, own_clues, swapped
from evaluation.labels import labels_of, phantom_labeler, with_labels
from evaluation.recognition import zero_shot
from evaluation.results import Scoring, evaluate_texts
from evaluation.writing import as_row, over_batches
from metrics.clinical import UNCERTAIN
from metrics.intervals import Measured
from metrics.truth import measure_truth
from model.clues import cosine
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


def other_clues(model, own, studies, kind):
    """The `Chosen` clues of a kind of SWAPS or MIXES, given the model's `own`."""
    labels = np.array([study["labels"] for study in studies])
    if kind in MIXES:
        return mixed(model, own, studies, labels, share=int(kind.removeprefix("mix-")) / 100)
    return swapped(model, own, studies, kind, labels)


def mixed(model, own, studies, labels, share):
    """The true clues of each study, at most k, all but a `share` of them replaced by those of absent diseases.

    Each true clue has a random number of its own, which decides whether it stays. So every mix has the same number of
    clues, and a larger share keeps all the true clues that a smaller share keeps.
    """
    true, absent = (swapped(model, own, studies, kind, labels) for kind in ("true", "absent"))
    kept = torch.zeros_like(true.weights).scatter(1, true.disease, 1.0) * true.weights
    lots = torch.rand(kept.shape, generator=torch.Generator().manual_seed(0))
    right = kept * (lots < share)

    # As many absent diseases as true ones are gone, the first of those that were drawn
    gone = (kept - right).sum(1, keepdim=True)
    first = (torch.arange(absent.disease.shape[1]) < gone) * absent.weights.gather(1, absent.disease)
    wrong = torch.zeros_like(kept).scatter(1, absent.disease, first)
    best = torch.where(wrong > 0, absent.best, true.best)
    return injected(own, right + wrong, best)


def reports(model, prepared, studies, processes, kind="own", **decoding):
    """({figure: value}, {count: one hexadecimal digit per study}) of reports with the model's own clues, or those of a
    kind of SWAPS or MIXES.
    """
    clues, on = None, (model, prepared, studies, processes, BATCH)
    if kind in SWAPS or kind in MIXES:
        clues = other_clues(model, own_clues(outcomes(*on, write=False)), studies, kind)
    written = outcomes(*on, clues=clues, **decoding)
    texts, labels_from = with_labels(
        [as_row(study, one.report.text, one.report.clues) for study, one in zip(studies, written)], phantom_labeler())

    scored = evaluate_texts(texts, Scoring(("coco",), meteor_data=False, draws=1), labels_from)
    language, grid = scored["language"]["coco"], scored["clinical"]["grid"]
    figures = {name: cell["value"] for name, cell in language.items() if name not in ("BLEU-1", "BLEU-2", "BLEU-3")}
    figures |= {f"{average} F1": grid[average]["14"]["positive"]["f1"]["value"] for average in ("micro", "macro")}
    figures |= {name.removesuffix("_per_report").replace("_", " "): cell["value"]
                for name, cell in scored["truth"].items()}
    figures |= {f"{what} accuracy, n": scored["truth"][f"{what}_accuracy"]["n"] for what in ("side", "severity")}
    figures["CE"] = surprise(written)

    if model.config.clues:
        shown = own_clues(written).diseases()
        right = [sum(study["labels"][i] == 1 for i in of_study) for study, of_study in zip(studies, shown)]
        figures |= {"right clues": float(np.mean(right)),
                    "wrong clues": float(np.mean([len(of_study) for of_study in shown]) - np.mean(right))}
    return figures, counts(texts)


def surprise(written):
    """Cross-entropy of the studies' own reports, mean over all tokens."""
    ce, tokens = np.sum([one.surprise for one in written], axis=0)
    return float(ce / tokens)


def counts(texts):
    """{count: one hexadecimal digit per study} of labelled rows: tp, fp, fn of micro F1 over the 14 labels, and the
    invented and missed findings.
    """
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


def diagnosis(model, prepared, studies, processes):
    """{figure: value}, those that the variant has:

    L_DC                          Eq. (4) on these studies; -1 is perfect consistency, or collapse
    alike, E^v and E^c            mean cosine between two queries of one study: 1 where all L are the same
    of its study, E^v and E^c     share of the queries' squared length that differs from study to study: 0 where they
                                  are the same for every study
    R@1, E^v → E^c                how often, among the E^c of all studies, that of the same study is nearest to E^v
    CE …                          cross-entropy of the true reports per token; then how much it rises with another
                                  study's clues, without any, and with another study's picture (and its own clues)
    """
    figures, on = {}, (model, prepared, studies, processes, BATCH)
    if model.config.interaction:
        e_v, e_c = queries(model, prepared, studies, processes)
        L = e_v.shape[1]
        figures["L_DC"] = disease_consistency(e_v, e_c).mean().item()
        for name, e in (("E^v", e_v), ("E^c", e_c)):
            cosines = cosine_similarity(e[:, :, None], e[:, None], dim=-1).sum((1, 2)).mean().item()
            figures[f"alike, {name}"] = (cosines - L) / (L * (L - 1)) if L > 1 else 1.0
            figures[f"of its study, {name}"] = ((e - e.mean(0)).square().sum() / e.square().sum()).item()
        figures["R@1, E^v → E^c"] = found_again(e_v, e_c)

    as_it_is = outcomes(*on, write=False)
    own, figures["CE"] = own_clues(as_it_is), surprise(as_it_is)

    def rise(**changes):
        return surprise(outcomes(*on, write=False, **changes)) - figures["CE"]

    if own is not None:
        figures["CE + other clues"] = rise(clues=other_clues(model, own, studies, "another"))
        figures["CE + no clues"] = rise(clues=other_clues(model, own, studies, "none"))
    figures["CE + other picture"] = rise(pictures="another", clues=own)
    return figures


def found_again(e_v, e_c):
    """How often the E^c of the same study is the nearest of all to a study's E^v; by chance 1/N."""
    similar = cosine(e_v.flatten(1), e_c.flatten(1))
    best = similar == similar.max(1, keepdim=True).values                # of equals, each has its part of the hit
    return (best.diagonal() / best.sum(1)).mean().item()


def queries(model, prepared, studies, processes):
    """E^v and E^c of all studies: (N, L, d) each, on the CPU."""
    @torch.no_grad()
    def work(visits):
        prompt = model.prompt(visits["images"].to(model.mapper.weight.device))
        return list(zip(prompt.e_v.float().cpu(), prompt.e_c.float().cpu()))

    done = over_batches(prepared, studies, model.pictures["crop"], BATCH, processes, "queries", work)
    return [torch.stack(stream) for stream in zip(*done)]
