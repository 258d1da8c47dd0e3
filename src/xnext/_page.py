"""The one way to make a page: one HTML file that asks the network for nothing, for people to read."""

import base64
import html
import io
from pathlib import Path
from typing import Any

from PIL import Image

from xnext._files import write_atomic

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #202124; background: #fff; max-width: 1000px }
body { margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin-bottom: 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin-top: 2.5rem }
.lead { color: #5f6368; margin-top: .2rem; overflow-wrap: anywhere }
.note { color: #5f6368; font-size: .9rem }
table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .2rem .7rem .2rem 0; text-align: left }
th { border-bottom: 1px solid #dadce0 } .scroll { overflow: auto; max-height: 28rem }
pre { background: #f6f7f8; padding: .7rem; overflow: auto; font-size: .8rem }
"""


def write_page(path: Path, title: str, body: str, style: str = "", script: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        path: The file.
        title: Of the window, as plain text.
        body: HTML.
        style: CSS beyond what all pages have.
        script: JavaScript that the body needs.

    Raises:
        UserError: The file cannot be written.
    """
    scripts = f"<script>{script}</script>" if script else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{_STYLE}{style}</style>{scripts}</head><body>{body}</body></html>"
    )
    write_atomic(path, page.encode("utf-8", "replace"))


def escape(value: Any) -> str:
    """Return a value as text of a page, or of an attribute."""
    return html.escape(str(value))


def note(text: str) -> str:
    """Return a paragraph of small print; the text is HTML."""
    return f'<p class="note">{text}</p>'


def section(title: str, *parts: str) -> str:
    """Return parts of a page under a heading; all of it is HTML."""
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def figure(content: str, caption: str) -> str:
    """Return a part of a page with a caption; both are HTML."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def picture(image: Image.Image, shows: str) -> str:
    """Return an RGB picture that stands in the page itself, and what it shows in plain words."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img {size} src="data:image/jpeg;base64,{content}" alt="{escape(shows)}">'
