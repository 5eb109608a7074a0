"""Unicode forms of the names of classes and files: an accented letter is one character (NFC) or two (NFD)."""

import unicodedata


def compose(text: str) -> str:
    """Return a text with composed characters (NFC)."""
    return unicodedata.normalize("NFC", text)


def normalize_name(name: str) -> str:
    """Return a name with composed characters, without spaces around it."""
    return compose(name).strip()


def spellings(name: str) -> list[str]:
    """Return a name as given, composed (NFC) and decomposed (NFD), without repetitions."""
    return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]))


__all__ = ["compose", "normalize_name", "spellings"]
