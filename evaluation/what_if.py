"""The answers of --serve (serve.py) as JSON: a report with its clues, heat maps and probabilities, and what-ifs.

The same functions do the work as elsewhere: reports are written and explained as by --explain, other clues are injected
as by --swap, and the study's card is that of report.html (page/gallery.py).
"""

import base64
import io
import time
import warnings
from itertools import accumulate

import torch
from PIL import Image

from data.files import UserError
from data.images import Outshone, augment, read
from data.reports import LABELS
from evaluation.changed import chosen_of, injected
from evaluation.explain import piece, token_probabilities
from evaluation.labels import with_labels
from evaluation.output import NO_ADVICE, trained_on
from evaluation.page import gallery
from evaluation.writing import as_row, clue_maps
from model.decode import generate


class Writer:
    """Writes reports for the page: for uploaded pictures, and for `examples`, studies of the data set `prepared`.

    `labeler` (evaluation/labels.py), or None, marks right and wrong findings in an example's report.
    """

    def __init__(self, model, checkpoint, prepared=None, examples=(), labeler=None):
        self.model, self.prepared, self.labeler = model, prepared, labeler
        self.examples = {str(study["id"]): study for study in examples}
        bank = [[name, []] for name in LABELS] if model.config.clues else []
        for number, disease in enumerate(model.bank.disease.tolist() if bank else ()):
            bank[disease][1].append([number, model.bank.texts[number]])
        self.facts = {"checkpoint": str(checkpoint), "variant": model.config.variant,
                      "notice": f"{NO_ADVICE}; {trained_on(model.header)}",
                      "examples": list(self.examples), "bank": bank}

    @torch.no_grad()
    def answer(self, request, files):
        """One request of the page → the report, its clues, heat maps and probabilities, as JSON. Raises UserError.

        request: {"example": id}, or {"pictures": [name, …]}, whose bytes are in `files`, frontal first. A what-if adds
        one of {"without": "clues"}, {"without": number of a view}, {"clue": rank, "prompt": number in the bank}.
        """
        started, model, without = time.monotonic(), self.model, request.get("without")

        # The pictures, read as in training and by --image; a what-if may leave out one view.
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", Outshone)
            study, views = self.opened(request, files)
        notes = [str(note.message) for note in notes]
        if without not in (None, "clues"):
            gone = index(without, len(views) if len(views) > 1 else 0, "view")
            views = torch.cat([views[:gone], views[gone + 1:]])
        images = augment(views, model.pictures["crop"])[None].to(model.mapper.weight.device)

        # The language model's prompt, with the recognised clues or with others.
        prompt = model.prompt(images)
        if without == "clues" or "clue" in request:
            prompt = model.prompt(images, other_clues(model, prompt.clues, request))
        clues = [] if without == "clues" else model.named_clues(prompt.clues, 0)

        # The report as tokens, since their probabilities are shown.
        tokens = generate(model.language_model, embeds=prompt.embeds, eos_id=model.tokenizer.eos_id,
                          **model.decoding)[0]
        known = token_probabilities(model, prompt, tokens) if tokens else []

        # The study's card as in report.html: report, reference, findings, and a heat map per clue.
        row = as_row(study or {"id": "", "report": ""}, model.tokenizer.decode(tokens).strip(), clues)
        labeler = self.labeler if study else None
        if labeler:
            (row,), _ = with_labels([row], labeler)
        maps = clue_maps(model, prompt)[0]
        maps["clues"] = maps["clues"][:len(clues)]
        (card,), _ = gallery.studies([row], maps=lambda i: maps, labeler=labeler)
        card["v"] = [jpeg(view.numpy()) for view in views]

        sentences = by_sentence(model, known, [text for text, *_ in card["h"]])
        return {"study": card, "sentences": sentences, "cut": len(tokens) == model.decoding["max_new_tokens"],
                "notes": notes, "seconds": round(time.monotonic() - started, 2)}

    def opened(self, request, files):
        """(the example's study or None, its views (V, S, S) uint8)."""
        if "example" in request:
            study = self.examples.get(request["example"]) if isinstance(request["example"], str) else None
            if study is None:
                raise UserError("this data set has no such example; reload the page")
            return study, self.prepared.pictures(study)
        names = request["pictures"]
        return None, torch.stack([torch.from_numpy(read(io.BytesIO(file), self.model.pictures["size"], name))
                                  for name, file in zip(names, files, strict=True)])


def other_clues(model, own, request):
    """One study's `Clues` after a what-if: all removed, or one replaced by a prompt of the bank. Raises UserError."""
    if own is None:
        raise UserError(f"this model (variant {model.config.variant}) has no clues to change")
    chosen = chosen_of(own, model.config.clue_threshold)
    if request.get("without") == "clues":
        chosen = injected(chosen, torch.zeros_like(chosen.weights), chosen.best)
    else:
        chosen = with_clue(model, chosen, index(request["clue"], chosen.disease.shape[1], "clue"),
                           index(request.get("prompt"), len(model.bank.cls), "prompt in the bank"))
    *fields, threshold = chosen
    return model.bank.inject(*fields, threshold)


def with_clue(model, chosen, rank, number):
    """The `Chosen` of one study with the clue at `rank` replaced by the prompt `number`, which gets the clue's weight.

    Raises UserError if another clue has the prompt's disease.
    """
    diseases, new = chosen.disease[0].tolist(), int(model.bank.disease[number])
    old, diseases[rank] = diseases[rank], new
    if diseases.count(new) > 1:
        raise UserError(f"{LABELS[new]} is among the clues already; replace that clue instead")

    weights, best = chosen.weights.clone(), chosen.best.clone()
    weights[0, [old, new]] = weights[0, [new, old]]
    best[0, new] = number
    return chosen._replace(weights=weights, best=best, disease=chosen.disease.new_tensor([diseases]))


def by_sentence(model, known, sentences):
    """The rows of `token_probabilities`, one list per sentence: [[text, probability, [(alternative, probability)] *
    3]].

    A token's text is the text that the token adds to the decoded report, so the joined texts are the report. A token
    belongs to the sentence of its first letter, counted without blanks.
    """
    ends = list(accumulate(len("".join(sentence.split())) for sentence in sentences))
    rows, before, letters = [[] for _ in sentences], "", 0
    for number, (_, probability, best) in enumerate(known, start=1):
        text = model.tokenizer.decode([token for token, *_ in known[:number]])
        added, before = text.removeprefix(before), text
        at = next((i for i, end in enumerate(ends) if letters < end), len(ends) - 1)
        letters += len("".join(added.split()))
        if rows:                                       # there are none if the report is blank
            rows[at].append([added, round(probability, 4), [(piece(model, token), round(p, 4)) for token, p in best]])
    return rows


def jpeg(view):
    """A picture (S, S) uint8, as the model reads it → JPEG in base64."""
    file = io.BytesIO()
    Image.fromarray(view).save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()


def index(value, length, what):
    """`value`, if it is a whole number from 0 to `length` - 1. Raises UserError, naming `what` it counts."""
    if type(value) is not int or not 0 <= value < length:
        raise UserError(f"there is no {what} {value!r}; reload the page")
    return value
