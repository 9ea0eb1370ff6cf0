"""The texts of the clues: hand-written prompts, or (our addition) sentences of the training reports.

Stage 1 aligns pictures with the reports' sentences, so it recognises a disease better by such sentences than by prompts
that occur in no report; and the language model has read the sentences. A labeler tells which disease a sentence names.
"""

from data.files import UserError
from data.prompts import clue_sentences
from data.reports import sentences
from metrics.chexbert import Labeler


def clue_bank(args, prepared, device="cpu"):
    """[[sentence, …] per disease] for `--clue-bank sentences`; None for hand-written prompts. Raises UserError."""
    if args.variant == "base" or args.clue_bank == "prompts":
        return None
    reports = [sentences(study["report"]) for study in prepared.split("train")]
    return clue_sentences(reports, labeler_of(args, prepared, device))


def labeler_of(args, prepared, device):
    """A function from texts to 14 labels per text: the phantom's own rules for drawn data, CheXbert for real data."""
    if args.chexbert:
        return Labeler.from_pretrained(args.chexbert, device)
    if prepared.manifest.get("options", {}).get("source") == "phantom":
        from data.phantom import label  # imports drawing code, which real data do not need

        return lambda texts: [label(text)[0] for text in texts]
    raise UserError("--clue-bank sentences: CheXbert is needed to tell which disease a sentence names; give --chexbert "
                    "DIR, the folder with chexbert.pth and vocab.txt, or use --clue-bank prompts")
