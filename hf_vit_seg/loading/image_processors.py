"""Load the image processors of models."""

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from hf_vit_seg.conversion.files.download import find_file
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.records import shorten
from hf_vit_seg.text_files import read_json_object

from .errors import INVALID_FILES, ModelError, as_model_error

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PROCESSOR_TYPES = {"image_processor_type": str, "feature_extractor_type": str, "processor_class": str, "auto_map": dict}


def has_processor(name: str, **hub: Any) -> bool:
    """Return whether a model has an image processor. Raises ConversionError for a repository that cannot be read."""
    return any(find_file(name, file, **hub) is not None for file in PROCESSOR_FILES)


def find_processor(name: str, **hub: Any) -> Any:
    """Load the image processor of a model; None if it has none. Raises ModelError."""
    with as_model_error():
        if not has_processor(name, trust_cache=False, **hub):
            return None
        return load_processor(name, **hub)


def open_processor(name: str | Path, **hub: Any) -> Any:
    """Load an image processor with AutoImageProcessor, after checking the types of the settings that name its class.

    Raises one of `INVALID_FILES`.
    """
    for file in PROCESSOR_FILES:
        path = find_file(name, file, **hub)
        settings = {} if path is None else read_json_object(path)
        for field, kind in PROCESSOR_TYPES.items():
            if field in settings and not isinstance(settings[field], kind):
                raise HfVitSegError(f"{field} in {file} is {shorten(settings[field])}: remove or correct it")
    return AutoImageProcessor.from_pretrained(name, **hub)


def load_processor(name: str, **hub: Any) -> Any:
    """Load the image processor of a model. Raises ModelError if there is none."""
    try:
        return open_processor(name, **hub)
    except INVALID_FILES as error:
        reason = error_sentence(error, short=True)
        if isinstance(error, ValueError) and has_processor(name, **hub):
            raise ModelError(f"the image processor of {name} cannot be loaded: {reason}") from error
        raise ModelError(
            f"{name} has no image processor (preprocessor_config.json), which is required to resize and normalize "
            f"images: {reason}"
        ) from error


__all__ = ["find_processor", "has_processor", "load_processor", "open_processor"]
