"""A format for `hf-vit-seg export --to pt2`, torch's own exported program, and what runs it in `predict`."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from hf_vit_seg.export.exporters import Exporter
from hf_vit_seg.export.graphs import Geometry, recorded
from hf_vit_seg.inference.runtimes import Program


class ExportedProgramExporter(Exporter):
    """torch.export's archive, for torch alone: torch.export.load, or AOTInductor."""

    file: ClassVar[str] = "model.pt2"

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.pt2."""
        torch.export.save(recorded(graph, geometry, dtype), path)


def exported_program(path: Path) -> Program:
    """The program in a .pt2 file."""
    return Program(torch.export.load(path).module(), torch.float32)


__all__ = ["ExportedProgramExporter", "exported_program"]
