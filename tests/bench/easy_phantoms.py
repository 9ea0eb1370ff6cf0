"""Is the report right about an easy phantom? A normal chest and one clear finding each, drawn anew.

    python -m tests.bench.easy_phantoms runs/demo/ckpt.safetensors
"""

import sys

from PIL import Image

import trrg
from data.phantom import LABELS, draw, easy, label


def main(checkpoint):
    model = trrg.load(checkpoint)
    right = 0
    for finding in LABELS:
        drawn = easy(None if finding == "No Finding" else finding)
        report = model.report([Image.fromarray(draw(drawn, model.pictures["size"]))])
        named = [name for name, state in zip(LABELS, label(report.text)[0]) if state == 1]
        right += finding in named
        print(f"{'right' if finding in named else 'wrong'}  {finding:26}  {report.text}\n{'':35}"
              + "; ".join(f"{weight:.0%} {prompt}" for prompt, weight in report.clues))
    print(f"{right} of {len(LABELS)} name what was drawn")


if __name__ == "__main__":
    main(sys.argv[1])
