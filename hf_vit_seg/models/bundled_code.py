"""Save code that transformers would not save with a model: plugins' heads, and backbones that are not in transformers.

transformers copies the file that defines a model's class, and the siblings that it imports. Parts that are found by
name are not imported there: their files are copied here, and the tables that find them, which are empty in this
package, are written next to the model.
"""

import shutil
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_BACKBONE_MAPPING, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from .errors import HfVitSegError
from .external_heads import EXTERNAL_HEADS
from .layers import SegmentationConfig

PUSH_OPTIONS = tuple(signature(PreTrainedConfig.push_to_hub).parameters)


class BundlesCode(SegmentationConfig):
    """A config that saves the code of its head and backbone unless they are built in."""

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as transformers does; push, if requested, after all files are written."""
        super().save_pretrained(save_directory, **kwargs)
        if self._auto_class is not None:
            self.save_parts(Path(save_directory))
        if push_to_hub:
            options = {option: kwargs[option] for option in PUSH_OPTIONS if option in kwargs}
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    def own_backbone(self) -> tuple[type, ...]:
        """Return the classes of the backbone's config and of the backbone, if they are not in transformers."""
        config: Any = type(getattr(self, "backbone", None))
        backbone: Any = MODEL_FOR_BACKBONE_MAPPING.get(config, None)
        return () if backbone is None or backbone._auto_class is None else (config, backbone)

    def own_head(self) -> tuple[type, ...]:
        """Return the class of the head, if it comes from a plugin."""
        head = EXTERNAL_HEADS.get(getattr(self, "decode_head", None) or "")
        return () if head is None else (head,)

    def check_parts(self) -> None:
        """Raise ValueError if files of the parts have the same name, or that of another file of the model."""
        files: dict[str, Path] = {}
        for part in (*self.own_head(), *self.own_backbone()):
            if reason := name_conflict(part):
                raise HfVitSegError(reason)
            for file in source_files(part):
                other = files.setdefault(file.name, file)
                if not other.samefile(file):
                    raise HfVitSegError(f"a model cannot be saved with both {other} and {file}: rename one of them")

    def save_parts(self, folder: Path) -> None:
        """Copy the code of the parts to a folder, and write the tables that find it."""
        head, backbone = self.own_head(), self.own_backbone()
        for part in (*head, *backbone):
            for file in source_files(part):
                shutil.copyfile(file, folder / file.name)
        if head:
            entry = f"{self.decode_head!r}: {head[0].__name__}"
            table = f"EXTERNAL_HEADS: dict[str, type[nn.Module]] = {{{entry}}}"
            write_table(folder / "external_heads.py", ["from torch import nn"], head, table)
        if backbone:
            names = ", ".join(part.__name__ for part in backbone)
            write_table(folder / "own_backbones.py", [], backbone, f"OWN_BACKBONES = (({names}),)")


def name_conflict(part: type) -> str | None:
    """Return the error message if a file of a class has the name of a model file of this package; otherwise None."""
    for file in source_files(part):
        ours = Path(__file__).with_name(file.name)
        if ours.exists() and not ours.samefile(file):
            return f"{part.__name__} has a file {file}, and hf_vit_seg has a model file of that name: rename it"
    return None


def source_files(part: type) -> list[Path]:
    """Return the file that defines a class, and the siblings that it imports."""
    return code_files(source_file(part))


def source_file(part: type) -> Path:
    """Return the file that defines a class."""
    return Path(sys.modules[part.__module__].__file__ or "")


def code_files(file: Path) -> list[Path]:
    """Return a file and those that transformers copies with it."""
    return [file, *map(Path, sorted(get_relative_import_files(file)))]


def write_table(file: Path, imports: Sequence[str], parts: Sequence[type], table: str) -> None:
    """Write a module with a table of classes, whose files are in the same folder."""
    own = [f"from .{source_file(part).stem} import {part.__name__}" for part in parts]
    lines = ['"""Parts of the model in this folder."""', "", *imports, "", *own, "", table]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


__all__ = ["BundlesCode", "code_files", "name_conflict", "source_file"]
