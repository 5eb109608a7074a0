"""The source and license of a model's weights, stored as metadata in the model card.

README.md of a model directory begins with YAML that the Hub reads. Conversion writes it, training copies it from the
pretrained model, and `hf-vit-seg push` publishes it; users may edit it at any time. Runs also
store the versions of packages.
"""

import logging
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from pydantic import Field

from hf_vit_seg.errors import HfVitSegError, error_sentence

from .local_paths import is_local_path
from .records import Record, shorten
from .text_files import parse, read_text

CARD = "README.md"
# A card with this line was written by this package, and is replaced when the model is pushed.
MARK = "<!-- Written by hf_vit_seg. Remove this line to keep your own text when the model is pushed. -->"
UNKNOWN = "unknown; add it to the first lines of README.md (`license: ...`)"

# The metadata between two lines `---`, and the text after them, as huggingface_hub finds them.
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n((?:.*?\n)??)---[ \t]*(?:\n|\Z)(.*)", re.DOTALL)
MAX_VALUE = 1000  # characters of a value that is copied

logger = logging.getLogger(__name__)


class Provenance(Record):
    """The part of a card's metadata that is copied from model to model.

    `license`, `license_name` and `license_link` are those of the Hub: an identifier such as `mit`, or `other` with a
    name and a link. `base_model` and `datasets` are Hub ids. `source` describes the converted checkpoint.
    """

    license: str | None = None
    license_name: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+$")  # required by the Hub
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    source: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the known fields, for the metadata of a card."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value}

    def describe_license(self) -> str:
        """Describe the license in a sentence or by its name and link."""
        if self.license is None:
            return UNKNOWN
        name = self.license if self.license_name is None else f"{self.license_name} ({self.license})"
        return name if self.license_link is None else f"{name}, {self.license_link}"


def provenance_from(metadata: Mapping[str, Any]) -> Provenance:
    """Read the provenance from a card's metadata; invalid values and local paths are dropped."""

    def values_of(name: str) -> tuple[str, ...]:
        value = metadata.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        texts = (each for each in values if isinstance(each, str) and 0 < len(each) <= MAX_VALUE)
        return tuple(text for text in texts if not is_local_path(text))

    texts = {name: (values_of(name) or (None,))[0] for name in ("license", "license_link", "source")}
    name = re.sub(r"[^a-z0-9.-]+", "-", (values_of("license_name") or ("",))[0].lower())
    return Provenance(
        **texts, license_name=name or None, base_model=values_of("base_model"), datasets=values_of("datasets")
    )


def split_card(path: Path) -> tuple[dict[str, Any], str]:
    """Read a card as its metadata (empty if there is none) and its text; HfVitSegError if it cannot be read."""
    content = read_text(path)
    match = FRONT_MATTER.match(content)
    if match is None:
        return {}, content
    try:
        metadata = parse(match[1])
    except HfVitSegError as error:
        raise HfVitSegError(f"{path}: the metadata is not valid YAML ({error})") from None
    if metadata is not None and not isinstance(metadata, dict):
        raise HfVitSegError(f"{path}: the metadata is {shorten(metadata)}, expected a mapping such as `license: mit`")
    return metadata or {}, match[2]


def card_metadata(directory: Path) -> dict[str, Any]:
    """Read the metadata of the card in a directory; empty without a card or metadata."""
    return split_card(directory / CARD)[0] if os.path.lexists(directory / CARD) else {}


def find_provenance(model: str | Path) -> Provenance:
    """Return the provenance of a directory, or of a Hub id, which is then the base model."""
    if Path(model).is_dir():
        return provenance_from(card_metadata(Path(model)))
    return hub_provenance(str(model)).model_copy(update={"base_model": (str(model),)})


def hub_provenance(repo_id: str) -> Provenance:
    """Read the provenance from a card on the Hub; log a warning if it cannot be read."""
    try:
        return provenance_from(split_card(Path(hf_hub_download(repo_id, CARD)))[0])
    except RemoteEntryNotFoundError:
        return Provenance()
    except (OSError, ValueError) as error:  # errors of the Hub are OSErrors
        reason = error_sentence(error)
        logger.warning("the card of %s cannot be read, so its license is not copied: %s", repo_id, reason)
        return Provenance()


def write_card(directory: Path, provenance: Provenance, title: str) -> None:
    """Write the card of a local model directory."""
    short_card(provenance, title).save(directory / CARD)


def short_card(provenance: Provenance, title: str) -> ModelCard:
    """Create a card with metadata and license only."""
    data = ModelCardData(library_name="transformers", **provenance.metadata())
    origin = f"\nConverted by hf_vit_seg from {provenance.source}.\n" if provenance.source else ""
    text = f"{MARK}\n\n# {title}\n{origin}\nLicense of the weights: {provenance.describe_license()}\n"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages; "unknown" for those that are not installed."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


__all__ = [
    "CARD",
    "MARK",
    "Provenance",
    "card_metadata",
    "find_provenance",
    "package_versions",
    "provenance_from",
    "short_card",
    "split_card",
    "write_card",
]
