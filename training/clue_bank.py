"""The wording of the clues: hand-written prompts, or (ours) the sentences in which the training reports say it.

Stage 1 has aligned pictures with such sentences, so it recognises a disease better by them than by prompts that no
report holds, and the language model has read them. Which disease a sentence names is a labeler's to say.
"""

from data.files import UserError
from data.prompts import clue_sentences
from data.reports import sentences
from metrics.chexbert import Labeler


def clue_bank(args, prepared, device="cpu"):
    """[[prompt, …] per disease] for `--clue-bank sentences`; None for the hand-written ones. Raises UserError."""
    if args.variant == "base" or args.clue_bank == "prompts":
        return None
    reports = [sentences(study["report"]) for study in prepared.split("train")]
    return clue_sentences(reports, labeler_of(args, prepared, device))


def labeler_of(args, prepared, device):
    """texts → 14 labels per text: the phantom's own rules for its reports, CheXbert for all others."""
    if args.chexbert:
        return Labeler.from_pretrained(args.chexbert, device)
    if prepared.manifest.get("options", {}).get("source") == "phantom":
        from data.phantom import label  # its drawing code, which no real data set needs

        return lambda texts: [label(text)[0] for text in texts]
    raise UserError("--clue-bank sentences: something must say which disease a sentence names; give --chexbert DIR, "
                    "the folder of chexbert.pth and vocab.txt, or take --clue-bank prompts")
