"""What all sources of studies have in common: the classes `Study` and `Source`, random splits, and labels from a csv.

Each source is a file in this folder with a function `collect(raw, …)` → `Source`, and a subcommand in data/prepare.py.
"""

import hashlib
from typing import NamedTuple

from data.files import UserError

SPLITS = ("train", "val", "test")
DRAWN = {"train": 0.7, "val": 0.1, "test": 0.2}
# CheXpert's csv values → CheXbert's codes. Trap: CheXbert's 0 is blank (not mentioned), CheXpert's 0.0 is negative.
CODE_OF = {"": 0, "1.0": 1, "0.0": 2, "-1.0": 3, "1": 1, "0": 2, "-1": 3}


class Study(NamedTuple):
    """One study before preparation. `pictures` has one entry per view, in the form that the source's `read` takes;
    `extra` holds further fields for studies.jsonl, such as labels.
    """

    id: str
    split: str
    report: str
    pictures: list
    extra: dict


class Source(NamedTuple):
    """The content of a download."""

    studies: list                  # each a Study
    left_out: list = ()            # {"id", "why"} of each study that can't be used
    counts: dict = None            # {what was counted: (number, published number or None)}
    folder: str = "the source"     # the folder of the pictures, which error messages name


def drawn_split(names, seed):
    """{name: split}, 70/10/20 %, in the order of hashes of seed and name.

    The result depends on `names` and `seed` alone, not on the order of files or a random generator.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    train_end = round(DRAWN["train"] * len(ranked))
    val_end = round((DRAWN["train"] + DRAWN["val"]) * len(ranked))
    return {name: "train" if rank < train_end else "val" if rank < val_end else "test"
            for rank, name in enumerate(ranked)}


def label_codes(values, where):
    """CheXpert's csv values → CheXbert's codes. Raises UserError for another value; `where` names the row in it."""
    if not CODE_OF.keys() >= set(values):
        raise UserError(f"{where} has a label other than 1.0 (positive), 0.0 (negative), -1.0 (uncertain) and blank "
                        f"(not mentioned): {', '.join(values)}; correct it, or download the file again")
    return [CODE_OF[value] for value in values]
