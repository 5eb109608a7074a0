"""What `from_pretrained` of configs, image processors and models raises for files that are missing or invalid."""

from huggingface_hub.errors import StrictDataclassError

# A config of another type or range raises StrictDataclassError, which is no ValueError.
INVALID_FILES = (OSError, ValueError, KeyError, StrictDataclassError)

__all__ = ["INVALID_FILES"]
