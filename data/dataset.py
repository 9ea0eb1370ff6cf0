"""The prepared data set: what every source is turned into once, and all that training reads.

    studies.jsonl   one study per line: id, split, report (raw), views = its rows of images.npy, labels where known
    images.npy      (N, S, S) uint8, read a row at a time: a picture is decoded once in its life
    manifest.json   counts per split, the options it was made with, what was left out and why

Randomness is a pure function of (seed, epoch, study): which view and which sentence a visit draws, and how its
pictures are jittered, depend on nothing else. So a run can stop anywhere and go on, and any number of processes and
loader workers see the same visits.
"""

import json
import os
import weakref
from pathlib import Path

import numpy as np
import torch

from data.files import UserError, read_json, text_lines
from data.images import augment
from data.reports import clean_report, sentences
from data.source import SPLITS


class PictureFile:
    """images.npy, whose pixels `read` gets by their position; `shape` is (N, S, S). Raises UserError.

    No memory map: where the file shrinks, or its disk fails, under a run, that would end the process by SIGBUS, without
    a word. A read has a position of its own, so threads and forked loader processes may share the open file.
    """

    def __init__(self, path):
        self.path = path
        try:
            images = np.lib.format.open_memmap(path, mode="r")      # checks the header and the file's length
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}); prepare the data set again") from None
        square = images.ndim == 3 and images.shape[1] == images.shape[2]
        if images.dtype != np.uint8 or not square or not images.flags.c_contiguous:
            raise UserError(f"{path}: {images.dtype} {images.shape} is not uint8 (N, S, S); prepare the data set again")
        self.shape, self.start = images.shape, images.offset
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def __len__(self):
        return self.shape[0]

    def __reduce__(self):
        return PictureFile, (self.path,)

    def read(self, position, out):
        """Fills the uint8 array `out` with the pixels from `position` on. Raises OSError, EOFError."""
        position, rest = self.start + position, memoryview(out).cast("B")
        while rest:
            count = os.preadv(self.descriptor, [rest], position)
            if count == 0:
                raise EOFError(f"{self.path.name} no longer reaches byte {position}")
            position, rest = position + count, rest[count:]


class Prepared:
    """A prepared data set on disk; `split(name)` gives its studies as dicts, in the file's order.

    Raises UserError where the folder is no prepared data set, or its parts do not belong together.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        remedy = "make one with `python -m data.prepare` (README.md, section Your own data)"
        for name in ("studies.jsonl", "images.npy", "manifest.json"):
            if not (self.folder / name).is_file():
                raise UserError(f"{self.folder}: no prepared data set, {name} is missing; {remedy}")
        self.manifest = read_json(self.folder / "manifest.json", remedy="prepare the data set again")
        self.images = PictureFile(self.folder / "images.npy")
        self.size = self.images.shape[1]
        self.studies = list(self._read_studies())

    def _read_studies(self):
        """Yields the studies of studies.jsonl, each checked. Raises UserError, naming the line."""
        path = self.folder / "studies.jsonl"
        seen = set()
        for number, line in text_lines(path):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                study = json.loads(line)
                missing = {"id", "split", "report", "views"} - study.keys()
            except (ValueError, AttributeError, RecursionError):
                raise UserError(f"{where}: not a JSON object; prepare the data set again") from None
            if missing:
                raise UserError(f"{where}: no {', '.join(sorted(missing))}; prepare the data set again")

            if study["split"] not in SPLITS:
                raise UserError(f"{where}: split {study['split']!r} is none of {', '.join(SPLITS)}")
            if study["id"] in seen:
                raise UserError(f"{where}: the id {study['id']!r} stands there twice; ids must be unique")
            if not isinstance(study["report"], str):
                raise UserError(f"{where}: the report is {study['report']!r}, no text; prepare the data set again")
            views = study["views"]
            if not (isinstance(views, list) and views and all(row in range(len(self.images)) for row in views)):
                raise UserError(f"{where}: views {views} are not rows of images.npy ({len(self.images)} pictures); "
                                "prepare the data set again")
            seen.add(study["id"])
            yield study

    def split(self, name):
        """The studies of train, val or test. Raises UserError where there is none."""
        studies = [study for study in self.studies if study["split"] == name]
        if not studies:
            raise UserError(f"{self.folder}: no study in the split {name!r}; it has "
                            + ", ".join(f"{sum(s['split'] == other for s in self.studies)} {other}"
                                        for other in SPLITS))
        return studies

    def pictures(self, study):
        """The study's views as a uint8 tensor (V, S, S). Raises UserError."""
        pictures = np.empty((len(study["views"]), self.size, self.size), np.uint8)
        try:
            for row, picture in zip(study["views"], pictures):
                self.images.read(row * picture.size, picture)
        except (OSError, EOFError) as error:
            raise UserError(f"{self.folder}: study {study['id']!r} cannot be read: {error}; "
                            "prepare the data set again") from error
        return torch.from_numpy(pictures)


def generator_for(*key):
    """A torch.Generator that depends on the integers of `key` alone."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Visits(torch.utils.data.Dataset):
    """What a stage sees of its studies; indexed by (epoch, study number), so that the caller owns all order.

    `stage` 1 gives one random view and `sentences` random sentences per visit (one: the paper; a report with fewer
    repeats itself), `stage` 2 all views and the whole report. `crop` is the encoder's picture size. With `seed` None
    nothing is random: centre crop, first view, first sentences. `features`, tokens of every picture by its row, takes
    the pictures' place in stage 2.
    """

    def __init__(self, prepared, studies, stage, crop, seed=None, sentences=1, features=None):
        if crop > prepared.size:
            raise UserError(f"{prepared.folder}: pictures of {prepared.size} px cannot give crops of {crop} px; "
                            f"prepare the data set again with --size {64 * -(-crop // 56)}")  # 256 for 224, 448 for 384
        self.prepared, self.studies, self.stage, self.crop, self.seed = prepared, studies, stage, crop, seed
        self.sentences, self.features = sentences, features
        self.texts = [self._text(study) for study in studies]

    def _text(self, study):
        report = clean_report(study["report"])
        found = sentences(report) if self.stage == 1 else report
        if not found:
            raise UserError(f"{self.prepared.folder}/studies.jsonl: study {study['id']!r} has an empty report; "
                            "leave it out, or prepare the data set again")
        return found

    def __len__(self):
        return len(self.studies)

    def __getitem__(self, visit):
        epoch, number = visit
        study, text = self.studies[number], self.texts[number]
        if self.features is not None:
            return {"number": number, "id": study["id"], "images": self.features[study["views"]], "text": text}
        generator = None if self.seed is None else generator_for(self.seed, epoch, number)
        pictures = self.prepared.pictures(study)
        if self.stage == 1:
            view = 0 if generator is None else int(torch.randint(len(pictures), (), generator=generator))
            order = torch.arange(len(text)) if generator is None else torch.randperm(len(text), generator=generator)
            pictures, text = pictures[view:view + 1], [text[order[draw % len(text)]] for draw in range(self.sentences)]
        return {"number": number, "id": study["id"], "images": augment(pictures, self.crop, generator), "text": text}


def collate(visits):
    """Visits with equally many views → {"ids", "numbers", "images" (B, V, 3, crop, crop) or (B, V, n, d), "texts"}.

    A text is a report (stage 2) or a list of sentences (stage 1).
    """
    return {"ids": [visit["id"] for visit in visits], "numbers": [visit["number"] for visit in visits],
            "images": torch.stack([visit["images"] for visit in visits]), "texts": [visit["text"] for visit in visits]}


def plan_epoch(view_counts, batch_size, seed=None, epoch=0):
    """The batches of one epoch: lists of study numbers that have equally many views; the last ones may be smaller.

    `view_counts` holds one number per study (pass equal numbers where a visit shows one view). With a seed the studies
    are shuffled within, and the batches across, the groups; without one they stand in order, for evaluation.
    """
    groups = {}
    rng = None if seed is None else np.random.Generator(np.random.PCG64([seed, epoch]))
    numbers = range(len(view_counts)) if rng is None else rng.permutation(len(view_counts)).tolist()
    for number in numbers:
        groups.setdefault(view_counts[number], []).append(number)
    batches = [group[start:start + batch_size]
               for group in groups.values() for start in range(0, len(group), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
