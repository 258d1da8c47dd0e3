"""The one way this project turns a figure into a picture file."""

import io
import warnings
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from xnext._files import write_atomic

# File names and classes may be in any script; matplotlib's own font has the European ones.
_FALLBACKS = (
    "Noto Sans CJK",
    "Noto Sans",
    "Source Han Sans",
    "PingFang",
    "Hiragino",
    "Microsoft YaHei",
    "Arial",
)


# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that white paper swallows.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")


def write_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Draw a figure into a PNG, whole or not at all.

    Args:
        path: The file.
        figure: What to draw.
        dpi: Pixels an inch.

    Raises:
        UserError: The file cannot be written.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a name starts no formula
        text.set_text(printable(text.get_text()))
        text.set_fontfamily([*text.get_fontfamily(), *_installed_fallbacks()])
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that no installed font has is drawn as a box, which says so itself.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=dpi)
    write_atomic(path, buffer.getvalue())


def printable(name: str) -> str:
    """Return a name that matplotlib can draw: what is no UTF-8, as a file's name may be, becomes ``?``."""
    return name.encode("utf-8", "replace").decode()


@cache
def _installed_fallbacks() -> tuple[str, ...]:
    """Return the families of this machine that cover further scripts."""
    return tuple(name for name in font_manager.get_font_names() if name.startswith(_FALLBACKS))
