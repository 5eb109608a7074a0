"""Writers: tensors under a reference's names, in the container that the reference reads."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from .source import Outgoing, Writer


def write_bare(outgoing: Outgoing, path: Path) -> None:
    """A state dict and nothing else: safetensors if the file is called so, else torch.save."""
    if path.suffix == ".safetensors":
        save_file(dict(outgoing.tensors), path, metadata={"format": "pt"})
    else:
        torch.save(OrderedDict(outgoing.tensors), path)


def write_with_meta(outgoing: Outgoing, path: Path) -> None:
    """OpenMMLab's container: the class names and colours as `meta`, the weights as `state_dict`."""
    meta = {}
    if outgoing.labels is not None:
        meta["CLASSES"] = outgoing.labels.names
        meta["PALETTE"] = [list(colour) for colour in outgoing.labels.palette]
    torch.save({"meta": meta, "state_dict": OrderedDict(outgoing.tensors)}, path)


def transformers_writer(config: str, model: str, processor: str, fields: Sequence[str]) -> Writer:
    """A writer of the directory that a class of transformers loads; `fields` have one name here and there."""

    def write(outgoing: Outgoing, path: Path) -> None:
        path.mkdir()
        save_file(dict(outgoing.tensors), path / "model.safetensors", metadata={"format": "pt"})
        values = {name: getattr(outgoing.config, name) for name in fields}
        labels = {"id2label": outgoing.config.id2label, "label2id": outgoing.config.label2id}
        there = getattr(transformers, config)(**values, **labels, architectures=[model], dtype=outgoing.config.dtype)
        there.save_pretrained(path)
        if outgoing.processor:
            described = {**outgoing.processor, "image_processor_type": processor}
            (path / "preprocessor_config.json").write_text(json.dumps(described, indent=2) + "\n")

    return write
