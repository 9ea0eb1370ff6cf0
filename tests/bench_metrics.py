"""Times this project's language scores against pycocoevalcap with its JVMs, on the same pairs, in the same run.

    python tests/bench_metrics.py [--pairs 3269] [--words 51] [--reports FILE.jsonl]

Needs pycocoevalcap and Java. Pairs are drawn from sentences of a radiology vocabulary unless a file is given; its pairs
are then repeated in new orders of their sentences until there are enough. Prints wall seconds a step, the largest
difference between the two sets of scores, the peak memory of this program's part, how the cost grows with the number of
pairs, and the time of one pair of two 500-word texts.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import metrics  # noqa: E402
from metrics.intervals import with_intervals  # noqa: E402
from metrics.meteor_data import find_data, read_lexicon  # noqa: E402

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


def ours(pairs, meteor):
    """(seconds, scores) of tokens, scores and intervals."""
    start = time.perf_counter()
    hypotheses, references = metrics.prepare(*zip(*pairs))
    folder = find_data() if meteor == "full" else None
    lexicon = read_lexicon(folder, [*hypotheses, *(text for several in references for text in several)])
    measured = metrics.measure(hypotheses, references, lexicon)
    figures = with_intervals(measured)
    return time.perf_counter() - start, {name: figure["value"] for name, figure in figures.items()}


def without_meteor(pairs):
    from metrics.bleu import bleu
    from metrics.cider import cider
    from metrics.rouge import rouge_l

    steps, start = {}, time.perf_counter()
    prepared = metrics.prepare(*zip(*pairs))
    steps["tokens"] = time.perf_counter() - start
    for scorer in (bleu, rouge_l, cider):
        start = time.perf_counter()
        scorer(*prepared)
        steps[scorer.__name__] = time.perf_counter() - start
    return steps


def theirs(pairs):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    steps, scores = {}, {}
    start = time.perf_counter()
    tokenizer = PTBTokenizer()
    results = tokenizer.tokenize({i: [{"caption": hypothesis}] for i, (hypothesis, _) in enumerate(pairs)})
    truths = tokenizer.tokenize({i: [{"caption": reference}] for i, (_, reference) in enumerate(pairs)})
    steps["tokens"] = time.perf_counter() - start
    for name, scorer in (("BLEU", Bleu(4)), ("ROUGE-L", Rouge()), ("CIDEr", Cider()), ("METEOR", None)):
        start = time.perf_counter()
        value, _ = (scorer or Meteor()).compute_score(truths, results, *((0,) if name == "BLEU" else ()))
        steps[name] = time.perf_counter() - start
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
    args = p.parse_args()
    rng = random.Random(0)
    pairs = file_pairs(args.reports, args.pairs, rng) if args.reports else drawn_pairs(args.pairs, args.words, rng)
    mean = sum(len(text.split()) for pair in pairs for text in pair) / (2 * len(pairs))
    print(f"{len(pairs)} pairs, {mean:.1f} words a text; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"Python {sys.version.split()[0]}")
    steps, _ = child(without_meteor, pairs)
    print(f"without METEOR: {sum(steps.values()):.1f} s (" + ", ".join(f"{k} {v:.1f}" for k, v in steps.items()) + ")")
    for meteor in ("exact+stem", "full") if find_data() else ("exact+stem",):
        (seconds, scores), memory = child(ours, pairs, meteor)
        print(f"all with METEOR {meteor} and intervals: {seconds:.1f} s, peak {memory:.0f} MB")
    for part in (len(pairs) // 4, len(pairs) // 2):
        (seconds, _), _ = child(ours, pairs[:part], "exact+stem")
        print(f"  {part} pairs, exact+stem: {seconds:.1f} s")
    long = drawn_pairs(1, 500, rng) + drawn_pairs(1, 20, rng)
    (seconds, _), _ = child(ours, long, "exact+stem")
    print(f"one pair of 500-word texts, exact+stem: {seconds:.2f} s")
    repeated = [("no effusion . " * 250, "no pneumothorax . " * 250), ("a", "b")]
    (seconds, _), _ = child(ours, repeated, "exact+stem")
    print(f"one pair of 750 repeated words, exact+stem: {seconds:.2f} s")
    if args.ours_only:
        return
    try:
        subprocess.run(["java", "-version"], capture_output=True, check=True)
        steps, other = theirs(pairs)
    except (ImportError, OSError) as error:
        print(f"pycocoevalcap with Java is not there ({error}): nothing to compare with")
        return
    print(f"pycocoevalcap with its JVMs: {sum(steps.values()):.1f} s ("
          + ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items()) + ")")
    print("largest difference of a score:", max(abs(scores[name] - value) for name, value in other.items()))


if __name__ == "__main__":
    main()
