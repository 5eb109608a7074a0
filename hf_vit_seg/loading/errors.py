"""Errors of models that cannot be loaded."""

from huggingface_hub.errors import HTTPError, StrictDataclassError

from hf_vit_seg.errors import HfVitSegError

# What from_pretrained of configs, image processors and models raises for files that are missing, invalid, or on a Hub
# that does not answer.
INVALID_FILES = (OSError, ValueError, KeyError, StrictDataclassError, HTTPError)


class ModelError(HfVitSegError):
    """A model that cannot be used."""


__all__ = ["INVALID_FILES", "ModelError"]
