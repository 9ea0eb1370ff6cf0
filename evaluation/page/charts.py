"""The page's charts as inline SVG. Their colours are set by classes in page.css, for the light and the dark mode."""

from html import escape
from math import ceil, floor, isfinite, log10

SMOOTH = 0.06                                      # window of a smoothed curve, as a share of all steps
POINTS = 300                                       # most points per curve


def number(value, digits=3):
    """A number as text: "0.123", or "–" for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def ends(cell):
    """(value, low, high) of a figure; without an interval low and high are the value."""
    value = cell["value"]
    return value, *(value if cell[key] is None else cell[key] for key in ("low", "high"))


def svg(width, height, body, cls="", label=""):
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg class="{cls}" viewBox="0 0 {width} {height}" {role}>{body}</svg>'


def bar(cell, cls=""):
    """A figure {"value", "low", "high"} as a bar on 0..1 with its interval as a whisker."""
    if cell["value"] is None:
        return ""
    width, height = 120, 14
    x, low, high = (width * min(max(end, 0), 1) for end in ends(cell))
    y = height / 2
    return svg(width, height, f'<rect class="rail" width="{width}" height="{height}" rx="2"/>'
               f'<rect class="fill" width="{x:.1f}" height="{height}" rx="2"/>'
               f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 3}v6M{high:.1f} {y - 3}v6"/>',
               f"bar {cls}")


def intervals(cells, classes):
    """Figures one below the other, as dots with intervals, on one axis, which includes 0."""
    width, line = 260, 15
    known = [end for cell in cells if cell["value"] is not None for end in ends(cell)]
    if not known:
        return ""
    bottom, top = min(0, *known), max(0, *known)              # a value may lie outside its interval: macro F1 of a few
    scale = (width - 12) / ((top - bottom) or 1)
    parts = []
    for row, (cell, cls) in enumerate(zip(cells, classes)):
        y = line * (row + 0.5)
        parts.append(f'<path class="rail" d="M6 {y}H{width - 6}"/>')
        if cell["value"] is not None:
            value, low, high = (6 + scale * (end - bottom) for end in ends(cell))
            parts.append(f'<g class="{cls}"><path class="range" d="M{low:.1f} {y}H{high:.1f}"/>'
                         f'<circle cx="{value:.1f}" cy="{y}" r="4"/></g>')
    return svg(width, line * len(cells), "".join(parts), "intervals")


def ticks(low, high, most=4):
    """Round numbers within [low, high] for an axis, at most `most` + 1."""
    rough = (high - low) / most
    power = 10 ** floor(log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    return [round(i * step, 12) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def short(value):
    """A number as a short axis label: 0.25, 1e-4, 12k."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}".replace("-", "−")


def curves(title, lines):
    """A chart of lines over steps: [(name, class, [(step, value), …], "raw" | "line" | "dots"), …] → SVG.

    Values that are not finite leave a gap. The vertical range leaves out the highest and lowest 3 % of a raw line, so
    that a few wild steps do not flatten the rest.
    """
    width, height, left, right, top, bottom = 420, 200, 46, 10, 12, 24
    steps = [step for _, _, points, _ in lines for step, _ in points]
    values = [value for _, _, points, kind in lines for value in trimmed([v for _, v in points if isfinite(v)], kind)]
    if not values:
        return ""

    # Some room above and below, also if all values are equal, or 0.
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1
    low, high = low - margin, high + margin
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step):
        return left + (width - left - right) * (step - first) / (last - first)

    def y(value):
        return top + (height - top - bottom) * (high - min(max(value, low), high)) / (high - low)

    # The grid and its labels; the rightmost label must not be cut off.
    parts = [f'<path class="grid" d="M{left} {y(t):.1f}H{width - right}"/>'
             f'<text class="tick" x="{left - 6}" y="{y(t) + 3.5:.1f}" text-anchor="end">{short(t)}</text>'
             for t in ticks(low, high)]
    parts += [f'<text class="tick" x="{min(x(t), width - 16):.1f}" y="{height - 6}" text-anchor="middle">'
              f"{short(t)}</text>"
              for t in ticks(first, last, 5)]

    for name, cls, points, kind in lines:
        points = thinned([(step, value) for step, value in points if isfinite(value)])
        if kind == "dots":
            parts += [f'<circle class="{cls}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.2">'
                      f"<title>{escape(name)}, step {step}: {value:.4g}</title></circle>" for step, value in points]
        if len(points) > 1:
            path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
            parts.append(f'<path class="{cls} {kind}" d="M{path}"><title>{escape(name)}</title></path>')
    return svg(width, height, "".join(parts), "chart", title)


def trimmed(values, kind):
    if kind != "raw" or len(values) < 50:
        return values
    values, cut = sorted(values), round(0.03 * len(values))
    return [values[cut], values[-1 - cut]]


def thinned(points):
    """At most `POINTS` points, each the mean of its neighbours."""
    size = ceil(len(points) / POINTS)
    if size <= 1:
        return points
    groups = [points[start:start + size] for start in range(0, len(points), size)]
    return [(group[len(group) // 2][0], sum(value for _, value in group) / len(group)) for group in groups]


def smoothed(points):
    """A centred moving average of the finite points, over SMOOTH of all points.

    Near both ends the window is narrower, so that the average reaches the first and last point.
    """
    points = [(step, value) for step, value in points if isfinite(value)]
    values, half = [value for _, value in points], max(1, round(len(points) * SMOOTH / 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(values) - 1 - i)
        result.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def roc(name, rates):
    """One finding's ROC curve; rates: (false positive rates, true positive rates), or None for an empty frame."""
    size, edge = 150, 148
    points = thinned(list(zip(*([float(rate) for rate in side] for side in rates)))) if rates is not None else []
    line = "L".join(f"{1 + edge * x:.1f} {1 + edge * (1 - y):.1f}" for x, y in [(0, 0), *points, (1, 1)])
    return svg(size, size, f'<rect class="frame" x="1" y="1" width="{edge}" height="{edge}"/>'
               f'<path class="chance" d="M1 {1 + edge}L{1 + edge} 1"/>'
               + (f'<path class="area" d="M{line}L{1 + edge} {1 + edge}L1 {1 + edge}Z"/>'
                  f'<path class="line" d="M{line}"/>' if points else ""), "roc", f"ROC curve, {name}")


def swaps(names, figures):
    """One row per swap, one panel per figure: dots with intervals, and a vertical line at the unchanged run's value.

    names: of the rows, the unchanged run first. figures: [(title, [cell per row])], cells as in metrics.json's "swap".
    A filled dot differs from the unchanged run with p < 0.05.
    """
    label, panel, line, top, bottom = 190, 120, 22, 26, 18
    height = top + line * len(names) + bottom
    parts = [f'<text class="name" x="0" y="{top + line * (row + 0.5) + 4:.1f}">{escape(name)}</text>'
             for row, name in enumerate(names)]

    for column, (title, cells) in enumerate(figures):
        left, right = label + column * panel + 8, label + (column + 1) * panel - 8
        known = [end for cell in cells if cell["value"] is not None for end in ends(cell)]
        parts.append(f'<text class="title" x="{left}" y="12">{escape(title)}</text>')
        if not known:
            continue

        # Each panel has its own scale, from the lowest to the highest end of the intervals.
        low, high = min(known), max(known)
        margin = 0.05 * (high - low) or 0.5
        low, high = low - margin, high + margin

        def x(value):
            return left + (right - left) * (value - low) / (high - low)

        if cells[0]["value"] is not None:
            parts.append(f'<path class="unchanged" d="M{x(cells[0]["value"]):.1f} {top - 6}V{height - bottom}"/>')
        for row, cell in enumerate(cells):
            if cell["value"] is None:
                continue
            y = top + line * (row + 0.5)
            p = cell.get("change", {}).get("p")
            cls = "own" if row == 0 else "differs" if p is not None and p < 0.05 else "same"
            _, start, end = ends(cell)
            parts.append(f'<g class="{cls}"><path class="range" d="M{x(start):.1f} {y}H{x(end):.1f}"/>'
                         f'<circle cx="{x(cell["value"]):.1f}" cy="{y}" r="4"/>'
                         f"<title>{escape(names[row])}, {escape(title)}: {number(cell['value'])}</title></g>")
        parts += [f'<text class="tick" x="{x(tick):.1f}" y="{height - 4}" text-anchor="middle">{short(tick)}</text>'
                  for tick in ticks(low, high, 3)]
    return svg(label + panel * len(figures), height, "".join(parts), "swaps", "figures under each swap")
