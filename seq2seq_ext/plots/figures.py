"""What all pictures share: a figure without a display, as the content of a file, and colours."""

from __future__ import annotations

import importlib.resources
import importlib.util
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
_CJK_PACKAGE = "noto_cjk_sans_jp_regular"


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

    Latin, Greek and Cyrillic with all accents are in the usual one. Chinese, Japanese and Korean
    are in one of the machine's, or in that of the package noto-cjk-sans-jp-regular, which comes
    with the extra ``[plot]``.
    """
    from matplotlib.font_manager import fontManager

    families = ["DejaVu Sans"]
    if any(c >= "\u2e80" or "\u1100" <= c <= "\u11ff" for c in text):
        names = sorted({font.name for font in fontManager.ttflist})
        cjk = [name for start in _CJK for name in names if name.startswith(start)]
        if not cjk and importlib.util.find_spec(_CJK_PACKAGE) is not None:
            package = importlib.import_module(_CJK_PACKAGE)
            with importlib.resources.as_file(package.FONT_PATH) as path:
                fontManager.addfont(path)
            cjk = [fontManager.ttflist[-1].name]
        families += cjk[:1]
    return families


def spelled(tokens: Sequence[str]) -> list[str]:
    """Tokens as they stand on an axis: one that is blank is shown as an open box."""
    return [token if token.strip() else "\N{OPEN BOX}" for token in tokens]
