"""The table of export formats, which plugins extend through the entry point group `hf_vit_seg.exporters`.

A format is a record: its fields are the options, `write` creates the file.
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

from hf_vit_seg.entry_points import ExporterRecord
from hf_vit_seg.inference.runtimes import import_optional, openvino_core
from hf_vit_seg.loading.errors import ModelError
from hf_vit_seg.records import Record, RecordError, Table

from .calibration_images import Calibration
from .forms import Target
from .graphs import Geometry, export_graph
from .onnx_names import LAYERS, matching_layers, name_axes, name_layers, remove_origins

DEBUG = ".debug_pkl"  # call stacks in TorchScript archives, with local paths; optional for torch.jit.load
MAX_FILE_BYTES = 1_800_000_000  # bytes; ONNX files are limited to 2 GiB, so larger weights are stored in a second file

OPENVINO_LAYERS = ("MatMul", "Convolution", "GroupConvolution")


class Exporter(Record):
    """A format. `file` is the name of the file to pass to `predict`; `write` may create others next to it."""

    file: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    forms: ClassVar[tuple[Target, ...]] = ("any",)  # targets of the export forms that are applied
    quantizes: ClassVar[bool] = False
    quantizes_open_sizes: ClassVar[bool] = True
    runs_alone: ClassVar[bool] = True  # whether size and batch may be dynamic
    names_outputs: ClassVar[bool] = False  # whether a file keeps the names of several outputs, as objects need

    def check(self) -> None:
        """Raise RecordError if a required package is not installed."""
        for package in self.packages:
            import_package(package)

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write the graph, with weights of `dtype`, to `path`, whose name is `file`."""
        raise NotImplementedError

    def quantize(self, path: Path, calibration: Calibration) -> None:
        """Replace the file by an 8-bit version, with activation ranges from `calibration`."""
        raise NotImplementedError


class OnnxExporter(Exporter):
    """ONNX, for ONNX Runtime and most other runtimes."""

    file: ClassVar[str] = "model.onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    forms: ClassVar[tuple[Target, ...]] = ("any", "blocked_channels")
    names_outputs: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True

    opset: int = Field(default=20, ge=18)
    ranges: Literal["minmax", "entropy", "percentile"] = "minmax"
    float32_layers: tuple[str, ...] = ()  # regular expressions (re.search) of layers that are not quantized

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.onnx, and model.onnx.data if the weights are too large for one file."""
        onnx = import_package("onnx")
        with quiet():
            program = torch.onnx.export(
                export_graph(graph, geometry, dtype),
                (),
                input_names=["pixel_values"],
                output_names=list(graph.outputs),  # pyright: ignore[reportArgumentType]
                opset_version=self.opset,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = remove_origins(name_layers(name_axes(program.model_proto, geometry.dynamic_axes)))
        size = sum(tensor.nbytes for tensor in graph.state_dict().values())
        onnx.save(model, str(path), save_as_external_data=size > MAX_FILE_BYTES, location=f"{path.name}.data")

    def quantize(self, path: Path, calibration: Calibration) -> None:
        """Apply static per-channel quantization in QDQ format to MatMul and Conv with constant weights."""
        quantization: Any = import_package("onnxruntime.quantization")
        methods = quantization.CalibrationMethod
        nodes = import_package("onnx").load(str(path), load_external_data=False).graph.node
        kept = matching_layers([node.name for node in nodes if node.op_type in LAYERS], self.float32_layers)
        whole = path.with_name(f"float.{path.name}")
        path.rename(whole)
        with quiet():
            quantization.quantize_static(
                str(whole),
                str(path),
                calibration.reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                nodes_to_exclude=kept,
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
    """OpenVINO IR, converted from ONNX: model.xml and model.bin."""

    file: ClassVar[str] = "model.xml"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx", "onnxscript")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    forms: ClassVar[tuple[Target, ...]] = ("any", "centered_norms")
    names_outputs: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    quantizes_open_sizes: ClassVar[bool] = False  # outputs have wrong shapes at sizes without calibration

    opset: int = Field(default=20, ge=18)
    float32_layers: tuple[str, ...] = ()  # regular expressions (re.search) of layers that are not quantized

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.xml and model.bin; float16 only applies to the stored weights."""
        openvino = import_package("openvino")
        source = path.with_name("source.onnx")
        OnnxExporter(opset=self.opset).write(graph.float(), geometry, torch.float32, source)
        model = openvino.convert_model(str(source))
        openvino.save_model(model, str(path), compress_to_fp16=dtype == torch.float16)
        for used in (source, source.with_name(f"{source.name}.data")):
            used.unlink(missing_ok=True)

    def quantize(self, path: Path, calibration: Calibration) -> None:
        """Apply post-training quantization with nncf."""
        openvino, nncf, core = import_package("openvino"), import_package("nncf"), openvino_core()
        whole = path.with_name(f"float.{path.name}")
        parts = [(path.with_suffix(suffix), whole.with_suffix(suffix)) for suffix in (".xml", ".bin")]
        for part, moved in parts:  # the weights are memory-mapped while the new file is written
            part.rename(moved)
        model = core.read_model(str(whole))
        layers = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in OPENVINO_LAYERS]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(calibration.images),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration.images),
            ignored_scope=nncf.IgnoredScope(names=matching_layers(layers, self.float32_layers)),
        )
        openvino.save_model(quantized, str(path), compress_to_fp16=False)
        for _, moved in parts:
            moved.unlink()


class TorchScriptExporter(Exporter):
    """TorchScript by tracing, for torch.jit.load and libtorch."""

    file: ClassVar[str] = "model.ts"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.ts; dynamic sizes only work if the model does not branch on them."""
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(graph, geometry.example(dtype), check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), str(path))
        remove_debug_records(path)


class ExecuTorchExporter(Exporter):
    """ExecuTorch for mobile devices, with a fixed size and XNNPACK kernels."""

    file: ClassVar[str] = "model.pte"
    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    runs_alone: ClassVar[bool] = False

    def write(self, graph: nn.Module, geometry: Geometry, dtype: torch.dtype, path: Path) -> None:
        """Write model.pte."""
        exir = import_package("executorch.exir")
        partitioner = import_package("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
        with quiet():
            program = export_graph(graph, geometry, dtype)
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
    contract=ExporterRecord,
)


def import_package(module: str) -> Any:
    """Import a module of an optional package. Raises RecordError if it is not installed."""
    try:
        return import_optional(module)
    except ModelError as error:
        raise RecordError(str(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and logs of exporters; parity is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def remove_debug_records(path: Path) -> None:
    """Remove the debug records of a TorchScript archive, which have local paths; other records are unchanged."""
    reader = torch._C.PyTorchFileReader(str(path))
    kept = [name for name in reader.get_all_records() if not name.endswith(DEBUG)]
    slim = path.with_name(f"slim.{path.name}")
    writer = torch._C.PyTorchFileWriter(str(slim))
    for name in kept:
        content = reader.get_record(name)
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    del reader
    slim.replace(path)


__all__ = ["EXPORTERS", "Exporter", "quiet"]
