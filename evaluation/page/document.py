"""The frame of every page: one self-contained file for people who would rather look than read.

It opens from the disk, asks nothing of any network (its own policy forbids it), and runs one script, allowed by its
hash. Every text of the data is escaped, in the markup and in the JSON that the script reads; the script writes texts as
text only. page.css and page.js beside this file are put into it as they are.
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
    """Puts a page together and writes it in one go. Raises OSError.

    settings: metrics.json's, whose "trained_on" stands on top. tiles: HTML. sections: [(id, heading, HTML below it)].
    data: what the script draws studies from, or None.
    """
    origin = [settings["trained_on"]] if settings.get("trained_on") else []
    notes = "".join(paragraph(escape(note), "origin") for note in [*origin, NO_ADVICE])
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{html}</section>' for name, heading, html in sections)

    # The one script that may run is the one whose hash the policy names.
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
        file.write(text.encode("utf-8", "replace").decode())     # half a surrogate pair becomes "?": no file holds it


def in_script(data):
    """JSON that cannot end its <script>, begin another, or break a line: < > & and U+2028/9 as \\u escapes."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
