"""Writes a prepared data set from the studies of a source. The work runs in parallel, and can be interrupted and
continued.

A study is used whole or not at all: without one of its pictures, the report would describe something that the model
cannot see. manifest.json lists every study left out, with the reason. A missing picture is never replaced.
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

TO_READ, READ, BAD, OUTSHONE = 0, 1, 2, 3  # a picture's byte in the state file; OUTSHONE: read, with this warning
CHUNK = 8  # pictures per task of a worker
SAVE_EVERY = 5.0  # seconds between two saved states: the most work that a killed run loses


def build(source, read, out, *, size, workers, options):
    """Reads every picture of a `Source` and writes the prepared data set to the folder `out`; returns its manifest.

    `read(picture, size)` returns a (size, size) uint8 array. If it raises UserError or OSError, the study is left out,
    with the error's message as the reason. With `read` None no pictures are written, and every study's views are empty.
    A killed build, started again, continues where it stopped. The files are the same, byte for byte, for any
    interruption and any number of `workers`. Raises UserError if `out` holds a data set made with other options, or if
    no study is left.
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

        # A study with one unreadable picture is left out.
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
    """The manifest of the complete data set in `out`, or None if there is none. Raises UserError for other options."""
    path = Path(out) / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = read_json(path)
        made_with = dict(manifest["options"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the manifest of a prepared data set; choose another --out, or remove this "
                        "file") from None
    if made_with != options:
        changed = sorted(key for key in made_with.keys() | options.keys() if made_with.get(key) != options.get(key))
        values = ", ".join(repr(made_with.get(key)) for key in changed)
        raise UserError(f"{out}: holds a data set made with another {', '.join(changed)} ({values}); "
                        "choose another --out, or remove this folder")
    files = ["studies.jsonl"] + ["images.npy"] * (options["size"] is not None)
    return manifest if all((Path(out) / name).is_file() for name in files) else None


def kind_of(why):
    """The reason `why` without the file name at its start: "a.png: no such file" → "no such file"."""
    return why.split(": ", 1)[-1]


def _nothing_left(left_out, source):
    """The UserError for a source without a usable study: the most frequent reason, with its first example."""
    if not left_out:
        return UserError(f"{source.folder}: no study is left: the source is empty; "
                         "give the folder of the complete download")
    kind, number = Counter(kind_of(entry["why"]) for entry in left_out).most_common(1)[0]
    why = next(entry["why"] for entry in left_out if kind_of(entry["why"]) == kind)
    return UserError(f"{source.folder}: no study is left; {number:,} of {len(left_out):,} were left out for the same "
                     f"reason, the first because of: {why}; compare the files and options with docs/data.md")


def _usable(source):
    """(studies with words in the report, [{"id", "why"}] of all left out). UserError for a repeated id or bad split."""
    ids, usable, left_out = set(), [], list(source.left_out)
    for study in source.studies:
        if study.id in ids:
            raise UserError(f"{source.folder}: two studies have the id {study.id!r}; remove or rename one of them")
        if study.split not in SPLITS:
            raise UserError(f"{source.folder}: study {study.id!r}: split {study.split!r} is none of "
                            f"{', '.join(SPLITS)}; correct it")
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
        # 16- or 32-bit pictures with a few pixels far brighter than all others, shown as white (data/images.py).
        "clipped_pictures": clipped,
        # Reports that are also in the train split, letter by letter: a model may score well on them from memory.
        "repeats": {split: sum(study.split == split and study.report in train for study in kept)
                    for split in ("val", "test")},
        "options": options,
        "labels": list(LABELS),
        "found": counts or {},
        "skipped": left_out,
    }


class _Draft:
    """The unfinished data set: hidden files in `out`, from which a later run with the same plan continues.

    .images.npy.part     all pictures, in the order of the studies
    .state.part          the plan's digest (32 bytes), then one byte per picture, written after the picture itself
    .manifest.json.part  written after all pictures; the remaining work only moves rows and renames files

    The plan is the options and all studies.
    """

    def __init__(self, out, studies, options):
        self.out, self.size = out, options["size"]
        self.pictures = [picture for study in studies for picture in study.pictures]
        rows = iter(range(len(self.pictures)))
        self.rows = [[next(rows) for _ in study.pictures] for study in studies]
        self.images, self.state = out / ".images.npy.part", out / ".state.part"
        self.manifest = out / ".manifest.json.part"

        # Files of another plan are deleted.
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
        """Whether all pictures are read, so that only `finish` remains to be done."""
        return self.manifest.exists() and (self.images.exists() or self.size is None
                                           or (self.out / "images.npy").exists())

    def read_all(self, read, workers):
        """Writes all pictures; returns ({row: reason} of the unreadable pictures, set of the OUTSHONE pictures' rows).

        Raises UserError if the disk has too little room, or if a worker dies.
        """
        header, row_bytes = _header(len(self.pictures), self.size), self.size * self.size
        state = np.frombuffer(self.state.read_bytes(), np.uint8, offset=32).copy()
        if not self.images.exists():
            state[:] = TO_READ
            self._allocate(header, len(header) + len(self.pictures) * row_bytes)

        # A bad picture is read again: the user may have replaced the file.
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
        """Creates the pictures' file at its full length. Raises UserError if the disk has too little room for it."""
        free = shutil.disk_usage(self.out).free
        if file_bytes > free:
            raise UserError(f"{self.out}: the pictures need {file_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB "
                            "are free; choose another --out or a smaller --size")
        with whole_file(self.images, "wb") as file:
            file.write(header)
            file.truncate(file_bytes)

    def describe(self, studies, reasons, manifest):
        """Writes studies.jsonl, then the draft of the manifest with the list of row moves for `finish`.

        Studies left out leave gaps among the rows of pictures. The last rows are moved into the gaps, so that few
        pictures move.
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
        """Moves rows into the gaps and renames the files; returns the manifest.

        Every step can be repeated, so a kill between any two steps does no harm.
        """
        draft = read_json(self.manifest)
        if self.images.exists():
            header, row_bytes = _header(draft["rows"], self.size), self.size * self.size
            end = len(header) + draft["rows"] * row_bytes
            with open(self.images, "r+b") as file:
                # Gaps lie before row `rows`, and the rows that fill them after it: no move overwrites a later source.
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
    """The header of an .npy file, format 1.0. It has 128 bytes for any number of rows, so `finish` can replace it."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, {size}, {size}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def _read_chunk(read, size, chunk):
    """[(row, picture)] → [(row, READ or OUTSHONE, bytes of the pixels) or (row, BAD, reason)]"""
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
