"""Names in English and Korean, from the Unicode locale data in the package babel.

Territories, languages, scripts, currencies, and the cities that time zones are named after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from seq2seq_ext.data.extras import require

_KINDS = ("territories", "languages", "scripts", "currencies")
_DIGIT_OR_BRACKET = re.compile(r"[\d()\[\]（）]")


def name_pairs() -> list[tuple[str, str]]:
    """Names, English and Korean, each pair once; those with digits or brackets are left out.

    1,633 pairs with babel 2.19.0.

    Raises:
        ModuleNotFoundError: if babel is not installed.
    """
    babel = require("babel", extra="demo", purpose="the names")
    english, korean = babel.Locale("en"), babel.Locale("ko")
    pairs: dict[tuple[str, str], None] = {}
    for kind in _KINDS:
        ours, theirs = getattr(english, kind), getattr(korean, kind)
        for code in ours:
            if code in theirs:
                pairs[str(ours[code]), str(theirs[code])] = None
    here, there = _cities(english.time_zones), _cities(korean.time_zones)
    for zone, city in there.items():
        # Where English has no other name for it, a zone's own last part is the city.
        pairs[here.get(zone, zone.rpartition("/")[2].replace("_", " ")), city] = None
    return [pair for pair in pairs if not _DIGIT_OR_BRACKET.search("".join(pair))]


def _cities(zones: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {zone: str(zones[zone]["city"]) for zone in zones if "city" in zones[zone]}
