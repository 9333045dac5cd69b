"""English names and their translations, out of the package pycountry.

    pip install 'seq2seq_ext[train]' pycountry
    python examples/translation/corpus.py names.tsv --language fr

Names of languages, countries, their parts, currencies and scripts in the ISO standards 639, 3166,
4217 and 15924, which volunteers of the project iso-codes have translated. Words change their order
and their endings, and some names are only spelled otherwise: "Peruvian Sign Language" is "Langue
des signes péruvienne", "Buxoro" is "Boukhara". Names that stay what they are are left out.
"""

from __future__ import annotations

import argparse
import gettext
from collections.abc import Iterable
from pathlib import Path

import pycountry

# What is translated in each of the catalogs.
CATALOGS = {
    "iso639-3": (pycountry.languages, ("name", "inverted_name", "common_name")),
    "iso639-5": (pycountry.language_families, ("name",)),
    "iso3166-1": (pycountry.countries, ("name", "official_name", "common_name")),
    "iso3166-2": (pycountry.subdivisions, ("name",)),
    "iso4217": (pycountry.currencies, ("name",)),
    "iso15924": (pycountry.scripts, ("name",)),
}


def pairs(language: str) -> list[tuple[str, str]]:
    """Names in English and in a language, each pair once.

    Args:
        language: ISO 639 code, as ``fr``.

    Raises:
        FileNotFoundError: if nothing is translated into the language.
    """
    found: dict[tuple[str, str], None] = {}
    for catalog, (database, fields) in CATALOGS.items():
        translate = gettext.translation(catalog, pycountry.LOCALES_DIR, [language]).gettext
        for name in names(database, fields):
            translated = " ".join(translate(name).split())
            if translated != name:
                found[name, translated] = None
    return list(found)


def names(database: Iterable[object], fields: Iterable[str]) -> list[str]:
    """All that entries have in some fields, on one line each."""
    fields = list(fields)
    values = [getattr(entry, field, None) for entry in database for field in fields]
    return [" ".join(value.split()) for value in values if value]


def main() -> None:
    parser = argparse.ArgumentParser(description="English names and their translations.")
    parser.add_argument("path", type=Path, help="a file of two columns with a tab between")
    parser.add_argument("--language", default="fr", help="of the second column (default: fr)")
    options = parser.parse_args()
    written = pairs(options.language)
    text = "".join(f"{source}\t{target}\n" for source, target in written)
    options.path.write_text(text, encoding="utf-8")
    print(f"{len(written):,} pairs")


if __name__ == "__main__":
    main()
