"""Makes all pictures of README.md and docs/, from the phantom, a checkpoint of the demo, its log and the experiments.

    python -m docs.make --ckpt runs/demo/ckpt.safetensors

    first.svg               one study: its pictures with a clue's heat map, its clues, its report beside the reference
    frontal.png, lateral.png   the same study's pictures alone, to try `evaluate.py --image` with
    gallery[-dark].webp     two studies of report.html, where there is a Chromium
    ladder.svg, swaps.svg   what the experiments measured, with 95 % intervals over the studies of all seeds
    scarce.svg, mix.svg     the same over the share of reports that stage 2 reads, and over the share of right clues
    learned.svg             the report of one and the same study after each validation
    curves.svg              the losses of both stages

Each SVG needs no other file and has a light and a dark form.
"""

import base64
import html
import io
import json
import re
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

import trrg
from data.command import Parser, plain_output
from data.dataset import Prepared
from data.files import UserError, whole_file
from data.phantom.labeler import BOTH, SEVERITY, SIDES
from evaluation.labels import phantom_labeler, with_labels
from evaluation.page import charts, gallery
from evaluation.page.page import write_page
from evaluation.page.training import samples_of
from evaluation.results import Scoring, evaluate_texts
from evaluation.writing import as_row, write_reports
from metrics.intervals import with_intervals
from tests.browser import CHROME, Browser
from tests.experiments.grid import SCARCE
from tests.experiments.measures import MIXES, SWAPS, measured
from tests.experiments.tables import joined
from training.log import read_rows
from training.processes import Processes

WIDTH, LOOKED_AT = 960, 200            # of a picture in px; test studies among which the shown ones are looked for
FIGURES = ("micro F1", "invented", "missed")
WORDS_FOR = {**dict(SEVERITY), **dict(SIDES), "both": BOTH}    # "severe", of a disagreement, is written "large" as well
STYLE = """
text { fill: #1d2327; font-family: system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
.paper { fill: #ffffff; } .quiet, .tick { fill: #5d6870; } .head { font-weight: 600; } .tick { font-size: 11px; }
.match { fill: #1d7a4c; text-decoration: underline; } .differs { fill: #2f5fb3; text-decoration: underline dotted; }
.invented, .wrong { fill: #b3261e; text-decoration: underline wavy; } .wrong { font-weight: 700; }
.missed, .denied { fill: #8a5a00; text-decoration: underline dashed; }
.rail { fill: #e8ebe9; } .fill { fill: #1f6f8b; } .other { fill: #77777f; } .whisker { stroke: #1d2327; fill: none; }
path.joined { fill: none; stroke-width: 2; } path.fill { stroke: #1f6f8b; } path.other { stroke: #77777f; }
.zero { stroke: #5d6870; stroke-dasharray: 3 3; fill: none; }
.chart .grid { stroke: #e8ebe9; } path.train { fill: none; stroke: #1f6f8b; } path.raw { opacity: .28; }
path.line { stroke-width: 2; } circle.held-out { fill: #a2611c; } path.held-out { fill: none; stroke: #a2611c; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e8ea; } .paper { fill: #0d1117; } .quiet, .tick { fill: #9aa6ad; } .match { fill: #72cf9c; }
  .differs { fill: #96b8f5; } .invented, .wrong { fill: #ff9a90; } .missed, .denied { fill: #efc35c; }
  .rail { fill: #2b3338; } .fill { fill: #6bbcd6; } .other { fill: #a3a3ad; } .whisker { stroke: #e4e8ea; }
  .zero { stroke: #9aa6ad; } .chart .grid { stroke: #2b3338; } path.train { stroke: #6bbcd6; }
  path.fill { stroke: #6bbcd6; } path.other { stroke: #a3a3ad; } circle.held-out { fill: #dfa15f; } path.held-out { stroke: #dfa15f; }
}"""


# --- parts of a drawing -----------------------------------------------------------------------------------------------


def escape(text):
    """For SVG, in which no escape lets a control character stand: each becomes "?"."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", html.escape(text))


def drawing(height, title, body):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}"><title>{escape(title)}</title><style>{escape(STYLE)}</style>'
            f'<rect class="paper" width="100%" height="100%"/>{body}</svg>\n')


def words(text, x, y, cls="", size=14):
    return f'<text class="{cls}" x="{x:.0f}" y="{y:.0f}" font-size="{size}">{escape(text)}</text>'


def flow(pieces, x, y, width, size=15, line=23):
    """[(text, class)] as wrapped lines → (SVG, the y below them). No font is measured: a letter is .53 of its size."""
    lines, used = [[]], 0
    for text, cls in pieces:
        for word in text.split():
            needed = 0.53 * size * (len(word) + 1)
            if used + needed > width and lines[-1]:
                lines.append([])
                used = 0
            lines[-1].append((word, cls))
            used += needed

    drawn = []
    for number, of_line in enumerate(lines):
        runs = [f'<tspan class="{cls}">{escape(" ".join(word for word, _ in run))}</tspan>'
                for cls, run in groupby(of_line, key=lambda pair: pair[1])]
        drawn.append(f'<text x="{x}" y="{y + line * number}" font-size="{size}">{" ".join(runs)}</text>')
    return "".join(drawn), y + line * len(lines)


def embedded(image, x, y, side, kind="JPEG"):
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{side}" height="{side}" href="data:image/{kind.lower()};base64,{data}"/>'


def heat(grid, low, high):
    """(g, g) → a picture as page.js draws it: transparent where the value is lowest, yellow where it is highest."""
    v = (grid - low) / max(high - low, 1e-9)
    pixels = np.stack([np.full_like(v, 255), 90 + 130 * v, np.full_like(v, 30), 200 * v**1.5], -1)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA").resize((112, 112), Image.Resampling.BICUBIC)


def bars(groups, title, subtitle, line=30):
    """Groups of [(name, class, {figure: cell})] as bars with intervals, a panel per figure.

    A dashed line marks the first row of each group.
    """
    rows = [row for group in groups for row in group]
    label, panel, top = 250, (WIDTH - 250 - 20) / len(FIGURES), 84
    parts = [words(title, 20, 32, "head", 18), words(subtitle, 20, 54, "quiet", 13)]
    for column, name in enumerate(FIGURES):
        left, width = label + column * panel, panel - 70
        highest = max(cells[name]["high"] for _, _, cells in rows) or 1
        parts.append(words(f"{name} ↑" if name == "micro F1" else f"{name} per report ↓", left, top - 8, "quiet", 12))
        for number, (_, cls, cells) in enumerate(rows):
            y = top + line * number + 4
            x, low, high = (width * max(0, cells[name][key]) / highest for key in ("value", "low", "high"))
            middle = y + line / 2 - 6
            parts.append(f'<rect class="{cls}" x="{left:.1f}" y="{y}" width="{x:.1f}" height="{line - 12}" rx="2"/>'
                         f'<path class="whisker" d="M{left + low:.1f} {middle}H{left + high:.1f}"/>'
                         + words(f"{cells[name]['value']:.3f}", left + high + 6, y + 14, "", 12))
        y = top
        for group in groups:
            x = left + width * group[0][2][name]["value"] / highest
            parts.append(f'<path class="zero" d="M{x:.1f} {y}V{y + line * len(group) - 4}"/>')
            y += line * len(group)
    parts += [words(name, 20, top + line * number + 18) for number, (name, _, _) in enumerate(rows)]
    return drawing(top + line * len(rows) + 16, title, "".join(parts))


def lines_over(ticks, series, title, subtitle):
    """[(name, colour class, [{figure: cell} per tick, None where there is none])] as lines, a panel per figure."""
    panel, top, height = (WIDTH - 20) / len(FIGURES), 118, 190
    parts = [words(title, 20, 32, "head", 18), words(subtitle, 20, 54, "quiet", 13)]
    for number, (name, cls, _) in enumerate(series):
        parts += [f'<rect class="{cls}" x="{20 + 150 * number}" y="68" width="14" height="14" rx="2"/>',
                  words(name, 40 + 150 * number, 80, "", 13)]

    for column, name in enumerate(FIGURES):
        left, width = 20 + column * panel, panel - 60
        known = [cells[name] for _, _, points in series for cells in points if cells]
        low, high = min(cell["low"] for cell in known), max(cell["high"] for cell in known)
        x = [left + width * (i + 0.5) / len(ticks) for i in range(len(ticks))]
        parts.append(words(f"{name} ↑" if name == "micro F1" else f"{name} per report ↓", left, top - 12, "quiet", 12))
        parts += [words(tick, place - 12, top + height + 32, "quiet", 12) for tick, place in zip(ticks, x)]

        # A number stands above its point where it is the highest there, else below
        highest = [max((cells[name]["value"] for cells in at_tick if cells), default=None)
                   for at_tick in zip(*(points for _, _, points in series))]
        for _, cls, points in series:
            path = []
            for place, cells, most in zip(x, points, highest):
                if cells:
                    y = {key: top + height * (high - cells[name][key]) / ((high - low) or 1)
                         for key in ("value", "low", "high")}
                    path.append(f"{place:.1f} {y['value']:.1f}")
                    parts += [f'<path class="whisker" d="M{place:.1f} {y["low"]:.1f}V{y["high"]:.1f}"/>',
                              f'<circle class="{cls}" cx="{place:.1f}" cy="{y["value"]:.1f}" r="4"/>',
                              words(f"{cells[name]['value']:.3f}", place + 6,
                                    y["value"] + (-8 if cells[name]["value"] == most else 16), "", 11)]
            parts.append(f'<path class="{cls} joined" d="M{"L".join(path)}"/>')
    return drawing(top + height + 48, title, "".join(parts))


# --- the pictures -----------------------------------------------------------------------------------------------------


def written_studies(args):
    """(data set, [(study, card of gallery.py, row, maps)] of the first test studies, as the checkpoint writes them)."""
    model = trrg.load(args.ckpt)
    prepared = Prepared(args.data or model.header["data"])
    if prepared.manifest.get("options", {}).get("source") != "phantom":
        raise UserError(f"{prepared.folder}: the pictures are made from the phantom; name its folder with --data")
    studies, labeler = prepared.split("test")[:LOOKED_AT], phantom_labeler()
    written = write_reports(model, prepared, studies, Processes(), maps=True, **model.decoding)
    rows, _ = with_labels([as_row(study, report.text, report.clues)
                           for study, (report, _) in zip(studies, written)], labeler)
    cards, _ = gallery.studies(rows, labeler=labeler)
    return prepared, list(zip(studies, cards, rows, (maps for _, maps in written)))


def telling(studies):
    """The studies, the best examples first: frontal and lateral, one wrong word, all else right, many findings, none of
    them stated twice, few words.

    Studies with devices come later: their label says that there is one, not which.
    """
    def order(one):
        labels, kinds = [label for label, _, _ in one[1]["f"]], [kind for _, kind, _ in one[1]["f"]]
        pieces = marked(one[1])
        return (len(one[0]["views"]) != 2, [kind for _, kind in pieces].count("wrong") != 1,
                sum(kind not in ("match", "differs") for kind in kinds), kinds.count("differs"),
                "Support Devices" in labels, -len(kinds),
                sum(len(stated) for _, _, stated in one[1]["h"]) - len(kinds), len(pieces))
    return sorted(studies, key=order)


def marked(card):
    """The generated report as [(word, class)]. Of a finding on another side or of another severity, what says so is
    "wrong" and the rest of the sentence "match"; where no single word says so, the whole sentence "differs".
    """
    notes = {label: note for label, kind, note in card["f"] if kind == "differs"}
    pieces = []
    for sentence, kind, labels in card["h"]:
        stated = {part.split(",")[0].strip() for label in labels for part in notes.get(label, "").split(";")}
        spans = [match.span() for name in stated & WORDS_FOR.keys()
                 for match in WORDS_FOR[name].finditer(sentence.lower())]
        for word in re.finditer(r"\S+", sentence):
            wrong = any(start < word.end() and word.start() < end for start, end in spans)
            pieces.append((word.group(), "wrong" if wrong else "match" if spans and kind == "differs" else kind))
    return pieces


def first(prepared, study, card, _, maps):
    """One of `written_studies`: pictures and clues on the left, reference and report on the right."""
    pictures, side = prepared.pictures(study).numpy(), 228
    clue, _, grids = maps["clues"][0] if maps["clues"] else ("", 0, None)

    # The views, each under the heat map of the first clue
    parts = []
    for number, picture in enumerate(pictures[:2]):
        x = 20 + number * (side + 12)
        shown = Image.fromarray(picture).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
        parts.append(embedded(shown, x, 20, side))
        if grids is not None:
            inner = side * maps["cover"]
            parts.append(embedded(heat(grids[min(number, len(grids) - 1)], grids.min(), grids.max()),
                                  x + (side - inner) / 2, 20 + (side - inner) / 2, inner, "PNG"))

    # The clues, with their weights as bars
    y = side + 46
    parts.append(words(f"heat map of “{clue.removeprefix('Clue: ')}”", 20, y, "quiet", 12))
    for prompt, weight, _ in maps["clues"]:
        y += 30
        parts += [words(prompt.removeprefix("Clue: "), 20, y), words(f"{100 * weight:.0f} %", 450, y, "quiet"),
                  f'<rect class="rail" x="20" y="{y + 6}" width="468" height="5" rx="2"/>'
                  f'<rect class="fill" x="20" y="{y + 6}" width="{468 * weight:.0f}" height="5" rx="2"/>']

    # Both texts, and what their marks mean
    height, y, x = y + 32, 36, 520
    reference = [(text, "match" if kind == "differs" else kind) for text, kind, _ in card["r"]]
    for name, pieces in (("reference", reference), ("what the model writes", marked(card))):
        parts.append(words(name, x, y, "quiet", 13))
        drawn, y = flow(pieces, x, y + 26, WIDTH - x - 20)
        parts.append(drawn)
        y += 20
    key = [("right", "match"), ("·", "quiet"), ("wrong", "wrong"), ("·", "quiet"), ("invented", "invented"),
           ("·", "quiet"), ("missed", "missed")]
    drawn, y = flow(key, x, y, WIDTH - x - 20, 13)
    return drawing(max(height, y), "One study: pictures, clues, report", "".join([*parts, drawn]))


def screenshots(out, prepared, chosen):
    """gallery.webp and gallery-dark.webp: report.html's cards of these studies."""
    studies, _, rows, maps = zip(*chosen)
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate_texts(list(rows), Scoring(meteor_data=False, draws=20), "given")
        write_page(Path(folder) / "report.html", metrics, list(rows), title="gallery", labeler=phantom_labeler(),
                   pictures=lambda i: list(prepared.pictures(studies[i]).numpy()), maps=lambda i: maps[i])
        with Browser(Path(folder) / "profile") as browser:
            browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=900, deviceScaleFactor=1,
                         mobile=False)
            browser.call("Page.navigate", url=f"file://{folder}/report.html")
            browser.wait_for("document.querySelectorAll('.card img').length")
            browser.run("document.querySelectorAll('.clues').forEach(list => list.querySelector('button')?.click())")
            box = browser.run("document.getElementById('cards').getBoundingClientRect().toJSON()")
            clip = {"x": box["x"] - 16, "y": box["y"] + browser.run("scrollY"), "width": box["width"] + 32,
                    "height": box["height"], "scale": 1}
            for name, scheme in (("gallery.webp", "light"), ("gallery-dark.webp", "dark")):
                browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                shot = browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True,
                                    format="webp", quality=85)["data"]
                save(out / name, base64.b64decode(shot))


def cells(lines, name):
    """{figure: {"value", "low", "high"}} of a job, over all seeds' studies; None where it did not run."""
    seeds = [line["studies"] for line in lines if line["name"] == name and "studies" in line]
    return with_intervals(measured(joined(seeds))) if seeds else None


def seeds_of(lines, several=False):
    """The subtitle: what the intervals are over, and what the dashed line is (`several`: there are several groups)."""
    seeds = len({line["seed"] for line in lines})
    return (f"95 % intervals over the studies of {seeds} seed{'s' * (seeds != 1)}; "
            f"dashed: the first row{' of each' * several}")


def ladder(lines):
    """A bar per rung, from the lines of results.jsonl; None where no rung ran."""
    names = {"base": "row 0: base, no clues", "dci": "dci: clues, raw", "cmci": "cmci: queries",
             "trrg": "trrg: and Eq. (4)", "steered": "steered: ours", "literal-base": "base without LoRA"}
    rows = [(told, "other" if name in ("base", "literal-base") else "fill", known)
            for name, told in names.items() if (known := cells(lines, name))]
    return bars([rows], "What each rung gives over the base", seeds_of(lines)) if rows else None


def swapped(lines):
    """A group of bars per variant, its own clues first, then other ones; None where no variant ran whole."""
    groups = []
    for variant in ("steered", "dci", "trrg"):
        kinds = {f"{variant}: its own clues": variant, **{f"{variant}: {what}": f"{variant}-{kind}"
                                                          for kind, what in SWAPS.items()}}
        known = {name: cells(lines, job) for name, job in kinds.items()}
        if all(known.values()):
            groups.append([(name, "fill" if job == variant else "other", known[name]) for name, job in kinds.items()])
    title = "Are the clues read? Other clues at test time"
    return bars(groups, title, seeds_of(lines, several=True)) if groups else None


def scarce(lines):
    """base and steered over the share of the training reports that stage 2 reads; None where nothing of it ran."""
    shares = {f"{percent} %": f"-of-{percent}" for percent in SCARCE} | {"100 %": ""}
    series = [(variant, cls, [cells(lines, variant + suffix) for suffix in shares.values()])
              for variant, cls in (("steered", "fill"), ("base", "other"))]
    if any(points[:-1] == [None] * len(SCARCE) for _, _, points in series):
        return None
    return lines_over(shares, series, "From how few reports on do clues pay?", f"share of the training reports that "
                      f"stage 2 reads, of which stage 1 has read all; {seeds_of(lines).split(';')[0]}")


def mix(lines):
    """Reports over the share of right clues, a line per variant; None where nothing of it ran."""
    series = [(variant, cls, [cells(lines, f"{variant}-{kind}") for kind in MIXES])
              for variant, cls in (("steered", "fill"), ("dci", "other"))]
    series = [one for one in series if any(one[2])]
    return lines_over([kind.removeprefix("mix-") + " %" for kind in MIXES], series, "What right clues are worth",
                      f"share of the clues that are right; {seeds_of(lines).split(';')[0]}") if series else None


def learned(log, most=6):
    """At most `most` reports of the first study, evenly over the run, with marked findings; the reference is marked
    against the last report.
    """
    samples = next(iter(samples_of(log, phantom_labeler()).values()), None)
    if not samples:
        return None
    samples = [samples[i] for i in sorted({round(i) for i in np.linspace(0, len(samples) - 1, most)})]
    parts, y = [words("How it learned: one study’s report after each validation", 20, 32, "head", 18)], 68
    told = [(f"step {sample.step:,}", sample.report) for sample in samples]
    for name, pieces in [*told, ("reference", samples[-1].reference)]:
        drawn, below = flow([(text, kind) for text, kind, _ in pieces] or [("(empty)", "quiet")], 140, y, WIDTH - 160)
        parts += [words(name, 20, y, "quiet", 13), drawn]
        y = below + 12
    return drawing(y, "How it learned", "".join(parts))


def loss_curves(log):
    """A panel per stage: every step's loss, smoothed, and the validations."""
    parts, width = [], (WIDTH - 60) / 2
    stages = [stage for stage in dict.fromkeys(row.get("stage") for row in log)
              if any("loss" in row for row in log if row.get("stage") == stage)]
    for number, stage in enumerate(stages[:2]):
        rows, x = [row for row in log if row.get("stage") == stage], 20 + number * (width + 20)
        points = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        held_out = [(row["step"], row["validation"]["loss"]) for row in rows if "loss" in row.get("validation", {})]
        lines = [("loss", "train", points, "raw"), ("smoothed", "train", charts.smoothed(points), "line")]
        lines += [("validation", "held-out", held_out, "dots")] if held_out else []
        chart = charts.curves(f"{stage}: loss", lines)
        parts += [words(f"{stage}: loss over steps; dots: validation", x, 26, "quiet", 13),
                  chart.replace("<svg ", f'<svg x="{x:.0f}" y="36" width="{width:.0f}" height="220" ', 1)]
    return drawing(270, "Loss curves of both stages", "".join(parts)) if parts else None


def save(path, data):
    with whole_file(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def make(args):
    """Makes every picture whose source exists, and says what is missing for the others. Raises UserError."""
    prepared, studies = written_studies(args)
    best = telling(studies)
    log = read_rows(args.log or Path(args.ckpt).parent / "log.jsonl")
    lines = [json.loads(line) for line in args.results.read_text(encoding="utf-8").splitlines()] \
        if args.results.is_file() else []

    save(args.out / "first.svg", first(prepared, *best[0]))
    for name, picture in zip(("frontal.png", "lateral.png"), prepared.pictures(best[0][0]).numpy()):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        save(args.out / name, file.getvalue())
    for name, picture, missing in (("learned.svg", learned(log), "the log holds no sample reports"),
                                   ("curves.svg", loss_curves(log), "the log holds no losses"),
                                   ("ladder.svg", ladder(lines), f"{args.results} holds no ladder"),
                                   ("swaps.svg", swapped(lines), f"{args.results} holds no swaps"),
                                   ("scarce.svg", scarce(lines), f"{args.results} holds no few reports"),
                                   ("mix.svg", mix(lines), f"{args.results} holds no mixed clues")):
        if picture:
            save(args.out / name, picture)
        else:
            print(f"{name}: not made, {missing}")
    if CHROME:
        screenshots(args.out, prepared, best[:2])
    else:
        print("gallery.webp: not made, no chromium or google-chrome is here")


def main(argv=None):
    plain_output()
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--ckpt", required=True, metavar="FILE", help="stage-2 checkpoint of the demo")
    p.add_argument("--data", metavar="DIR", help="prepared phantom; default: the one the checkpoint was trained on")
    p.add_argument("--log", type=Path, metavar="FILE", help="the run's log.jsonl; default: beside the checkpoint")
    p.add_argument("--results", type=Path, default=Path("tests/experiments/results.jsonl"), help="of tests.experiments")
    p.add_argument("--out", type=Path, default=Path("docs/pictures"), metavar="DIR", help="where the pictures go")
    try:
        make(p.parse_args(argv))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
