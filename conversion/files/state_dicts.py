"""Find the model's tensors in a checkpoint of a training framework: entries, prefixes, averages, and other objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hf_vit_seg.conversion.errors import ConversionError, first_few
from torch import Tensor

from .file_formats import check_size

# Entries that contain a state dict, in order of preference: weights as trained, self-distillation, averages.
ENTRIES = ("state_dict", "model", "model_state_dict", "net", "module", "network", "weights", "teacher", "student")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_ema_state_dict", "module_ema", "ema")
# First parts of names, of wrappers and of several models in one file.
PREFIXES = ("module", "model", "net", "teacher", "student", "ema_model", "model_ema", "ema", "ema_net", "averaged")
COMPILED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # at any level
COUNTERS = ("n_averaged", "steps")  # counters of averaged models
PROFILER_COUNTERS = ("total_ops", "total_params")  # written by thop for each module
FLAX_STATES = ("opt/target/", "params/")
MAX_LEVELS = 4
AVERAGE_COUNTER = "the number of updates of an average"
PROFILER_COUNTER = "a count of a profiler"


@dataclass
class StateDict:
    """The selected tensors, `meta` of the framework, and the names of the chosen and of the other entries."""

    tensors: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Describe the selection for the report; empty for a plain state dict."""
        chosen = ".".join(self.path)
        also = f"; the file also has {first_few(self.others)}, see --weights" if self.others else ""
        return f"'{chosen}'{also}" if chosen or also else ""


def find_state_dict(file: Path, content: Mapping[Any, Any], weights: str | None = None) -> StateDict:
    """Find the tensors in the content of a file; `weights` chooses an entry or a prefix, such as `state_dict_ema`."""
    meta = content.get("meta")
    result = StateDict({}, meta=meta if isinstance(meta, Mapping) else {})
    requested = [weights] if weights else []
    tensors = unwrap_entries(content, requested, result)
    check_tensors(file, tensors)
    check_size(file, {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()})
    result.tensors = select_parameters(strip_prefixes(file, tensors, requested, result))
    if requested:
        paths = (*result.path, *result.others)
        choice = f"choose from {first_few(paths)}" if paths else "it has only one set of weights"
        raise ConversionError(f"'{file}' has no weights named {first_few(requested)}; {choice}, or omit --weights")
    return result


def unwrap_entries(content: Mapping[Any, Any], requested: list[str], result: StateDict) -> Mapping[Any, Any]:
    """Follow the entries that contain state dicts; a chosen one is removed from `wanted`."""
    for _ in range(MAX_LEVELS):
        entries = [name for name in (*ENTRIES, *AVERAGES) if is_entry(content, name)]
        chosen = requested[0] if requested and is_entry(content, requested[0]) else next(iter(entries), None)
        if chosen is None:
            break
        if requested and chosen == requested[0]:
            requested.clear()
        result.path += (chosen,)
        result.others += tuple(name for name in entries if name != chosen)
        content = content[chosen]
    return content


def is_entry(content: Mapping[Any, Any], name: str) -> bool:
    """Return whether an entry is a dictionary with tensors, or with a dictionary of tensors."""
    entry = content.get(name)
    return isinstance(entry, Mapping) and any(
        torch.is_tensor(value) or (name in (*ENTRIES, *AVERAGES) and isinstance(value, Mapping))
        for name, value in entry.items()
    )


def check_tensors(file: Path, content: Mapping[Any, Any]) -> None:
    """Raise ConversionError for entries that are not plain tensors, have no name, or are empty."""
    others = [
        f"{name} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and torch.is_tensor(value))
    ]
    if others:
        raise ConversionError(
            f"'{file}' has entries that are not tensors: {first_few(others)}; expected a flat dictionary of tensors, "
            f"or one under {' or '.join(ENTRIES[:3])}"
        )
    unusual = [f"{name} ({reason})" for name, tensor in content.items() if (reason := describe_unsupported(tensor))]
    if unusual:
        raise ConversionError(
            f"'{file}' has tensors that cannot be converted: {first_few(unusual)}; expected dense tensors of real "
            "numbers: save the model before it is quantized or pruned"
        )


def describe_unsupported(tensor: Tensor) -> str:
    """Describe what prevents the conversion of a tensor; empty for a plain one."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"sparse or nested, {tensor.layout}"
    if tensor.device.type != "cpu":
        return f"without data, on device {tensor.device.type}"
    if tensor.is_quantized:
        return f"quantized, {tensor.dtype}"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_complex():
        return f"complex, {tensor.dtype}"
    return "no elements" if not tensor.numel() else ""


def strip_prefixes(
    file: Path, tensors: Mapping[str, Tensor], requested: list[str], result: StateDict
) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, and select one of several models whose names have different prefixes."""
    tensors = drop_profiler_counters(remove_parts(file, tensors), result)
    for _ in range(MAX_LEVELS):
        groups = dict.fromkeys(name.partition(".")[0] for name in tensors)
        for name in [name for name in COUNTERS if name in groups and tensors[name].numel() == 1 and len(groups) > 1]:
            result.dropped[name] = AVERAGE_COUNTER
            tensors = {each: tensor for each, tensor in tensors.items() if each != name}
            del groups[name]
        if not tensors or any(group not in PREFIXES for group in groups) or any("." not in name for name in tensors):
            break
        chosen = requested[0] if requested and requested[0] in groups else min(groups, key=PREFIXES.index)
        if requested and requested[0] == chosen:
            requested.clear()
        if len(groups) > 1 or chosen not in ("module", "model", "net"):
            result.path += (chosen,)
            result.others += tuple(name for name in groups if name != chosen)
        start = chosen + "."
        tensors = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    return dict(tensors)


def drop_profiler_counters(tensors: Mapping[str, Tensor], result: StateDict) -> Mapping[str, Tensor]:
    """Drop the buffers in which a profiler counts the operations and parameters of each module."""
    names = {
        name for name, tensor in tensors.items() if name.rpartition(".")[2] in PROFILER_COUNTERS and tensor.numel() == 1
    }
    result.dropped |= dict.fromkeys(sorted(names), PROFILER_COUNTER)
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def remove_parts(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the parts that compilation and sharding add to names, at any level."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in COMPILED) if "_" in name else name
        if plain in result:
            raise ConversionError(f"'{file}' has {first_few([plain])} twice, with and without {first_few(COMPILED)}")
        result[plain] = tensor
    return result


def select_parameters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the model's parameters from a flax training state, which also contains the optimizer's."""
    for prefix in FLAX_STATES:
        inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if inside:
            return inside
    return tensors


def copy_shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, because safetensors cannot save them."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes and address not in seen
        seen.add(address)
        tensor = tensor.detach()
        result[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    return result
