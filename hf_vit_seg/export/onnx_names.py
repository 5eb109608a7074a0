"""Postprocessing of ONNX graphs: names of dynamic axes, and removal of stack traces with local paths."""

import re
from collections.abc import Mapping
from typing import Any


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


def remove_origins(model: Any) -> Any:
    """Remove the stack traces and metadata that torch attaches to nodes."""
    for part in (model, model.graph, *model.graph.input, *model.graph.output, *model.graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in (*model.graph.node, *model.graph.initializer):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return model


__all__ = ["name_axes", "remove_origins"]
