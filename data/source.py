"""What every source of studies hands over, and what several share: splits drawn by id, labels read from a csv.

A source is one file beside this one with a function `collect(raw, …)` → `Source`, and its command in data/prepare.py.
"""

import hashlib
from typing import NamedTuple

from data.files import UserError

SPLITS = ("train", "val", "test")
DRAWN = {"train": 0.7, "val": 0.1, "test": 0.2}
# CheXbert's coding of CheXpert's csv values. Blank (not mentioned) is not 0.0 (negative).
CODE_OF = {"": 0, "1.0": 1, "0.0": 2, "-1.0": 3, "1": 1, "0": 2, "-1": 3}


class Study(NamedTuple):
    """One study before preparation: `pictures` is whatever the source's reader takes, one per view."""

    id: str
    split: str
    report: str
    pictures: list
    extra: dict


class Source(NamedTuple):
    """What was found in a download."""

    studies: list
    left_out: list = ()            # {"id", "why"} of each study that can't be used
    counts: dict = None            # what was counted: (number, the published number or None)
    folder: str = "the source"     # of the pictures; messages name it


def drawn_split(names, seed):
    """{name: split}, 70/10/20, by the names' hashes: no order of files and no random generator has a say."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    train_end = round(DRAWN["train"] * len(ranked))
    val_end = round((DRAWN["train"] + DRAWN["val"]) * len(ranked))
    return {name: "train" if rank < train_end else "val" if rank < val_end else "test"
            for rank, name in enumerate(ranked)}


def label_codes(values, where):
    """CheXpert's csv values → CheXbert's codes; `where` names their row. Raises UserError."""
    if not CODE_OF.keys() >= set(values):
        raise UserError(f"{where} has a label other than 1.0 (positive), 0.0 (negative), -1.0 (uncertain) and blank "
                        f"(not mentioned): {', '.join(values)}; mend it, or download the file again")
    return [CODE_OF[value] for value in values]
