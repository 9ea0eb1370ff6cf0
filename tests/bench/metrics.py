"""Times this project's language scores against pycocoevalcap with its JVMs, on the same pairs, in the same run.

    python -m tests.bench.metrics [--pairs 3269] [--words 51] [--reports FILE.jsonl]

Needs pycocoevalcap and Java. Pairs are drawn from sentences of a radiology vocabulary unless a file is given; its pairs
are then repeated in new orders of their sentences until there are enough. Prints, for both protocols, wall seconds a
step and the peak memory of this program's part; then how the cost grows with the number of pairs (reading METEOR's data
costs the same for any number), the time of one pair of long texts, and the largest difference between the two sets of
scores.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import metrics
from metrics.bleu import bleu_from, bleu_statistics
from metrics.cider import cider
from metrics.intervals import Measured, with_intervals
from metrics.meteor_data import find_data, read_lexicon
from metrics.rouge import rouge_l
from tests.bench import record

SENTENCES = [
    "The heart is normal in size.",
    "The heart size is at the upper limits of normal.",
    "Cardiac silhouette is {g} enlarged.",
    "Mediastinal contours are within normal limits.",
    "There is a {g} {s} pleural effusion.",
    "No pleural effusion or pneumothorax.",
    "Lungs are clear without focal consolidation.",
    "Patchy opacity in the {s} lower lobe may represent atelectasis or pneumonia.",
    "Bibasilar atelectasis, {s} greater than left.",
    "{G} pulmonary edema has improved since the prior study.",
    "A {s} internal jugular catheter terminates in the mid SVC.",
    "Endotracheal tube tip is {n} cm above the carina.",
    "Degenerative changes of the thoracic spine at T{m}-T{n}.",
    "No acute osseous abnormality.",
    "Old healed {s} rib fracture.",
    "The aorta is tortuous and calcified.",
    "Pulmonary vasculature is normal.",
    "{n} mm calcified granuloma in the {s} upper lobe.",
    "Low lung volumes accentuate the bronchovascular markings.",
    "Stable postoperative changes with median sternotomy wires.",
]


def drawn_pairs(count, words, rng):
    def report():
        text = []
        while sum(len(sentence.split()) for sentence in text) < words:
            text.append(rng.choice(SENTENCES).format(g=rng.choice(["mildly", "moderately", "severely"]),
                                                     G=rng.choice(["Mild", "Severe"]),
                                                     s=rng.choice(["right", "left"]), n=rng.randint(1, 9),
                                                     m=rng.randint(1, 12)))
        return text

    pairs = []
    for _ in range(count):
        reference = report()
        other = report()
        hypothesis = [rng.choice([a, b]) for a, b in zip(reference, other)]
        pairs.append((" ".join(hypothesis), " ".join(reference)))
    return pairs


def file_pairs(path, count, rng):
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = []
    while len(pairs) < count:
        row = rng.choice(rows)
        both = []
        for text in (row["hypothesis"], row["reference"] if isinstance(row["reference"], str) else row["reference"][0]):
            parts = " ".join(text.split()).split(". ")
            rng.shuffle(parts)
            both.append(". ".join(parts))
        pairs.append(tuple(both))
    return pairs


class Steps(dict):
    """Wall seconds by name: each call ends a step."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self, name):
        self[name], self.last = time.perf_counter() - self.last, time.perf_counter()

    def figures(self, of):
        """{name: seconds} for the record: the sum, and what of it is reading METEOR's data, where that is a step."""
        total, data = sum(self.values()), self.get("METEOR's data")
        parts = {} if data is None else {f"{of}, METEOR's data, s": data, f"{of}, the rest, s": total - data}
        return {f"{of}, s": total} | parts

    def __str__(self):
        return f"{sum(self.values()):.1f} s (" + ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.items()) + ")"


def ours(pairs, meteor, protocol="coco"):
    """(Steps, scores) of tokens, scores and intervals."""
    steps = Steps()
    hypotheses, references = metrics.prepare(*zip(*pairs), protocol)
    steps("tokens")
    lexicon = read_lexicon(find_data() if meteor == "full" else None)
    steps("METEOR's data")
    measured = metrics.measure(hypotheses, references, lexicon)
    steps("scores")
    figures = with_intervals(measured)
    steps("intervals")
    return steps, {name: figure["value"] for name, figure in figures.items()}


def without_meteor(pairs):
    """(Steps, None) of tokens, BLEU, ROUGE-L, CIDEr and their intervals."""
    steps = Steps()
    hypotheses, references = metrics.prepare(*zip(*pairs))
    steps("tokens")
    bleu = bleu_statistics(hypotheses, references)
    steps("BLEU")
    rouge = rouge_l(hypotheses, references)[1]
    steps("ROUGE-L")
    consensus = cider(hypotheses, references)[1]
    steps("CIDEr")
    with_intervals(Measured(
        np.column_stack([bleu, rouge, consensus, np.ones(len(pairs))]),
        lambda summed: {("BLEU-1",): bleu_from(summed[..., :-3])[..., 0], ("BLEU-4",): bleu_from(summed[..., :-3])[..., 3],
                        ("ROUGE-L",): summed[..., -3] / summed[..., -1], ("CIDEr",): summed[..., -2] / summed[..., -1]}))
    steps("intervals")
    return steps, None


def theirs(pairs):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    steps, scores = Steps(), {}
    tokenizer = PTBTokenizer()
    results = tokenizer.tokenize({i: [{"caption": hypothesis}] for i, (hypothesis, _) in enumerate(pairs)})
    truths = tokenizer.tokenize({i: [{"caption": reference}] for i, (_, reference) in enumerate(pairs)})
    steps("tokens")
    for name, scorer in (("BLEU", Bleu(4)), ("ROUGE-L", Rouge()), ("CIDEr", Cider()), ("METEOR", None)):
        value, _ = (scorer or Meteor()).compute_score(truths, results, *((0,) if name == "BLEU" else ()))
        steps(name)
        scores |= {f"BLEU-{k + 1}": v for k, v in enumerate(value)} if name == "BLEU" else {name: value}
    return steps, scores


def child(function, *args):
    """The result of a function in a process of its own, and that process's peak memory in MB."""
    def run(pipe):
        result = function(*args)
        pipe.send((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(there,))
    process.start()
    result = here.recv()
    process.join()
    return result


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--pairs", type=int, default=3269)
    p.add_argument("--words", type=int, default=51)
    p.add_argument("--reports", metavar="FILE.jsonl")
    p.add_argument("--ours-only", action="store_true")
    p.add_argument("--record", action="store_true", help=record.HELP)
    args = p.parse_args()
    rng = random.Random(0)
    pairs = file_pairs(args.reports, args.pairs, rng) if args.reports else drawn_pairs(args.pairs, args.words, rng)
    mean = sum(len(text.split()) for pair in pairs for text in pair) / (2 * len(pairs))
    print(f"{len(pairs)} pairs, {mean:.1f} words a text; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"Python {sys.version.split()[0]}")
    steps = child(without_meteor, pairs)[0][0]
    figures = steps.figures("without METEOR")
    print(f"without METEOR, with intervals: {steps}")
    kinds = ("exact+stem", "full") if find_data() else ("exact+stem",)
    scores = {}
    for meteor in kinds:
        for protocol in metrics.PROTOCOLS:
            (steps, scores[protocol]), memory = child(ours, pairs, meteor, protocol)
            figures |= steps.figures(f"{meteor}, {protocol}") | {f"{meteor}, {protocol}, MB": memory}
            print(f"all with METEOR {meteor} and intervals, {protocol}: {steps}, peak {memory:.0f} MB")
    for part in (len(pairs) // 4, len(pairs) // 2):
        steps = child(ours, pairs[:part], kinds[-1])[0][0]
        figures |= steps.figures(f"{part} pairs, {kinds[-1]}, coco")
        print(f"  {part} pairs, {kinds[-1]}, coco: {steps}")
    for name, pair in (("two 500-word texts", drawn_pairs(1, 500, rng)[0]),
                       ("two texts of 750 repeated words", ("no effusion . " * 250, "no pneumothorax . " * 250))):
        for meteor in kinds:
            steps = child(ours, [pair, ("a", "b")], meteor)[0][0]
            figures |= steps.figures(f"a pair of {name}, {meteor}")
            print(f"a pair of {name}, {meteor}: {steps}")
    record.add(args, figures)
    if args.ours_only:
        return
    try:
        subprocess.run(["java", "-version"], capture_output=True, check=True)
        steps, other = theirs(pairs)
    except (ImportError, OSError) as error:
        print(f"pycocoevalcap with Java is not there ({error}): nothing to compare with")
        return
    print(f"pycocoevalcap with its JVMs, without intervals: {steps}")
    difference = max(abs(scores["coco"][name] - other[name]) for name in other)
    print("largest difference of a score, coco:", difference)
    record.add(args, {**steps.figures("pycocoevalcap"), "largest difference, coco": difference})


if __name__ == "__main__":
    main()
