"""--list: reports for a list of studies that are in no prepared data set, in batches, on any number of processes.

The list holds {"id", "images": [paths]} per line, frontal view first, or is ReXrank's JSON with "image_path". Reports
are appended to reports.jsonl batch by batch, so an interrupted command can be repeated and resumes. A study whose
picture cannot be read gets a line with the error, and is tried again by the next command.
"""

import json
import os
from pathlib import Path

import torch
from tqdm import tqdm

import trrg
from data.dataset import plan_epoch
from data.files import UserError, file_digest, read_text
from evaluation.checkpoint import decoding_of
from evaluation.output import (
    NO_ADVICE,
    check_rexrank,
    results_folder,
    trained_on,
    writable,
    write_json,
    write_rexrank,
    write_rows,
)
from evaluation.pairs import rexrank_studies
from training.state import Lock

NAMED = 10                             # number of failed studies that are printed at the end; reports.jsonl has all


def report_on_list(args, header, processes):
    """Appends a line per study to reports.jsonl. Raises UserError."""
    path = Path(args.list)
    studies = read_list(path, Path(args.pictures or path.parent))
    out = results_folder(args.out or path.parent / f"reports-{path.stem}", path)
    check_rexrank(args.rexrank, path)
    settings = {"checkpoint": str(args.ckpt), "sha256_16": file_digest(args.ckpt),
                "decoding": decoding_of(header, args)}

    # The first process writes the file, and tells the others which studies are done.
    file, lock = begin(out, settings) if processes.rank == 0 else (None, None)
    done, *_ = processes.gather_objects({line["id"] for line in lines_of(out)} if file else None)
    waiting = [study for study in studies if study["id"] not in done]
    batches = plan_epoch([len(study["images"]) for study in waiting], args.batch_size)

    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device) if batches else None
    notes = {"trained_on": trained_on(header), "notice": NO_ADVICE}
    bar = tqdm(total=len(studies), initial=len(studies) - len(waiting), desc="reports", unit="study",
               disable=processes.rank != 0)
    for start in range(0, len(batches), processes.world):
        # One batch per process; in the last round some processes may have none.
        mine = [waiting[number] for batch in batches[start + processes.rank:][:1] for number in batch]
        lines = write_batch(model, mine, settings["decoding"])
        every = [line for part in processes.gather_objects(lines) for line in part]
        bar.update(len(every))
        if file:
            append(file, [line if "error" in line else {**line, **notes} for line in every])
    bar.close()
    if processes.rank:
        return
    file.close()
    lock.close()

    lines = {line["id"]: line for line in lines_of(out)}
    if args.rexrank:
        write_rexrank(args.rexrank, {study["id"]: lines[study["id"]]["report"] for study in studies
                                     if "error" not in lines[study["id"]]})
    tell(out, studies, lines)


def read_list(path, folder):
    """[{"id", "images": [Path, …]}] of a list; relative paths start at `folder`. Raises UserError, naming the line."""
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix.lower() == ".json":
        entries = [(f"study {name!r}", {"id": name, "images": frontal_first(study)})
                   for name, study in rexrank_studies(path, text).items()]
    else:
        entries = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]

    studies, places = [], {}
    for place, entry in entries:
        where = f"{path}: {place}"
        try:
            study = json.loads(entry) if isinstance(entry, str) else entry
            name, images = study["id"], study["images"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise UserError(f'{where} is no JSON object {{"id": …, "images": [paths]}}; write one such object per '
                            "line") from None
        images = [images] if isinstance(images, str) else images
        if isinstance(name, bool) or not isinstance(name, (str, int)) or not str(name).strip():
            raise UserError(f"{where}: the id must be a string or a whole number")
        if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
            raise UserError(f"{where}: images must be a list of paths, one per view of the study, the frontal view "
                             f"first")
        if str(name) in places:
            raise UserError(f"{where}: id {name!r} occurs already on {places[str(name)]}; give each study its own id")
        places[str(name)] = place
        studies.append({"id": str(name), "images": [folder / image for image in images]})
    if not studies:
        raise UserError(f'{path}: lists no studies; write one {{"id": …, "images": [paths]}} per line')
    return studies


def frontal_first(study):
    """The picture paths of a study in ReXrank's format, frontal view first, as in training."""
    images, views = study.get("image_path"), study.get("frontal_lateral")
    if not isinstance(images, list) or not isinstance(views, list) or len(images) != len(views):
        return images
    return [image for _, image in sorted(zip(views, images), key=lambda pair: str(pair[0]).lower() != "frontal")]


def begin(out, settings):
    """(reports.jsonl opened for appending, without failed studies and a cut-off line; its lock). Raises UserError."""
    path, said = out / "reports.jsonl", out / "settings.json"
    lock = Lock(out, "evaluate.py", "--out")
    if path.exists():
        before = json.loads(read_text(said)) if said.exists() else {}
        differing = [name for name in ("sha256_16", "decoding") if before.get(name) != settings[name]]
        if differing:
            what = "another checkpoint" if "sha256_16" in differing else "another decoding"
            raise UserError(f"{path}: was begun with {what if before else 'another command'}; give another folder with "
                            "--out, or delete the file")

    # Failed studies are tried again, so their lines are dropped.
    write_json(said, settings)
    write_rows(path, [line for line in lines_of(out) if "error" not in line])
    return open(path, "a", encoding="utf-8", newline="\n"), lock


def lines_of(out):
    """The complete lines of reports.jsonl; a kill may have cut off the last line, even in the middle of a character."""
    lines, path = [], out / "reports.jsonl"
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "id" in entry:
            lines.append(entry)
    return lines


def append(file, lines):
    """Appends lines in one write, and flushes them to the disk."""
    file.write("".join(writable(json.dumps(line, ensure_ascii=False)) + "\n" for line in lines))
    file.flush()
    os.fsync(file.fileno())


def write_batch(model, studies, decoding):
    """[{"id", "report", "clues"}] of studies with the same number of views; {"id", "error"} for an unreadable
    picture."""
    lines, ids, opened = [], [], []
    for study in studies:
        try:
            opened.append(open_pictures(model, study["images"]))
            ids.append(study["id"])
        except UserError as error:
            lines.append({"id": study["id"], "error": " ".join(str(error).split())})
    if not opened:
        return lines

    reports, _ = model.write(torch.cat(opened), **decoding)
    for name, report in zip(ids, reports, strict=True):
        clues = [{"prompt": prompt, "weight": round(weight, 6)} for prompt, weight in report.clues]
        lines.append({"id": name, "report": report.text, "clues": clues})
    return lines


def open_pictures(model, paths):
    """The views of one study, (1, V, 3, crop, crop). Raises UserError."""
    for path in paths:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file; give a picture file")    # opening a pipe would block
    return model.open(paths)


def tell(out, studies, lines):
    """Prints the number of reports, and the first studies that failed."""
    failed = [study["id"] for study in studies if "error" in lines[study["id"]]]
    print(f"written: {len(studies) - len(failed):,} reports in {out / 'reports.jsonl'}")
    for name in failed[:NAMED]:
        print(f"no report for {name!r}: {lines[name]['error']}")
    if len(failed) > NAMED:
        print(f"and no report for {len(failed) - NAMED:,} more studies; reports.jsonl names them")
