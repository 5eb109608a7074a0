"""The formats that models are exported to: a table, which plugins extend by `hf_vit_seg.exporters`.

A row is a record: its fields are the format's options, `write` makes the file.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from hf_vit_seg.inference.loading import ModelError
from hf_vit_seg.inference.runtimes import openvino_core, optional
from hf_vit_seg.records import Record, RecordError, Table

from .calibration import Calibration
from .forms import Target
from .graphs import Geometry, recorded
from .onnx_names import name_axes, without_origins
from .torchscript_records import without_debug_records

LARGEST_FILE = 1_800_000_000  # bytes of weights; an ONNX file ends at 2 GiB, larger weights go into a second one


class Exporter(Record):
    """A format. `file` is the name of the file that users give to `predict`; others may be written beside it."""

    file: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    forms: ClassVar[tuple[Target, ...]] = ("any",)  # targets of the export forms that are applied
    quantizes: ClassVar[bool] = False
    quantizes_open_sizes: ClassVar[bool] = True
    runs_alone: ClassVar[bool] = True  # whether one size and batch may stay open

    def check(self) -> None:
        """RecordError when a package is missing that the format needs."""
        for package in self.packages:
            needed(package)

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write the graph, whose weights are of `dtype`, to `path`, a file called `file`."""
        raise NotImplementedError

    def quantize(self, path: Path, calibration: Calibration) -> None:
        """Replace the file by one that computes in 8 bits, with ranges seen on `calibration`."""
        raise NotImplementedError


class OnnxExporter(Exporter):
    """ONNX, for ONNX Runtime and most others."""

    file: ClassVar[str] = "model.onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    forms: ClassVar[tuple[Target, ...]] = ("any", "blocked_channels")
    quantizes: ClassVar[bool] = True

    opset: int = Field(default=20, ge=18)
    ranges: Literal["minmax", "entropy", "percentile"] = "minmax"

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.onnx, and model.onnx.data with the weights where they are too large for one file."""
        onnx = needed("onnx")
        with quiet():
            program = torch.onnx.export(
                recorded(graph, geometry, dtype),
                (),
                input_names=["pixel_values"],
                output_names=[str(graph.output)],
                opset_version=self.opset,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = without_origins(name_axes(program.model_proto, geometry.open_axes))
        size = sum(tensor.nbytes for tensor in graph.state_dict().values())
        onnx.save(model, str(path), save_as_external_data=size > LARGEST_FILE, location=f"{path.name}.data")

    def quantize(self, path: Path, calibration: Calibration) -> None:
        """Static quantization in QDQ form: products with weights alone, in 8 bits, per channel."""
        quantization: Any = needed("onnxruntime.quantization")
        methods = quantization.CalibrationMethod
        whole = path.with_name(f"float.{path.name}")
        path.rename(whole)
        with quiet():
            quantization.quantize_static(
                str(whole),
                str(path),
                calibration.reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Conv"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method={"minmax": methods.MinMax, "entropy": methods.Entropy}.get(
                    self.ranges, methods.Percentile
                ),
                extra_options={"MatMulConstBOnly": True},
            )
        for used in (whole, whole.with_name(f"{path.name}.data")):
            used.unlink(missing_ok=True)


class OpenVinoExporter(Exporter):
    """OpenVINO's own format, by way of the ONNX graph: model.xml and model.bin."""

    file: ClassVar[str] = "model.xml"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx", "onnxscript")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    forms: ClassVar[tuple[Target, ...]] = ("any", "centered_norms")
    quantizes: ClassVar[bool] = True
    quantizes_open_sizes: ClassVar[bool] = False  # the result gets a wrong shape at sizes that were not calibrated

    opset: int = Field(default=20, ge=18)

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.xml and model.bin; float16 is that of the stored weights."""
        openvino = needed("openvino")
        source = path.with_name("source.onnx")
        OnnxExporter(opset=self.opset).write(graph.float(), geometry, torch.float32, source)
        model = openvino.convert_model(str(source))
        openvino.save_model(model, str(path), compress_to_fp16=dtype == torch.float16)
        for used in (source, source.with_name(f"{source.name}.data")):
            used.unlink(missing_ok=True)

    def quantize(self, path: Path, calibration: Calibration) -> None:
        """Post-training quantization by nncf."""
        openvino, nncf, core = needed("openvino"), needed("nncf"), openvino_core()
        whole = path.with_name(f"float.{path.name}")
        parts = [(path.with_suffix(suffix), whole.with_suffix(suffix)) for suffix in (".xml", ".bin")]
        for part, moved in parts:  # weights are read from their file while the other one is written
            part.rename(moved)
        quantized = nncf.quantize(
            core.read_model(str(whole)),
            nncf.Dataset(calibration.images),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration.images),
        )
        openvino.save_model(quantized, str(path), compress_to_fp16=False)
        for _, moved in parts:
            moved.unlink()


class TorchScriptExporter(Exporter):
    """A traced program, which torch.jit.load and libtorch run."""

    file: ClassVar[str] = "model.ts"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.ts; sizes that are open stay so as long as nothing in the model branches on them."""
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(graph, geometry.example(dtype), check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), str(path))
        without_debug_records(path)


class ExecuTorchExporter(Exporter):
    """ExecuTorch for phones and boards, for one size, with XNNPACK's kernels."""

    file: ClassVar[str] = "model.pte"
    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    runs_alone: ClassVar[bool] = False

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.pte."""
        exir = needed("executorch.exir")
        partitioner = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
        with quiet():
            program = recorded(graph, geometry, dtype)
            lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner])
            path.write_bytes(lowered.to_executorch().buffer)


EXPORTERS: Table[Exporter] = Table(
    "format",
    {
        "onnx": OnnxExporter,
        "openvino": OpenVinoExporter,
        "torchscript": TorchScriptExporter,
        "executorch": ExecuTorchExporter,
    },
    kind=Exporter,
    group="hf_vit_seg.exporters",
)


def needed(module: str) -> Any:
    """A module of an optional package. RecordError where it is not installed."""
    try:
        return optional(module)
    except ModelError as error:
        raise RecordError(str(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters tell of each node; what matters is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


__all__ = ["EXPORTERS", "Exporter", "quiet"]
