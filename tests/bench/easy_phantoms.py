"""Is the report right about an easy phantom? A normal chest and one clear finding each, drawn anew.

    python -m tests.bench.easy_phantoms runs/demo/ckpt.safetensors [--record]
"""

import argparse

from PIL import Image

import trrg
from data.phantom import LABELS, draw, easy, label
from tests.bench import record


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("checkpoint")
    p.add_argument("--record", action="store_true", help=record.HELP)
    args = p.parse_args()
    model = trrg.load(args.checkpoint)
    right = 0
    for finding in LABELS:
        drawn = easy(None if finding == "No Finding" else finding)
        report = model.report([Image.fromarray(draw(drawn, model.pictures["size"]))])
        named = [name for name, state in zip(LABELS, label(report.text)[0]) if state == 1]
        right += finding in named
        print(f"{'right' if finding in named else 'wrong'}  {finding:26}  {report.text}\n{'':35}"
              + "; ".join(f"{weight:.0%} {prompt}" for prompt, weight in report.clues))
    print(f"{right} of {len(LABELS)} name what was drawn")
    record.add(args, {"right": right, "phantoms": len(LABELS)})


if __name__ == "__main__":
    main()
