"""Writers: save tensors by the reference's names, in the container that the reference reads."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hf_vit_seg.conversion.settings.preprocessing import source_class
from hf_vit_seg.conversion.source import Outgoing, Writer
from safetensors.torch import save_file

SEGFORMER, CROPPING = "SegformerImageProcessor", "BitImageProcessor"  # the first ignores do_center_crop


def write_state_dict(outgoing: Outgoing, path: Path) -> None:
    """Write a plain state dict: as safetensors if the path has this suffix, otherwise with torch.save."""
    if path.suffix == ".safetensors":
        save_file(dict(outgoing.tensors), path, metadata={"format": "pt"})
    else:
        torch.save(OrderedDict(outgoing.tensors), path)


def write_with_meta(outgoing: Outgoing, path: Path) -> None:
    """Write OpenMMLab's container: class names and colors in `meta`, weights in `state_dict`."""
    meta = {}
    if outgoing.labels is not None:
        meta["CLASSES"] = outgoing.labels.names
        meta["PALETTE"] = [list(color) for color in outgoing.labels.palette]
    torch.save({"meta": meta, "state_dict": OrderedDict(outgoing.tensors)}, path)


def write_as_model(outgoing: Outgoing, path: Path) -> None:
    """Write the container of Facebook's and Segmenter's files: weights in `model`."""
    torch.save({"model": OrderedDict(outgoing.tensors)}, path)


def write_npz(outgoing: Outgoing, path: Path) -> None:
    """Write a NumPy archive; bfloat16 is stored as an untyped two-byte dtype, as JAX does."""
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: to_numpy(t) for name, t in outgoing.tensors.items()})


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Convert a tensor to an array, bfloat16 to untyped two-byte elements."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("V2")
    return tensor.numpy()


def processor_name(settings: Mapping[str, Any], usual: str) -> str:
    """Return the class of transformers for the settings of an image processor: its own, or one with the same steps."""
    kept = source_class(settings, {})
    if kept is not None:
        return kept.__name__
    return CROPPING if usual == SEGFORMER and settings.get("do_center_crop") else usual


def transformers_writer(
    config: str, model: str, processor: str, fields: Sequence[str] | Mapping[str, str], **constants: Any
) -> Writer:
    """Create a writer of model directories of transformers; `fields` maps our config fields to theirs.

    `constants` are other fields of their config.
    """
    there = fields if isinstance(fields, Mapping) else {name: name for name in fields}

    def write(outgoing: Outgoing, path: Path) -> None:
        path.mkdir()
        save_file(dict(outgoing.tensors), path / "model.safetensors", metadata={"format": "pt"})
        values = {theirs: getattr(outgoing.config, ours) for ours, theirs in there.items()}
        values |= constants | {"id2label": outgoing.config.id2label, "label2id": outgoing.config.label2id}
        built = getattr(transformers, config)(**values, architectures=[model], dtype=outgoing.config.dtype)
        built.save_pretrained(path)
        if outgoing.processor:
            described = {**outgoing.processor, "image_processor_type": processor_name(outgoing.processor, processor)}
            (path / "preprocessor_config.json").write_text(json.dumps(described, indent=2) + "\n")

    return write
