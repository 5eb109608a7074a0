"""Where a model's weights came from and under which licence, kept as the metadata of the card beside them.

README.md of a model directory begins with YAML that the Hub reads. Conversion writes it, training carries it on from
the model it began with, and `hf-vit-seg push` publishes it; people may edit it at any time.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.repocard import metadata_load
from pydantic import Field

from hf_vit_seg.errors import HfVitSegError, error_sentence

from .local_paths import is_local_path
from .records import Record

CARD = "README.md"
# A card with this line was written by the package, and is written anew when the model is pushed.
MARK = "<!-- Written by hf_vit_seg. Remove this line to keep your own text when the model is pushed. -->"
UNKNOWN = "No licence is known for these weights: say which it is in the first lines of this file (`license: ...`)."

logger = logging.getLogger(__name__)


class Provenance(Record):
    """The part of a card's metadata that is handed on from model to model.

    `license`, `license_name` and `license_link` are the Hub's: an identifier such as `mit`, or `other` with a name and
    a link. `base_model` and `datasets` are Hub ids. `source` says in words what the weights were converted from.
    """

    license: str | None = None
    license_name: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+$")  # the Hub accepts no other
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    source: str | None = None

    def metadata(self) -> dict[str, Any]:
        """What is known, for the head of a card."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value}

    def licence(self) -> str:
        """The licence in words."""
        if self.license is None:
            return UNKNOWN
        name = self.license if self.license_name is None else f"{self.license_name} ({self.license})"
        return name if self.license_link is None else f"{name}, {self.license_link}"


def provenance_from(metadata: Mapping[str, Any]) -> Provenance:
    """What a card's metadata tells; what is not written as the Hub wants it, and local paths, are left out."""

    def words(name: str) -> tuple[str, ...]:
        value = metadata.get(name) or ()
        found = map(str, [value] if isinstance(value, str) else value)
        return tuple(each for each in found if not is_local_path(each))

    texts = {name: (words(name) or (None,))[0] for name in ("license", "license_link", "source")}
    name = re.sub(r"[^a-z0-9.-]+", "-", (words("license_name") or ("",))[0].lower())
    return Provenance(**texts, license_name=name or None, base_model=words("base_model"), datasets=words("datasets"))


def card_metadata(directory: Path) -> dict[str, Any]:
    """The metadata of the card in a directory; none where there is no card, or one without."""
    if not (directory / CARD).is_file():
        return {}
    try:
        return metadata_load(directory / CARD) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise HfVitSegError(f"{directory / CARD}: its first lines are no YAML ({error_sentence(error)})") from None


def provenance_of(model: str | Path) -> Provenance:
    """Of a directory, or of a Hub id, which is its own base model then."""
    if Path(model).is_dir():
        return provenance_from(card_metadata(Path(model)))
    return hub_provenance(str(model)).model_copy(update={"base_model": (str(model),)})


def hub_provenance(repo_id: str) -> Provenance:
    """What the card on the Hub tells; where it cannot be read, a warning and nothing."""
    try:
        return provenance_from(metadata_load(hf_hub_download(repo_id, CARD)) or {})
    except RemoteEntryNotFoundError:
        return Provenance()
    except (OSError, ValueError, yaml.YAMLError) as error:  # the Hub's own errors are OSErrors
        reason = error_sentence(error)
        logger.warning("the card of %s cannot be read, so its licence is not handed on: %s", repo_id, reason)
        return Provenance()


def write_card(directory: Path, provenance: Provenance, title: str) -> None:
    """Write the card of a directory that nobody has pushed yet."""
    short_card(provenance, title).save(directory / CARD)


def short_card(provenance: Provenance, title: str) -> ModelCard:
    """A card of metadata and a few words."""
    data = ModelCardData(library_name="transformers", **provenance.metadata())
    origin = f"\nConverted by hf_vit_seg from {provenance.source}.\n" if provenance.source else ""
    text = f"{MARK}\n\n# {title}\n{origin}\nLicence of the weights: {provenance.licence()}\n"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


__all__ = [
    "CARD",
    "MARK",
    "Provenance",
    "card_metadata",
    "provenance_from",
    "provenance_of",
    "short_card",
    "write_card",
]
