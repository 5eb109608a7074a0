"""Errors of models that cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HTTPError, StrictDataclassError

from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.errors import HfVitSegError

# Exceptions of from_pretrained for files of configs, image processors and models that are missing, invalid, or on a Hub
# that does not answer.
INVALID_FILES = (OSError, ValueError, KeyError, StrictDataclassError, HTTPError)


class ModelError(HfVitSegError):
    """A model that cannot be used."""


@contextmanager
def as_model_error() -> Iterator[None]:
    """Raise ModelError in place of ConversionError."""
    try:
        yield
    except ConversionError as error:
        raise ModelError(str(error)) from error


__all__ = ["INVALID_FILES", "ModelError", "as_model_error"]
