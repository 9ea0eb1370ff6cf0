"""The page: self-contained, escaped, marked as the labels say, small enough; and the drawings and lists behind it."""

import base64
import hashlib
import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data import phantom
from data.reports import LABELS
from evaluation import console, verdicts
from evaluation.labels import phantom_labeler, with_labels
from evaluation.page import charts, document, gallery, page, published, swaps, tables, training
from evaluation.results import Scoring, evaluate_texts

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> <!--<script> & \"'\u2028\u2029 \ud800"
LEARNED = "There is a small right pneumothorax. No edema. Moderate cardiomegaly."
CUES = [("Clue: pneumothorax at the left apex", 0.5), (f"Clue: {HOSTILE}", 0.25)]


def row(number, hypothesis, reference, **more):
    return {"id": f"study-{number}", "hypothesis": hypothesis, "reference": reference, **more}


def phantom_rows(count=6):
    """Rows of phantom studies: the right report for every second, the next study's for the others."""
    studies = phantom.studies((0, 0, count))
    texts = [studies[i if i % 2 == 0 else (i + 1) % count].report for i in range(count)]
    rows = [row(i, text, study.report, labels={"reference": study.extra["labels"]},
                findings={"reference": study.extra["findings"]},
                clues=[{"prompt": prompt, "weight": weight} for prompt, weight in CUES])
            for i, (study, text) in enumerate(zip(studies, texts))]
    return studies, *with_labels(rows, phantom_labeler())


def maps(i):
    grid = np.arange(98, dtype=np.float32).reshape(2, 7, 7) / 100 + i
    return {"clues": [(prompt, weight, grid) for prompt, weight in CUES], "queries": grid[::-1], "cover": 0.875}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the page's text, rows, metrics) of phantom studies of one or two views, with a hostile one among them."""
    studies, rows, labels_from = phantom_rows()
    metrics = evaluate_texts(rows, Scoring(meteor_data=False, draws=20), labels_from)
    metrics["floors"] = {"permuted_pictures": {part: metrics[part] for part in ("language", "clinical", "truth")}}
    metrics["settings"]["checkpoint"] = HOSTILE
    rows[0]["id"], rows[0]["hypothesis"] = HOSTILE, rows[0]["hypothesis"] + " " + HOSTILE
    log = [{"stage": "stage1", "step": step, "loss": 8.0 - step / 50, "tau": 0.07} for step in range(1, 120)]
    log.append({"stage": "stage1", "step": 119, "validation": {"loss": 6.0}})
    metrics["settings"]["step"] = 20
    for step, name, report in ((10, HOSTILE, HOSTILE), (10, "val-2", ""), (20, HOSTILE, LEARNED),
                               (20, "val-2", "Clear."), (30, HOSTILE, "A moderate right pneumothorax. " + LEARNED)):
        log.append({"stage": "stage2", "step": step, "sample": {
            "id": name, "report": report, "reference": "There is a large left pneumothorax. Mild edema. " + HOSTILE,
            "clues": [[f"Clue: {HOSTILE}", 0.352]]}})
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write_page(path, metrics, rows, title=f"Title {HOSTILE}", maps=maps, labeler=phantom_labeler(),
                    pictures=lambda i: [phantom.draw(picture, 64) for picture in studies[i].pictures], log=log,
                    source="mimic_cxr")
    return path.read_text(encoding="utf-8"), rows, metrics


class Reader(html.parser.HTMLParser):
    """What a browser would make of the page: tags in order, attributes, and the texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in ("meta", "br", "img", "input"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_nothing_hostile_becomes_markup_and_nothing_is_fetched(written):
    text = written[0]
    reader = Reader(text)
    assert reader.open == [] and len(reader.scripts) == 2
    assert "img" not in reader.tags and not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert not [a for a in reader.attributes if a[1] in ("src", "href") and not a[2].startswith("#")]
    assert not re.search(r"https?://|@import|url\(", text.replace("<!doctype html>", ""))
    assert "\u2028" not in reader.scripts[0] and "<" not in reader.scripts[0]
    assert "default-src 'none'" in text


def test_texts_come_through_unchanged(written):
    text, rows, _ = written
    studies = data_of(text)["studies"]
    known = [[r["id"], r["hypothesis"].split(), [[c["prompt"], c["weight"]] for c in r["clues"]]] for r in rows]
    shown = [[study["id"], " ".join(piece for piece, *_ in study["h"]).split(), study["c"]] for study in studies]
    assert shown == json.loads(json.dumps(known).replace("\\ud800", "?"))


def test_the_script_in_the_page_is_the_one_its_policy_allows(written):
    text = written[0]
    allowed = re.search(r"script-src 'sha256-([^']+)'", text)[1]
    assert base64.b64encode(hashlib.sha256(Reader(text).scripts[1].encode()).digest()).decode() == allowed


CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def drawn_by_browser(text, folder):
    """The document after its scripts have run."""
    (folder / "report.html").write_text(text, encoding="utf-8")
    return subprocess.run([
        CHROME, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
        "--dump-dom", f"file://{folder / 'report.html'}"],
        capture_output=True, encoding="utf-8", timeout=60, check=True).stdout


@pytest.mark.skipif(not CHROME, reason="no chromium or google-chrome to draw the page in")
def test_a_browser_draws_the_studies_as_text(written, tmp_path):
    drawn = drawn_by_browser(written[0], tmp_path)
    cards = drawn[drawn.index('<div id="cards">'):drawn.index('<button id="more"')]
    assert cards.count("<article") == 6
    views = sum(len(study["v"]) for study in data_of(written[0])["studies"])
    assert 6 < views < 12 and cards.count("<canvas") == views * 3               # 2 clues and the queries on each view
    assert html.escape(HOSTILE[:52], quote=False) in cards
    for image in re.findall(r"<img[^>]*>", cards):
        assert image.startswith('<img src="data:image/jpeg;base64,') and "onerror" not in image.partition(" alt=")[0]


def counts_of(text):
    """{(finding, kind): the count on its button}."""
    buttons = re.findall(r'<button class="count[^>]*data-finding="([^"]+)" data-kind="(\w+)"[^>]*>(\d+)<', text)
    return {(html.unescape(finding), kind): int(count) for finding, kind, count in buttons}


@pytest.mark.skipif(not shutil.which("node"), reason="no node to run the page's script in")
def test_sorting_searching_and_filtering(written, tmp_path):
    """The script's pure parts: a count's studies are as many as it says."""
    text = written[0]
    studies, counts = data_of(text)["studies"], counts_of(text)
    assert len(counts) == 39 and sum(counts.values()) > 6
    script = f"""const document = {{getElementById: () => ({{textContent: "null"}})}};
        {Reader(text).scripts[1]}
        const studies = {json.dumps(studies)};
        for (const study of studies) study.words = textOf(study);
        const number = (words, finding, kind) => studies.filter(study => wanted(study, words, finding, kind)).length;
        console.log(JSON.stringify({{
          counts: {json.dumps(list(counts))}.map(pair => number([], ...pair)),
          all: number([], null, null), word: number(["study-3"], null, null),
          none: number(["study-3", "qqq"], null, null),
          differs: number([], null, "differs"),
          orders: Object.fromEntries(Object.entries(ORDERS).filter(([, order]) => order).map(
            ([name, order]) => [name, [...studies].sort(order).map(study => study.id)]))}}));"""
    (tmp_path / "page.cjs").write_text(script, encoding="utf-8")
    found = json.loads(subprocess.run(["node", str(tmp_path / "page.cjs")], capture_output=True, encoding="utf-8",
                                      timeout=60, check=True).stdout)
    assert dict(zip(counts, found["counts"])) == counts
    assert (found["all"], found["word"], found["none"]) == (6, 1, 0)
    assert found["differs"] == sum(any(kind == "differs" for _, kind, _ in study["f"]) for study in studies)

    def disputes(study):
        return sum({"match": 0, "differs": 0.5}.get(kind, 1) for _, kind, _ in study["f"])

    for name, key in (("best first", lambda s: (-s["s"], -s["l"])), ("worst first", lambda s: (s["s"], s["l"])),
                      ("most differences first", lambda s: (-disputes(s), s["l"]))):
        assert found["orders"][name] == [study["id"] for study in sorted(studies, key=key)], name


PRESSES = """<script>
const seen = {}, cards = () => document.querySelectorAll("#cards article"), tool = document.querySelector("#tools");
const set = (control, value) => { control.value = value; control.dispatchEvent(new Event("input")); };
const [order, finding, kind] = tool.querySelectorAll("select"), search = tool.querySelector("input");
set(search, "study-3"); seen.searched = cards().length;
set(search, "nowhere"); seen.nowhere = cards().length;
const button = document.querySelector("button.count:not(:disabled)");
button.click(); seen.pressed = cards().length; seen.says = +button.textContent; seen.left = search.value;
set(finding, "any finding"); set(kind, "any kind"); set(order, "worst first");
seen.first = cards()[0].querySelector(".id").textContent;
const map = cards()[0].querySelector("button.clue");
const large = () => cards()[0].querySelectorAll(".pictures canvas").length;
seen.maps = [large()]; map.click(); seen.maps.push(large()); map.click(); seen.maps.push(large());
document.title = JSON.stringify(seen);
</script></body>"""


@pytest.mark.skipif(not CHROME, reason="no chromium or google-chrome to press buttons in")
def test_presses(written, tmp_path):
    studies = data_of(written[0])["studies"]
    # the page's policy allows no other script
    text = re.sub("<meta http-equiv[^>]*>", "", written[0]).replace("</body>", PRESSES)
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", drawn_by_browser(text, tmp_path), re.S)[1]))
    worst = min(studies, key=lambda study: (study["s"], study["l"]))
    assert (seen["searched"], seen["nowhere"]) == (1, 0) and seen["pressed"] == seen["says"] > 0 and seen["left"] == ""
    assert seen["first"] == worst["id"] and seen["maps"] == [0, len(worst["v"]), 0]


def test_it_shows_every_part(written):
    text, _, metrics = written
    for name in ("scores", "floors", "clinical", "findings", "gallery", "learned", "training", "settings"):
        assert f'<section id="{name}">' in text
    assert re.search(r'<circle class="held-out"[^>]*><title>validation, step 119: 6</title>', text)
    assert f'{metrics["language"]["coco"]["BLEU-4"]["value"]:.3f}' in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text
    for row_ in published.ROWS["mimic_cxr"]:
        assert tables.escape(row_.name) in text and tables.escape(row_.average) in text
    assert "Near its floor" in text                                             # these floors are the scores themselves


def test_how_it_learned(written):
    """Each validation's report of the same studies, marked as in the gallery; the reference against the checkpoint's.
    """
    section = re.search('<section id="learned">(.*?)</section>', written[0], re.S)[1]
    first, second = section.split("<h3>")[1:]
    lines = [html.unescape(line) for line in re.findall(r"<dt>(.*?)</dd>", first)]
    assert [line.partition("</dt>")[0] for line in lines] == [
        "reference", "clues", "step 10", "step 20<small>this checkpoint</small>", "step 30"]
    assert re.findall('<mark class="(\\w+)" title="([^"]+)">([^<]+)<', lines[3]) == [
        ("differs", "differs: Pneumothorax", "There is a small right pneumothorax."),
        ("denied", "denied: Edema", "No edema."), ("invented", "invented: Cardiomegaly", "Moderate cardiomegaly.")]
    assert re.findall('<mark class="(\\w+)"', lines[0]) == ["differs", "missed"] and not re.search("<mark", lines[2])
    assert "35 % " + HOSTILE[:52] in lines[1] and HOSTILE[:52] in lines[2]
    assert second.startswith("val-2</h3>") and "<em>(empty)</em>" in second and second.count("<dt>") == 4


def test_without_a_labeler_samples_are_shown_unmarked():
    sample = {"id": "a", "report": "Edema.", "reference": "Clear.", "clues": []}
    log = [{"stage": "stage2", "step": 1, "sample": sample}]
    assert training.learned_section(training.samples_of(log), None).count("<dt>") == 2
    assert training.samples_of(log)["a"] == [(1, [["Edema.", "", []]], [["Clear.", "", []]], [])]


def test_absent_parts_are_left_out(tmp_path):
    rows = [row(0, "No effusion.", ["No effusion.", "Clear."]), row(1, "", "Heart is normal.")]
    metrics = evaluate_texts(rows, Scoring(("coco",), meteor_data=False, draws=5))
    page.write_page(tmp_path / "report.html", metrics, rows, title="texts")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not any(f'id="{name}"' in text for name in ("floors", "findings", "learned")) and "METEOR" in text
    assert [study["v"] for study in data_of(text)["studies"]] == [[], []] and "precision" not in text


def test_findings_are_marked_as_the_truth_has_them():
    reference = "There is a large right pleural effusion. Mild cardiomegaly. No pneumothorax."
    generated = "There is a small left pleural effusion. The heart is not enlarged. Moderate edema. No pneumothorax."
    rows = [row(0, generated, reference)]
    labels, findings = phantom.label(reference)
    rows[0] |= {"labels": {"reference": labels}, "findings": {"reference": findings}}
    rows, _ = with_labels(rows, phantom_labeler())
    (study,), left = gallery.studies(rows, labeler=phantom_labeler())
    assert left == 0
    assert dict((name, kind) for name, kind, _ in study["f"]) == {
        "Cardiomegaly": "missed", "Edema": "invented", "Pleural Effusion": "differs"}
    assert study["f"][2][2] == "left, not right; mild, not severe"
    assert [kind for _, kind, _ in study["h"]] == ["differs", "denied", "invented", ""]
    assert [kind for _, kind, _ in study["r"]] == ["differs", "missed", ""]
    assert study["s"] == pytest.approx(2 * 1 / 4)


def test_confusion_by_hand():
    def labels(*names):
        return [1 if name in names else 0 for name in LABELS]

    rows = [row(0, "", "", labels={"hypothesis": labels("Edema"), "reference": labels("Pneumonia", "Fracture")}),
            row(1, "", "", labels={"hypothesis": labels("Edema", "Fracture"), "reference": labels("Fracture")}),
            row(2, "", "", labels={"hypothesis": labels("No Finding"), "reference": labels("Edema")})]
    counts, at = gallery.confusion(rows), LABELS.index
    assert counts[at("Pneumonia"), at("Edema")] == counts[at("Fracture"), at("Edema")] == 1
    assert counts[at("Fracture"), at("Fracture")] == 1 and counts[-1, at("Edema")] == 1 and counts[at("Edema"), -1] == 1
    assert counts.sum() == 5


def test_heat_maps_survive_their_packing():
    grid = np.random.default_rng(0).normal(size=(2, 7, 7)).astype(np.float32)
    low, high, g, views = gallery.quantised(grid)
    levels = np.stack([np.frombuffer(base64.b64decode(view), np.uint8).reshape(g, g) for view in views])
    assert np.abs(levels / 255 * (high - low) + low - grid).max() < (high - low) / 500
    assert gallery.quantised(np.ones((1, 7, 7)))[3]                           # a flat map divides by nothing


def test_many_studies_are_thinned_from_both_ends(monkeypatch):
    monkeypatch.setattr(gallery, "STUDIES", 9)
    agree = [i / 30 for i in range(30)]
    kept = gallery.chosen(agree, agree, [{}] * 30)
    assert len(kept) == 9 == len(set(kept)) and {0, 1, 2, 27, 28, 29} <= set(kept)


def test_five_hundred_studies_stay_below_ten_megabytes():
    """From the size of a few: two views of 128 px, long reports, three heat maps and the queries'."""
    studies, rows, _ = phantom_rows(8)
    pictures = {i: [phantom.draw(study.pictures[0]._replace(view=view), 256) for view in phantom.VIEWS]
                for i, study in enumerate(studies)}
    for r in rows:
        r["hypothesis"] = r["reference"] = " ".join([r["reference"]] * 2)
    shown, _ = gallery.studies(rows, pictures.get, maps, phantom_labeler())
    assert all(len(study["v"]) == 2 for study in shown) and len(document.in_script(shown)) / len(rows) * 500 < 8e6


def test_figures_without_an_interval_and_beside_it_are_drawn():
    """A rare score may have no value in any draw; the macro F1 of a few studies may lie above all of its draws."""
    alone, beside = {"value": 0.5, "low": None, "high": None}, {"value": 0.6, "low": 0.2, "high": 0.4}
    for drawn in (charts.intervals([alone, beside], ["own", "floor-a"]), charts.bar(alone), charts.bar(beside)):
        assert all(0 <= float(x) <= 260 for x in re.findall(r'(?:[MH]|cx=")([0-9.-]+)', drawn))
    assert charts.swaps(["one", "other"], [("side", [alone, alone])])
    assert console.figure(alone) == "0.5000" and tables.figure(alone) == "0.500<small>–––</small>"
    change = {"difference": -0.0001, "low": None, "high": None, "p": None}
    assert console.signed(change) == "-0.0001"
    assert console.difference(change) == verdicts.changed(change) == swaps.difference(change).split("<")[0] == "+0.000"


def test_charts_survive_odd_numbers():
    nan, inf = float("nan"), float("inf")
    drawn = charts.curves("loss", [("loss", "train", [(1, nan), (2, 1.0), (3, inf), (4, 1.0)], "raw")])
    assert "nan" not in drawn and "inf" not in drawn.replace("infinity", "")
    assert charts.curves("loss", [("loss", "train", [(1, nan)], "line")]) == ""
    assert charts.curves("one", [("loss", "train", [(7, 0.0)], "dots")])
    assert charts.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1] and charts.ticks(3, 17) == [5, 10, 15]
    drawn = charts.curves("loss", [("loss", "train", [(1, 0), (1500, 1)], "line")])
    assert float(re.search(r'x="([0-9.]+)"[^>]*>1500<', drawn)[1]) <= 420 - 16    # half of "1500" is 13 px: not cut off
    straight = np.array([(i, 2.0 * i) for i in range(50)])
    assert np.allclose(charts.smoothed(straight.tolist()), straight)
    assert charts.smoothed([(1, inf), *straight.tolist(), (60, nan)]) == charts.smoothed(straight.tolist())
    assert len(charts.thinned([(i, 0) for i in range(10_000)])) <= charts.POINTS
    below = [{"value": -0.5, "low": -1.0, "high": -0.25}, {"value": 0.5, "low": 0.0, "high": 1.0}]
    drawn = charts.intervals(below, ["a", "b"])
    assert re.findall(r'cx="([\d.]+)"', drawn) == ["68.0", "192.0"] and "M6.0 7.5H99.0" in drawn    # from -1 to 1
    assert charts.bar({"value": None}) == "" and charts.number(-0.5) == "−0.500"


def test_published_rows_hold_their_own_arithmetic():
    """Whoever is called micro-like has the F1 that follows from precision and recall; whoever is not, has not."""
    for row_ in (r for rows in published.ROWS.values() for r in rows if None not in r.clinical):
        p, r, f1 = row_.clinical
        follows = abs(2 * p * r / (p + r) - f1) < 0.0015
        assert follows == row_.average.startswith("micro"), row_


def test_the_rows_of_the_documentation_are_those_of_the_page():
    """docs/scores.md argues about the clinical figures of seven rows; they stand in published.py."""
    text = (ROOT / "docs/scores.md").read_text(encoding="utf-8")
    known = {row_.name: row_.clinical for row_ in published.ROWS["mimic_cxr"] if row_.kind == published.PUBLISHED}
    names = {"TRRG": "TRRG, the paper", "R2GenGPT (as TRRG quotes it)": "R2GenGPT Shallow"}
    lines = re.findall(r"^\| ([^|]+) \| ([.\d–]+) / ([.\d–]+) / ([.\d]+) \|", text, flags=re.M)
    assert len(lines) == 7
    for name, *figures in lines:
        published_ones = known[names.get(name, name)]
        assert published_ones == tuple(None if figure == "–" else float(figure) for figure in figures), name


def test_alignment_page(tmp_path):
    from metrics.zero_shot import retrieval, zero_shot_scores

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (40, 14))
    labels[:, 3] = 0                                                            # nobody has it: no curve, no AUROC
    scores = rng.normal(size=labels.shape) + (labels == 1)
    auroc = zero_shot_scores(scores, labels, LABELS, draws=5)
    right = np.eye(40, dtype=bool)
    found = {way: retrieval(rng.normal(size=(40, 40)) + right, right, draws=5) for way in page.RETRIEVAL}
    metrics = {"settings": {"n": 40}, "zero_shot": {"auroc": auroc, "auroc_pairs": auroc}, "retrieval": found}
    page.write_alignment_page(tmp_path / "report.html", metrics, title="stage 1", scores=scores, labels=labels)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Reader(text).open == [] and text.count("<figure>") == 14 and text.count('class="area"') == 13
    assert f'{auroc["macro"]["value"]:.3f}' in text and "R@10" in text
    metrics["zero_shot"] = {"auroc": None, "auroc_pairs": None}
    page.write_alignment_page(tmp_path / "report.html", metrics, title="stage 1, no labels")
    assert 'id="zero-shot"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
