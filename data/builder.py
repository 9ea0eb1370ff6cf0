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
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import SPLITS
from data.files import UserError, read_json, whole_file
from data.reports import LABELS, sentences
from data.workers import in_workers

TO_READ, READ, BAD = 0, 1, 2  # what the state file says of a picture, a byte each
CHUNK = 8  # pictures a worker is given at a time
SAVE_EVERY = 5.0  # seconds of work that a kill can cost


def build(studies, read, out, *, size, workers, options, skipped=(), found=None, origin="the source"):
    """Reads every picture of `studies` and writes the prepared data set `out`; returns its manifest.

    `read(picture, size)` gives (size, size) uint8 or raises UserError or OSError, whose message becomes the reason for
    leaving the study out; with `read` None there are no pictures (views stay empty). `skipped` and `found` (counts)
    are the source's own and go into the manifest; `origin` is what a message calls it. A killed build goes on where it
    stopped; the bytes written do not depend on that or on `workers`. Raises UserError where `out` holds a data set made
    with other options.
    """
    out, options = Path(out), {**options, "size": None if read is None else size}
    done = finished(out, options)
    if done is not None:
        return done
    studies, skipped = _usable(studies, skipped, origin)
    out.mkdir(parents=True, exist_ok=True)
    work = _Work(out, studies, options)
    if not work.described():
        reasons = {} if read is None else work.read_all(read, workers)
        kept = [study for n, study in enumerate(studies) if not reasons.keys() & set(work.rows[n])]
        unreadable = [{"id": study.id, "why": why[0]} for study, rows in zip(studies, work.rows, strict=True)
                      if (why := [reasons[row] for row in rows if row in reasons])]
        if not kept:
            work.discard()
            raise _nothing_left(unreadable, origin)
        skipped += unreadable
        work.describe(studies, reasons, _manifest(kept, skipped, options, found))
    return work.finish()


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
        other = sorted(key for key in made_with.keys() | options.keys() if made_with.get(key) != options.get(key))
        raise UserError(f"{out}: holds a data set made with another {', '.join(other)} "
                        f"({', '.join(repr(made_with.get(key)) for key in other)}); choose another --out or remove it")
    files = ["studies.jsonl"] + ["images.npy"] * (options["size"] is not None)
    return manifest if all((Path(out) / name).is_file() for name in files) else None


def kind_of(why):
    """A reason without the file's name."""
    return why.split(": ", 1)[-1]


def _nothing_left(skipped, origin):
    """The UserError that gives the most frequent reason, by its first example."""
    if not skipped:
        return UserError(f"{origin}: no study is left: the source is empty; give the folder of the whole download")
    kind, number = Counter(kind_of(entry["why"]) for entry in skipped).most_common(1)[0]
    why = next(entry["why"] for entry in skipped if kind_of(entry["why"]) == kind)
    return UserError(f"{origin}: no study is left; {number:,} of {len(skipped):,} were left out like the first of "
                     f"them, because of: {why}; compare the files and options with the README, section Data")


def _usable(studies, skipped, origin):
    """(the studies with words in their report, skipped and the others). UserError for an impossible id or split."""
    seen, usable, skipped = set(), [], list(skipped)
    for study in studies:
        if study.id in seen:
            raise UserError(f"{origin}: two studies have the id {study.id!r}; ids must be unique, remove one")
        if study.split not in SPLITS:
            raise UserError(f"{origin}: study {study.id!r}: split {study.split!r} is none of {', '.join(SPLITS)}")
        seen.add(study.id)
        if sentences(study.report):
            usable.append(study)
        else:
            skipped.append({"id": study.id, "why": "no words in the report"})
    if not usable:
        raise _nothing_left(skipped, origin)
    return usable, skipped


def _manifest(kept, skipped, options, found):
    train = {study.report for study in kept if study.split == "train"}
    return {
        "counts": {split: sum(study.split == split for study in kept) for split in SPLITS},
        "pictures": sum(len(study.pictures) for study in kept),
        # Reports that stand letter by letter in the training split: a score on them is partly memory.
        "repeats": {split: sum(study.split == split and study.report in train for study in kept)
                    for split in ("val", "test")},
        "options": options,
        "labels": list(LABELS),
        "found": found or {},
        "skipped": skipped,
    }


class _Work:
    """The unfinished data set: hidden files beside the final ones, which a later run with the same plan goes on from.

    .images.npy.part     all pictures, each on the row of its turn
    .state.part          the plan's digest (32 bytes), then a byte a picture; never ahead of the pictures on the disk
    .manifest.json.part  written when all is read; from then on only rows are moved and files renamed
    """

    def __init__(self, out, studies, options):
        self.out, self.size = out, options["size"]
        self.pictures = [picture for study in studies for picture in study.pictures]
        rows = iter(range(len(self.pictures)))
        self.rows = [[next(rows) for _ in study.pictures] for study in studies]
        self.images, self.state = out / ".images.npy.part", out / ".state.part"
        self.manifest = out / ".manifest.json.part"
        plan = hashlib.sha256(repr(options).encode())
        for study in studies:
            plan.update(repr(tuple(study)).encode("utf-8", "backslashreplace"))
        self.plan = plan.digest()
        if not self.state.exists() or self.state.read_bytes()[:32] != self.plan:
            self.discard()
            with whole_file(self.state, "wb") as file:
                file.write(self.plan + bytes(len(self.pictures)))

    def discard(self):
        for path in (self.state, self.manifest, self.images):
            path.unlink(missing_ok=True)

    def described(self):
        """Whether all pictures are read and only `finish` is left."""
        return self.manifest.exists() and (self.images.exists() or self.size is None
                                           or (self.out / "images.npy").exists())

    def read_all(self, read, workers):
        """Fills the pictures' file; returns {row: why} of the pictures that cannot be read."""
        header, row_bytes = _header(len(self.pictures), self.size), self.size * self.size
        needed, free = len(header) + len(self.pictures) * row_bytes, shutil.disk_usage(self.out).free
        state = np.frombuffer(self.state.read_bytes(), np.uint8, offset=32).copy()
        if not self.images.exists():
            state[:] = TO_READ
            if needed > free:
                raise UserError(f"{self.out}: the pictures need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                                "choose another --out or a smaller --size")
            with whole_file(self.images, "wb") as file:
                file.write(header)
                file.truncate(needed)
        todo = np.flatnonzero(state != READ).tolist()  # a bad picture is tried again: it may have been mended
        reasons = {}
        with open(self.images, "r+b") as file, open(self.state, "r+b") as state_file:

            def save():
                file.flush()
                os.fsync(file.fileno())
                state_file.seek(32)
                state_file.write(state.tobytes())
                state_file.flush()

            saved = time.monotonic()
            chunks = [[(row, self.pictures[row]) for row in todo[i:i + CHUNK]] for i in range(0, len(todo), CHUNK)]
            bar = tqdm(total=len(state), initial=len(state) - len(todo), unit=" pictures", desc=str(self.out), delay=1,
                       mininterval=0.5 if sys.stderr.isatty() else 30)
            try:
                for row, picture in in_workers(partial(_read_chunk, read, self.size), chunks, workers):
                    if isinstance(picture, str):
                        state[row], reasons[row] = BAD, picture
                    else:
                        file.seek(len(header) + row * row_bytes)
                        file.write(picture)
                        state[row] = READ
                    bar.update()
                    if time.monotonic() - saved > SAVE_EVERY:
                        save()
                        saved = time.monotonic()
            finally:
                bar.close()
                save()
        return reasons

    def describe(self, studies, reasons, manifest):
        """Writes studies.jsonl and, last, the manifest's draft with the moves that close the gaps.

        The gaps that left-out studies leave among the rows are filled with the last rows, so few pictures move.
        """
        left_out = {row for rows in self.rows if reasons.keys() & set(rows) for row in rows}
        N = len(self.pictures) - len(left_out)
        tail = (row for row in range(N, len(self.pictures)) if row not in left_out)
        moves = {next(tail): gap for gap in range(N) if gap in left_out}
        with whole_file(self.out / "studies.jsonl") as file:
            for study, rows in zip(studies, self.rows, strict=True):
                if not left_out & set(rows):
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
            with open(self.images, "r+b") as file:
                # A gap lies below `rows`, the row that fills it above: no move overwrites another's source.
                if os.fstat(file.fileno()).st_size > len(header) + draft["rows"] * row_bytes:
                    for source, gap in draft["moves"]:
                        file.seek(len(header) + source * row_bytes)
                        row = file.read(row_bytes)
                        file.seek(len(header) + gap * row_bytes)
                        file.write(row)
                    file.flush()
                    os.fsync(file.fileno())
                    file.truncate(len(header) + draft["rows"] * row_bytes)
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
    """[(row, picture)] → [(row, pixels or the reason why there are none)]"""
    results = []
    for row, picture in chunk:
        try:
            pixels = read(picture, size)
            assert pixels.dtype == np.uint8 and pixels.shape == (size, size)
            results.append((row, pixels.tobytes()))
        except (UserError, OSError) as error:
            results.append((row, str(error)))
    return results
