"""Models as programs for other runtimes, each with the proof that it computes the same."""

from .exported_model import ExportOptions, export_model
from .exporters import EXPORTERS, Exporter
from .parity import ParityError

__all__ = ["EXPORTERS", "ExportOptions", "Exporter", "ParityError", "export_model"]
