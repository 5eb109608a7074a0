"""Export of models to other runtimes, with a parity check of the results."""

from .exported_model import ExportOptions, export_model
from .exporters import EXPORTERS, Exporter
from .parity import ParityError

__all__ = ["EXPORTERS", "ExportOptions", "Exporter", "ParityError", "export_model"]
