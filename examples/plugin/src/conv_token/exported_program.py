"""The export format `hf-vit-seg export --to pt2` (torch.export), and the runtime that loads it in `predict`."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from hf_vit_seg.export.exporters import Exporter
from hf_vit_seg.export.graphs import Geometry, export_graph
from hf_vit_seg.inference.runtimes import Program


class ExportedProgramExporter(Exporter):
    """The archive of torch.export. It needs only torch: load it with torch.export.load or AOTInductor."""

    file: ClassVar[str] = "model.pt2"

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.pt2."""
        torch.export.save(export_graph(graph, geometry, dtype), path)


def exported_program(path: Path) -> Program:
    """Load the program from a .pt2 file."""
    return Program(torch.export.load(path).module(), torch.float32)


__all__ = ["ExportedProgramExporter", "exported_program"]
