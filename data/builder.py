"""Builds a prepared data set on the disk from a source's studies: in parallel, resumable, every omission named.

A study is used whole or not at all: if one of its pictures cannot be read, the report would speak of something that
the model cannot see. What is left out stands in manifest.json with the reason; no stand-in takes a picture's place.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.files import UserError, read_json, whole_file
from data.images import Outshone
from data.reports import LABELS, sentences
from data.source import SPLITS
from data.workers import in_workers

TO_READ, READ, BAD, OUTSHONE = 0, 1, 2, 3  # what the state file says of a picture, one byte each; OUTSHONE is read too
CHUNK = 8  # pictures that a worker is given at a time
SAVE_EVERY = 5.0  # seconds of work that a kill can cost


def build(source, read, out, *, size, workers, options):
    """Reads every picture of a `Source` and writes the prepared data set `out`; returns its manifest.

    `read(picture, size)` gives (size, size) uint8 or raises UserError or OSError, whose message becomes the reason for
    leaving the study out; with `read` None there are no pictures (views stay empty). A killed build goes on where it
    stopped; the bytes written do not depend on that or on `workers`. Raises UserError where `out` holds a data set made
    with other options.
    """
    out, options = Path(out), {**options, "size": None if read is None else size}
    done = finished(out, options)
    if done is not None:
        return done
    studies, left_out = _usable(source)
    out.mkdir(parents=True, exist_ok=True)
    draft = _Draft(out, studies, options)

    if not draft.described():
        reasons, outshone = ({}, set()) if read is None else draft.read_all(read, workers)

        # One picture that can't be read leaves its study out.
        kept, unreadable, clipped = [], [], 0
        for study, rows in zip(studies, draft.rows, strict=True):
            why = next((reasons[row] for row in rows if row in reasons), None)
            if why is None:
                kept.append(study)
                clipped += len(outshone & set(rows))
            else:
                unreadable.append({"id": study.id, "why": why})
        if not kept:
            draft.discard()
            raise _nothing_left(unreadable, source)

        draft.describe(studies, reasons, _manifest(kept, left_out + unreadable, clipped, options, source.counts))
    return draft.finish()


def finished(out, options):
    """The manifest of a finished, whole data set with these options, else None; UserError if it has other options."""
    path = Path(out) / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = read_json(path)
        made_with = dict(manifest["options"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the manifest of a prepared data set; choose another --out or remove it") from None
    if made_with != options:
        changed = sorted(key for key in made_with.keys() | options.keys() if made_with.get(key) != options.get(key))
        values = ", ".join(repr(made_with.get(key)) for key in changed)
        raise UserError(f"{out}: holds a data set made with another {', '.join(changed)} ({values}); "
                        "choose another --out or remove it")
    files = ["studies.jsonl"] + ["images.npy"] * (options["size"] is not None)
    return manifest if all((Path(out) / name).is_file() for name in files) else None


def kind_of(why):
    """A reason without the file's name."""
    return why.split(": ", 1)[-1]


def _nothing_left(left_out, source):
    """The UserError that gives the most frequent reason, by its first example."""
    if not left_out:
        return UserError(f"{source.folder}: no study is left: the source is empty; "
                         "give the folder of the whole download")
    kind, number = Counter(kind_of(entry["why"]) for entry in left_out).most_common(1)[0]
    why = next(entry["why"] for entry in left_out if kind_of(entry["why"]) == kind)
    return UserError(f"{source.folder}: no study is left; {number:,} of {len(left_out):,} were left out like the first "
                     f"of them, because of: {why}; compare the files and options with docs/data.md")


def _usable(source):
    """(the studies with words in their report, all that are left out). UserError for an impossible id or split."""
    ids, usable, left_out = set(), [], list(source.left_out)
    for study in source.studies:
        if study.id in ids:
            raise UserError(f"{source.folder}: two studies have the id {study.id!r}; ids must be unique, remove one")
        if study.split not in SPLITS:
            raise UserError(f"{source.folder}: study {study.id!r}: split {study.split!r} is none of "
                            f"{', '.join(SPLITS)}; mend it")
        ids.add(study.id)
        if sentences(study.report):
            usable.append(study)
        else:
            left_out.append({"id": study.id, "why": "no words in the report"})
    if not usable:
        raise _nothing_left(left_out, source)
    return usable, left_out


def _manifest(kept, left_out, clipped, options, counts):
    train = {study.report for study in kept if study.split == "train"}
    return {
        "counts": {split: sum(study.split == split for study in kept) for split in SPLITS},
        "pictures": sum(len(study.pictures) for study in kept),
        # Deep pictures with a few pixels far brighter than all others, which are shown as white (data/images.py).
        "clipped_pictures": clipped,
        # Reports that stand letter by letter in the training split: a score on them is partly memory.
        "repeats": {split: sum(study.split == split and study.report in train for study in kept)
                    for split in ("val", "test")},
        "options": options,
        "labels": list(LABELS),
        "found": counts or {},
        "skipped": left_out,
    }


class _Draft:
    """The unfinished data set: hidden files beside the final ones, which a later run with the same plan goes on from.

    .images.npy.part     all pictures, each on the row of its turn
    .state.part          the plan's digest (32 bytes), then a byte per picture; never ahead of the pictures on the disk
    .manifest.json.part  written when all is read; from then on only rows are moved and files renamed
    """

    def __init__(self, out, studies, options):
        self.out, self.size = out, options["size"]
        self.pictures = [picture for study in studies for picture in study.pictures]
        rows = iter(range(len(self.pictures)))
        self.rows = [[next(rows) for _ in study.pictures] for study in studies]
        self.images, self.state = out / ".images.npy.part", out / ".state.part"
        self.manifest = out / ".manifest.json.part"

        # Another plan's parts are of no use.
        plan = hashlib.sha256(repr(options).encode())
        for study in studies:
            plan.update(repr(tuple(study)).encode("utf-8", "backslashreplace"))
        if not self.state.exists() or self.state.read_bytes()[:32] != plan.digest():
            self.discard()
            with whole_file(self.state, "wb") as file:
                file.write(plan.digest() + bytes(len(self.pictures)))

    def discard(self):
        for path in (self.state, self.manifest, self.images):
            path.unlink(missing_ok=True)

    def described(self):
        """Whether all pictures are read and only `finish` is left."""
        return self.manifest.exists() and (self.images.exists() or self.size is None
                                           or (self.out / "images.npy").exists())

    def read_all(self, read, workers):
        """Fills the pictures' file; returns ({row: why} of the pictures that can't be read, rows of OUTSHONE ones)."""
        header, row_bytes = _header(len(self.pictures), self.size), self.size * self.size
        state = np.frombuffer(self.state.read_bytes(), np.uint8, offset=32).copy()
        if not self.images.exists():
            state[:] = TO_READ
            self._allocate(header, len(header) + len(self.pictures) * row_bytes)

        # A bad picture is tried again: it may have been mended.
        todo = np.flatnonzero((state == TO_READ) | (state == BAD)).tolist()
        chunks = [[(row, self.pictures[row]) for row in todo[i:i + CHUNK]] for i in range(0, len(todo), CHUNK)]
        reasons = {}
        bar = tqdm(total=len(state), initial=len(state) - len(todo), unit=" pictures", desc=str(self.out), delay=1,
                   mininterval=0.5 if sys.stderr.isatty() else 30)
        with open(self.images, "r+b") as images, open(self.state, "r+b") as state_file:

            def save():
                images.flush()
                os.fsync(images.fileno())
                state_file.seek(32)
                state_file.write(state.tobytes())
                state_file.flush()

            saved = time.monotonic()
            try:
                for row, outcome, result in in_workers(partial(_read_chunk, read, self.size), chunks, workers):
                    if outcome == BAD:
                        reasons[row] = result
                    else:
                        images.seek(len(header) + row * row_bytes)
                        images.write(result)
                    state[row] = outcome
                    bar.update()
                    if time.monotonic() - saved > SAVE_EVERY:
                        save()
                        saved = time.monotonic()
            finally:
                bar.close()
                save()
        return reasons, set(np.flatnonzero(state == OUTSHONE).tolist())

    def _allocate(self, header, file_bytes):
        """The pictures' file at its full length. Raises UserError where the disk has too little room for it."""
        free = shutil.disk_usage(self.out).free
        if file_bytes > free:
            raise UserError(f"{self.out}: the pictures need {file_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                            "choose another --out or a smaller --size")
        with whole_file(self.images, "wb") as file:
            file.write(header)
            file.truncate(file_bytes)

    def describe(self, studies, reasons, manifest):
        """Writes studies.jsonl and, last, the manifest's draft with the moves that close the gaps.

        The gaps that left-out studies leave among the rows are filled with the last rows, so few pictures move.
        """
        unused = {row for rows in self.rows if reasons.keys() & set(rows) for row in rows}
        N = len(self.pictures) - len(unused)
        tail = (row for row in range(N, len(self.pictures)) if row not in unused)
        moves = {next(tail): gap for gap in range(N) if gap in unused}

        with whole_file(self.out / "studies.jsonl") as file:
            for study, rows in zip(studies, self.rows, strict=True):
                if not unused & set(rows):
                    views = [moves.get(row, row) for row in rows] if self.size else []
                    line = {"id": study.id, "split": study.split, "report": study.report, "views": views, **study.extra}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        with whole_file(self.manifest) as file:
            json.dump({"moves": list(moves.items()), "rows": N, "manifest": manifest}, file, ensure_ascii=False)

    def finish(self):
        """Closes the gaps, renames; every step can be repeated, so a kill between any two does no harm."""
        draft = read_json(self.manifest)
        if self.images.exists():
            header, row_bytes = _header(draft["rows"], self.size), self.size * self.size
            end = len(header) + draft["rows"] * row_bytes
            with open(self.images, "r+b") as file:
                # A gap lies below `rows`, the row that fills it above: no move overwrites another's source.
                if os.fstat(file.fileno()).st_size > end:
                    for source, gap in draft["moves"]:
                        file.seek(len(header) + source * row_bytes)
                        row = file.read(row_bytes)
                        file.seek(len(header) + gap * row_bytes)
                        file.write(row)
                    file.flush()
                    os.fsync(file.fileno())
                    file.truncate(end)

                file.seek(0)
                file.write(header)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.images, self.out / "images.npy")

        with whole_file(self.out / "manifest.json") as file:
            file.write(json.dumps(draft["manifest"], ensure_ascii=False, indent=1) + "\n")
        self.manifest.unlink()
        self.state.unlink()
        return draft["manifest"]


def _header(rows, size):
    """The header of an .npy file, format 1.0, always 128 bytes long, so that the number of rows can still change."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, {size}, {size}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def _read_chunk(read, size, chunk):
    """[(row, picture)] → [(row, READ or OUTSHONE, pixels) or (row, BAD, the reason why there are none)]"""
    results = []
    for row, picture in chunk:
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", Outshone)
                pixels = read(picture, size)
            assert pixels.dtype == np.uint8 and pixels.shape == (size, size)
            outshone = any(issubclass(warning.category, Outshone) for warning in warned)
            results.append((row, OUTSHONE if outshone else READ, pixels.tobytes()))
        except (UserError, OSError) as error:
            results.append((row, BAD, str(error)))
    return results
