"""Remote code: the code that is saved with a model, for users without this package (`trust_remote_code=True`).

transformers copies the file that defines a class, and siblings imported as `from .sibling import name`, to every saved
model whose class is registered for an Auto class. It does not follow `from . import x`, `..` or subpackages:
architectures with such imports are saved without code, and need their package to be loaded.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_imports
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.models.bundled_code import code_files, source_file

UNSEEN = re.compile(r"^\s*from\s+\.+\s+import\b", re.MULTILINE)  # imports that transformers silently ignores

logger = logging.getLogger(__name__)


def register_code(
    config: type[PreTrainedConfig],
    models: Mapping[str, type[PreTrainedModel]],
    processors: Iterable[type[BaseImageProcessor]],
) -> None:
    """Register an architecture's code for saving with its models, if transformers can copy it."""
    kinds = {"AutoConfig": [config], "AutoImageProcessor": list(processors)} | {a: [m] for a, m in models.items()}
    own = [(name, kind) for name, those in kinds.items() for kind in those if not is_from_transformers(kind)]
    if reason := next(filter(None, map(copy_obstacle, sorted({source_file(kind) for _, kind in own}))), None):
        logger.info("models of %s are saved without code: %s", config.model_type, reason)
        return
    for auto_class, kind in own:
        kind.register_for_auto_class(auto_class)


def is_from_transformers(kind: type) -> bool:
    """Return whether a class is part of transformers, so that it needs no code."""
    return kind.__module__.startswith("transformers.")


def copy_obstacle(file: Path) -> str | None:
    """Return the reason why transformers cannot copy a file with its imports; None if it can."""
    try:
        siblings = code_files(file)
    except OSError as error:
        return f"{file.name} imports a file outside of its folder ({error})"
    hidden = next((sibling for sibling in siblings if UNSEEN.search(sibling.read_text(encoding="utf-8"))), None)
    return None if hidden is None else f"{hidden.name} has `from . import`, which transformers does not follow"


def model_code(kinds: Iterable[Any], folder: Path) -> list[Path]:
    """Return the code files of these classes: those saved in `folder`, or else the original ones.

    Classes of transformers have no code files.
    """
    files = [source_file(kind) for kind in kinds if kind._auto_class is not None]
    saved = [folder / file.name for file in files]
    chosen = saved if all(file.is_file() and copy_obstacle(file) is None for file in saved) else files
    return list(dict.fromkeys(path for file in chosen for path in code_files(file)))


def packages_needed(files: Iterable[Path]) -> list[str]:
    """Return the top-level packages that the code imports, except for Python's standard library."""
    names = {name for file in files for name in get_imports(file)}
    return sorted(names - sys.stdlib_module_names)


__all__ = ["code_files", "copy_obstacle", "model_code", "packages_needed", "register_code", "source_file"]
