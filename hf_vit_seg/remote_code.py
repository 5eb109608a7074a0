"""The code that travels with a model, for readers without this package (`trust_remote_code=True`).

transformers copies the file that defines a class, and the siblings it imports as `from .sibling import name`, beside
every saved model whose class is registered for an Auto class. It cannot follow `from . import x`, `..` or sub-packages:
architectures written so are saved without code, and their readers need the package that brings them.
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

from hf_vit_seg.models.bundled_code import code_files, file_of

UNSEEN = re.compile(r"^\s*from\s+\.+\s+import\b", re.MULTILINE)  # imports that transformers passes over in silence

logger = logging.getLogger(__name__)


def register_code(
    config: type[PreTrainedConfig],
    models: Mapping[str, type[PreTrainedModel]],
    processors: Iterable[type[BaseImageProcessor]],
) -> None:
    """Have an architecture's code saved with its models, if transformers can copy it; `models` by Auto class."""
    kinds = {"AutoConfig": [config], "AutoImageProcessor": list(processors)} | {a: [m] for a, m in models.items()}
    own = [(name, kind) for name, those in kinds.items() for kind in those if not is_of_transformers(kind)]
    if reason := next(filter(None, map(obstacle, sorted({file_of(kind) for _, kind in own}))), None):
        logger.info("models of %s are saved without code: %s", config.model_type, reason)
        return
    for auto_class, kind in own:
        kind.register_for_auto_class(auto_class)


def is_of_transformers(kind: type) -> bool:
    """Whether every reader has a class already."""
    return kind.__module__.startswith("transformers.")


def obstacle(file: Path) -> str | None:
    """Why transformers cannot copy a file with all that it imports; None if it can."""
    try:
        siblings = code_files(file)
    except OSError as error:
        return f"{file.name} imports what is no file beside it ({error})"
    hidden = next((sibling for sibling in siblings if UNSEEN.search(sibling.read_text(encoding="utf-8"))), None)
    return None if hidden is None else f"{hidden.name} has `from . import`, whose file transformers does not copy"


def code_of(kinds: Iterable[Any], folder: Path) -> list[Path]:
    """The code that was saved in `folder` with objects of these classes or, where there is none, would be.

    None for classes that transformers itself has.
    """
    files = [file_of(kind) for kind in kinds if kind._auto_class is not None]
    saved = [folder / file.name for file in files]
    chosen = saved if all(file.is_file() and obstacle(file) is None for file in saved) else files
    return list(dict.fromkeys(path for file in chosen for path in code_files(file)))


def packages_needed(files: Iterable[Path]) -> list[str]:
    """The top-level packages that copied code imports, those of Python aside."""
    found = {name for file in files for name in get_imports(file)}
    return sorted(found - sys.stdlib_module_names)


__all__ = ["code_files", "code_of", "file_of", "obstacle", "packages_needed", "register_code"]
