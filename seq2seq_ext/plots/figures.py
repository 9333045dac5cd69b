"""What all pictures share: a figure without a display, as the content of a file, and colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seq2seq_ext.data.extras import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart too (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")

# Families of fonts with Chinese, Japanese and Korean, of which the first that is there is used.
_CJK = ("Noto Sans CJK", "Source Han Sans", "Droid Sans Fallback", "WenQuanYi", "Nanum", "IPA")


def figure_of(*, height: float, width: float = 13) -> Figure:
    """An empty figure of this size in inches that needs no display."""
    check("matplotlib", extra="plot", purpose="pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def font_families(text: str) -> list[str]:
    """Families in which matplotlib finds the characters of a text, the usual one first.

    Latin, Greek and Cyrillic with all accents are in the usual one; the others are among those that
    the machine has.
    """
    from matplotlib.font_manager import fontManager

    families = ["DejaVu Sans"]
    if any(ord(character) > 0x2E7F for character in text):
        names = sorted({font.name for font in fontManager.ttflist})
        families += [name for start in _CJK for name in names if name.startswith(start)][:1]
    return families


def spelled(tokens: Sequence[str]) -> list[str]:
    """Tokens as they stand on an axis: one that is blank is shown as an open box."""
    return [token if token.strip() else "\N{OPEN BOX}" for token in tokens]
