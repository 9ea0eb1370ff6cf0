"""The prepared data set: the three files that `data.prepare` writes for any source, and that training reads.

    studies.jsonl   one study per line: id, split, report (as in the source), views (row numbers of its pictures in
                    images.npy), labels where known
    images.npy      (N, S, S) uint8: N gray pictures, already decoded and scaled to S × S pixels
    manifest.json   counts per split, the options of data.prepare, studies left out with the reason

A visit is one study in one epoch. Its random choices (view, sentences, crop and jitter of the pictures) depend on
(seed, epoch, study) alone. So a run can be stopped and resumed anywhere, and the visits are the same for any number of
processes and loader workers.
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
    """The file images.npy, open for reading; `shape` is (N, S, S). Raises UserError if the file is damaged.

    Choice: no memory map. If the file shrinks or the disk fails during a run, a memory map ends the process by SIGBUS,
    without an error message. Every read gives its own position, so threads and forked loader processes can share the
    open file.
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
        """Fills the uint8 array `out` with pixels, starting at pixel number `position`. Raises OSError, EOFError."""
        position, rest = self.start + position, memoryview(out).cast("B")
        while rest:
            count = os.preadv(self.descriptor, [rest], position)
            if count == 0:
                raise EOFError(f"{self.path.name} no longer reaches byte {position}")
            position, rest = position + count, rest[count:]


class Prepared:
    """A prepared data set on disk; `split(name)` gives its studies as dicts, in the file's order.

    Raises UserError if the folder is not a prepared data set, or if its three files do not fit together.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        remedy = "make one with `python -m data.prepare` (README.md, section Your own data)"
        for name in ("studies.jsonl", "images.npy", "manifest.json"):
            if not (self.folder / name).is_file():
                raise UserError(f"{self.folder}: not a prepared data set, {name} is missing; {remedy}")
        self.manifest = read_json(self.folder / "manifest.json", remedy="prepare the data set again")
        self.images = PictureFile(self.folder / "images.npy")
        self.size = self.images.shape[1]
        self.studies = list(self._read_studies())

    def _read_studies(self):
        """Yields the studies of studies.jsonl after a check of each. Raises UserError, which names the line."""
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
                raise UserError(f"{where}: no {', '.join(sorted(missing))} in the study; prepare the data set again")

            if study["split"] not in SPLITS:
                raise UserError(f"{where}: split {study['split']!r} is none of {', '.join(SPLITS)}; prepare the data "
                                "set again")
            if study["id"] in seen:
                raise UserError(f"{where}: an earlier line has the same id {study['id']!r}; prepare the data set again")
            if not isinstance(study["report"], str):
                raise UserError(f"{where}: the report is {study['report']!r}, not text; prepare the data set again")
            views = study["views"]
            if not (isinstance(views, list) and views and all(row in range(len(self.images)) for row in views)):
                raise UserError(f"{where}: views {views} are not rows of images.npy ({len(self.images)} pictures); "
                                "prepare the data set again")
            seen.add(study["id"])
            yield study

    def split(self, name):
        """The studies of the split `name`: train, val or test. Raises UserError if the split is empty."""
        studies = [study for study in self.studies if study["split"] == name]
        if not studies:
            raise UserError(f"{self.folder}: no study in the split {name!r} (the data set has "
                            + ", ".join(f"{sum(s['split'] == other for s in self.studies)} {other}"
                                        for other in SPLITS)
                            + "); the splits are train, val and test, and each needs a study: assign the studies in "
                              "the column split of your table, and prepare the data set again (docs/data.md)")
        return studies

    def pictures(self, study):
        """The study's views as a uint8 tensor (V, S, S). Raises UserError if images.npy cannot be read."""
        pictures = np.empty((len(study["views"]), self.size, self.size), np.uint8)
        try:
            for row, picture in zip(study["views"], pictures):
                self.images.read(row * picture.size, picture)
        except (OSError, EOFError) as error:
            raise UserError(f"{self.folder}: study {study['id']!r} cannot be read: {error}; "
                            "prepare the data set again") from error
        return torch.from_numpy(pictures)


def generator_for(*key):
    """A torch.Generator whose random numbers depend on the integers of `key` alone."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Visits(torch.utils.data.Dataset):
    """The examples of a stage, indexed by (epoch, study number): the caller chooses the order.

    `stage` 1 gives one random view and `sentences` random sentences of the report per visit (1 in the paper; a report
    with fewer sentences repeats them). `stage` 2 gives all views and the whole report. `crop` is the picture size of
    the encoder, in pixels. With `seed` None nothing is random: central crop, first view, first sentences. `features`
    replaces the pictures in stage 2 by cached tokens: features[i], (n, d), belong to row i of images.npy. Raises
    UserError if the pictures are smaller than the crop, or if a report is empty.
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
                            "remove its line, or prepare the data set again")
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
    """The batches of one epoch: lists of at most `batch_size` study numbers. All studies of a batch have equally many
    views.

    `view_counts` holds the number of views of each study (equal numbers if a visit shows one view). With a seed the
    studies are shuffled, and so are the batches. Without a seed both stay in order, for evaluation.
    """
    groups = {}
    rng = None if seed is None else np.random.Generator(np.random.PCG64([seed, epoch]))
    numbers = range(len(view_counts)) if rng is None else rng.permutation(len(view_counts)).tolist()
    for number in numbers:
        groups.setdefault(view_counts[number], []).append(number)
    batches = [group[start:start + batch_size]
               for group in groups.values() for start in range(0, len(group), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
