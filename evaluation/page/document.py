"""The frame of every page: one self-contained HTML file.

A page opens from the disk, loads nothing from the network (its Content-Security-Policy forbids this), and runs one
script, which the policy allows by its hash. All texts of the data are escaped, in the markup and in the JSON that the
script reads; the script inserts texts as text nodes only. page.css and page.js beside this file are copied into the
page.
"""

import base64
import hashlib
import json
from html import escape
from pathlib import Path

from data.files import whole_file
from evaluation.output import NO_ADVICE


def paragraph(text, cls=""):
    return f'<p class="{cls}">{text}</p>' if cls else f"<p>{text}</p>"


def settings_section(settings):
    items = [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
             for name, value in settings.items()]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items) + "</dl>"


def write(path, title, subtitle, settings, tiles, sections, data):
    """Writes a page, whole or not at all. Raises OSError.

    settings: those of metrics.json; "trained_on" is shown at the top. tiles: HTML. sections: [(id, heading, HTML below
    the heading)]. data: the studies for the script, as JSON, or None.
    """
    origin = [settings["trained_on"]] if settings.get("trained_on") else []
    notes = "".join(paragraph(escape(note), "origin") for note in [*origin, NO_ADVICE])
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{html}</section>' for name, heading, html in sections)

    # The policy allows only the script with this hash.
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; "
              "base-uri 'none'; form-action 'none'")

    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{notes}</header>
<nav aria-label="Sections">{links}</nav>
<main>
<div class="tiles">{tiles}</div>
{body}
</main>
<script type="application/json" id="data">{in_script(data)}</script>
<script>{script}</script>
</body>
</html>
"""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "replace").decode())     # unpaired surrogates, which UTF-8 lacks, become "?"


def in_script(data):
    """JSON that is safe inside <script>: < > & and the line separators U+2028 and U+2029 as \\u escapes."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
