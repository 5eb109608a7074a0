"""Postprocessing of ONNX graphs: names of axes and layers, and removal of stack traces with local paths."""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hf_vit_seg.records import RecordError, shorten

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: its modules from the outermost, then its own name
LAYERS = ("MatMul", "Conv")


def name_axes(model: Any, axes: Mapping[int, str]) -> Any:
    """Name the input's dynamic axes, and replace their symbols in all shapes."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    names = {dims[axis].dim_param: name for axis, name in axes.items()}
    symbols = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names if symbol) or "(?!)")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbols.sub(lambda found: names[found[0]], dim.dim_param)
    return model


def name_layers(model: Any) -> Any:
    """Put the name of the module before that of each node of `LAYERS`: `decode_head.classifier/node_conv2d_22`."""
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
        if node.op_type in LAYERS and scopes is not None:
            node.name = f"{ast.literal_eval(scopes)[-2].removeprefix('model.')}/{node.name}"
    return model


def matching_layers(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names of layers that match one of the regular expressions (`re.search`).

    RecordError if an expression matches no name.
    """
    remaining, matches = list(names), []
    for pattern in patterns:
        try:
            matched = [name for name in remaining if re.search(pattern, name)]
        except re.error as error:
            raise RecordError(f"float32_layers: '{pattern}' is not a valid regular expression: {error}") from None
        if not matched:
            raise RecordError(f"float32_layers: '{pattern}' matches no layer; found {shorten(remaining, 400)}")
        matches += matched
    return list(dict.fromkeys(matches))


def remove_origins(model: Any) -> Any:
    """Remove the stack traces and metadata that torch attaches to nodes."""
    for part in (model, model.graph, *model.graph.input, *model.graph.output, *model.graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in (*model.graph.node, *model.graph.initializer):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return model


__all__ = ["LAYERS", "matching_layers", "name_axes", "name_layers", "remove_origins"]
