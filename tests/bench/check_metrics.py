"""Compares PTB tokens and METEOR with pycocoevalcap's on texts of your own, by hand:

    python -m tests.bench.check_metrics FILE.jsonl …        lines of {"report"} or of {"hypothesis", "reference"}
    python -m tests.bench.check_metrics --drawn 3000        made-up nasty texts instead (tests/bench/record_metrics.py)

Every text is tokenized by both. Every pair of a hypothesis and its reference is scored by both, alone and against three
references (its own and two other lines'), with full METEOR and with exact+stem. Exit codes: 0 nothing differs,
1 something does, 2 pycocoevalcap 1.2 or Java is missing.
"""

import argparse
import json
import random
import re
import shutil
import sys

from metrics.meteor import meteor
from metrics.meteor_data import find_data
from metrics.ptb import tokenize
from tests.bench import record
from tests.bench.record_metrics import meteor_lines, nasty_texts, tokens

LINE_ENDS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # each would shift all later texts of the original


def differing(found, wanted, texts):
    """The number of texts whose values differ; prints the first five."""
    wrong = [(text, a, b) for text, a, b in zip(texts, found, wanted, strict=True)
             if (a != b if isinstance(a, str) else abs(a - b) > 1e-9)]
    for text, a, b in wrong[:5]:
        print(f"    {text!r}\n      here  {a!r}\n      there {b!r}")
    return len(wrong)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("files", nargs="*", metavar="FILE.jsonl")
    p.add_argument("--drawn", type=int, default=0, metavar="N")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--record", action="store_true", help=record.HELP)
    args = p.parse_args()
    if find_data() is None or shutil.which("java") is None:
        missing = "Java" if find_data() else "pycocoevalcap (pip install pycocoevalcap==1.2)"
        print(f"nothing to compare with: {missing} is not there", file=sys.stderr)
        return 2
    rng = random.Random(args.seed)
    rows = [json.loads(line) for file in args.files for line in open(file, encoding="utf-8") if line.strip()]
    drawn = nasty_texts(args.drawn, rng)
    rows += [{"hypothesis": a, "reference": b} for a, b in zip(drawn[::2], drawn[1::2])]
    texts = list(dict.fromkeys(LINE_ENDS.sub(" ", row[key]) for row in rows
                               for key in ("report", "hypothesis", "reference") if isinstance(row.get(key), str)))
    total = differing(list(map(tokenize, texts)), tokens(texts), texts)
    print(f"PTB tokens: {total:,} of {len(texts):,} texts differ")
    record.add(args, {"PTB, texts": len(texts), "PTB, texts that differ": total})
    pairs = [(tokenize(row["hypothesis"]), tokenize(row["reference"])) for row in rows if "hypothesis" in row]
    references = [reference for _, reference in pairs]
    items = [(hypothesis, [reference]) for hypothesis, reference in pairs]
    items += [(hypothesis, [reference, *rng.choices(references, k=2)]) for hypothesis, reference in pairs]
    for name, options, data in (("full", (), None), ("exact+stem", ("-m", "exact stem"), False)) if items else ():
        corpus, wanted = meteor_lines(items, *options)
        value, found = meteor(*zip(*items), data)
        wrong = differing(found, wanted, items)
        print(f"METEOR {name}: {wrong:,} of {len(items):,} items differ; the corpus value by {abs(value - corpus):.1e}; "
              f"of the {len(pairs):,} pairs alone it is {meteor(*zip(*items[:len(pairs)]), data)[0]!r}")
        record.add(args, {f"METEOR {name}, items": len(items), f"METEOR {name}, items that differ": wrong})
        total += wrong
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
