"""Parts of a model whose code transformers would not save with it: heads of other packages, and own backbones.

transformers saves the file of a model's class, and the siblings that it imports. Parts that are found by name are not
among them: their files are copied, and a table that finds them, empty in this package, is written beside the model.

A head of another package is a module in a file like those of this folder (it imports torch, transformers and siblings).
It is built as `Head(in_channels, num_labels, ...)` with the channels C_i of each map, and with those of SETTINGS that
it has parameters for. Called with the maps (B, C_i, H_i, W_i), finest first, it gives logits (B, K, H, W) on the
finest grid.

Shapes: B images, K classes, H W the finest grid, C_i H_i W_i channels and grid of map i.
"""

import shutil
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from .errors import HfVitSegError
from .plugged_heads import PLUGGED_HEADS

# Parameters that a head may have, and the config's fields that give them.
SETTINGS = {
    "width": "segmentation_head_width",
    "depth": "segmentation_head_depth",
    "dropout": "classifier_dropout_prob",
    "norm": "decoder_norm",
    "norm_eps": "segmentation_norm_eps",
    "hidden_act": "hidden_act",
}
PUSH_OPTIONS = tuple(signature(PreTrainedConfig.push_to_hub).parameters)


def plugged_head(config: Any, in_channels: Sequence[int]) -> nn.Module:
    """The head that `config.segmentation_head` names; a width that the config leaves open is the head's own.

    What the head raises gets a note that names it.
    """
    head = PLUGGED_HEADS[config.segmentation_head]
    known = signature(head).parameters
    settings = {name: getattr(config, field) for name, field in SETTINGS.items() if name in known}
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return head(in_channels, config.num_labels, **given)
    except Exception as error:
        error.add_note(f"segmentation_head '{config.segmentation_head}', for maps of {list(in_channels)} channels")
        raise


class CarriesCode(PreTrainedConfig):
    """The config of a model whose head or backbone may be of other code: what it is saved with has that too."""

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers does; a push follows when all files are there."""
        super().save_pretrained(save_directory, **kwargs)
        if self._auto_class is not None:
            self.save_parts(Path(save_directory))
        if push_to_hub:
            options = {option: kwargs[option] for option in PUSH_OPTIONS if option in kwargs}
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    def own_backbone(self) -> tuple[type, ...]:
        """The classes of the backbone's config and of the backbone, if these are not transformers' own."""
        config: Any = type(getattr(self, "backbone", None))
        backbone: Any = MODEL_FOR_BACKBONE_MAPPING.get(config, None)
        return () if backbone is None or backbone._auto_class is None else (config, backbone)

    def own_head(self) -> tuple[type, ...]:
        """The class of the head, if a plugin brings it."""
        head = PLUGGED_HEADS.get(getattr(self, "segmentation_head", None) or "")
        return () if head is None else (head,)

    def check_parts(self) -> None:
        """ValueError where files of the parts have one name, or that of another file of the model."""
        places: dict[str, Path] = {}
        for kind in (*self.own_head(), *self.own_backbone()):
            if reason := clash(kind):
                raise HfVitSegError(reason)
            for file in files_of(kind):
                other = places.setdefault(file.name, file)
                if not other.samefile(file):
                    raise HfVitSegError(f"a model cannot be saved with both {other} and {file}: rename one of them")

    def save_parts(self, folder: Path) -> None:
        """Put the code of the parts into a folder, and the tables that find it there."""
        head, backbone = self.own_head(), self.own_backbone()
        for kind in (*head, *backbone):
            for file in files_of(kind):
                shutil.copyfile(file, folder / file.name)
        if head:
            table = f"PLUGGED_HEADS: dict[str, type[nn.Module]] = {{{self.segmentation_head!r}: {head[0].__name__}}}"
            write_table(folder / "plugged_heads.py", ["from torch import nn"], head, table)
        if backbone:
            names = ", ".join(kind.__name__ for kind in backbone)
            write_table(folder / "own_backbones.py", [], backbone, f"OWN_BACKBONES = (({names}),)")


def clash(kind: type) -> str | None:
    """Which file of a class has the name of another one of the models here; None if none has."""
    for file in files_of(kind):
        ours = Path(__file__).with_name(file.name)
        if ours.exists() and not ours.samefile(file):
            return f"{kind.__name__} has a file {file}, and the models here one of that name: rename it"
    return None


def files_of(kind: type) -> list[Path]:
    """The file that defines a class, and the siblings that it imports."""
    return code_files(file_of(kind))


def file_of(kind: type) -> Path:
    """The file that defines a class."""
    return Path(sys.modules[kind.__module__].__file__ or "")


def code_files(file: Path) -> list[Path]:
    """A file and those that transformers copies with it."""
    return [file, *map(Path, sorted(get_relative_import_files(file)))]


def write_table(file: Path, imports: Sequence[str], kinds: Sequence[type], table: str) -> None:
    """Write a module that knows some classes, whose files lie beside it, by a table."""
    own = [f"from .{file_of(kind).stem} import {kind.__name__}" for kind in kinds]
    lines = ['"""What the model beside this file is made of."""', "", *imports, "", *own, "", table]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


__all__ = ["CarriesCode", "clash", "code_files", "file_of", "plugged_head"]
