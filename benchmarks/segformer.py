"""SegFormer against transformers, segmentation_models_pytorch, ONNX Runtime and OpenVINO, with the same weights.

    python -m benchmarks.segformer [--variants b0,b2] [--size 512] [--device cuda --dtype bfloat16]

ONNX Runtime and OpenVINO run transformers' model as torch exports it, each tuned by its own graph optimizer. Every
contender must return our logits before it is timed.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from hf_vit_seg.conversion.convert import export
from torch import nn

from hf_vit_seg import architectures
from hf_vit_seg.inference.runtimes import compile_openvino
from hf_vit_seg.models.label_maps import label_map

from .contest import (
    OURS,
    Dtype,
    Logits,
    Out,
    Rounds,
    Threads,
    contest,
    describe,
    randomize,
    save_variants,
    set_up,
    torch_contender,
)
from .measuring import Contender, print_table, product_rate, time_interleaved

CLASSES = 150


class QuarterSize(nn.Module):
    """segmentation_models_pytorch's SegFormer up to the logits, without its own upsampling by 4."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.decoder, self.head = model.encoder, model.decoder, model.segmentation_head[0]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.encoder(pixel_values)))


def save_all(variant: str, folder: Path) -> None:
    """Save the same random weights in three formats."""
    architecture = architectures()["segformer"]
    ours = architecture.models["AutoModelForSemanticSegmentation"]
    model = randomize(
        # transformers uses 1e-5 in all norms, regardless of its config
        ours(architecture.variant_config(variant, num_labels=CLASSES, layer_norm_eps=1e-5))
    )
    model.save_pretrained(folder / "ours")
    architecture.image_processor["torchvision"]().save_pretrained(folder / "ours")
    export(folder / "ours", folder / "transformers", to="transformers")
    export(folder / "ours", folder / "smp.pth", to="smp")


def load_ours(folder: Path) -> nn.Module:
    return Logits(
        architectures()["segformer"].models["AutoModelForSemanticSegmentation"].from_pretrained(folder / "ours")
    )


def load_transformers(folder: Path) -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    return Logits(SegformerForSemanticSegmentation.from_pretrained(folder / "transformers"))


def load_smp(folder: Path, variant: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    width = architectures()["segformer"].variant_rows()[variant]["decode_head_hidden_size"]
    model = smp.Segformer(f"mit_{variant}", encoder_weights=None, decoder_segmentation_channels=width, classes=CLASSES)
    state = torch.load(folder / "smp.pth", weights_only=True)
    model.load_state_dict(state.get("state_dict", state))
    return QuarterSize(model)


def export_to_onnx(folder: Path, size: tuple[int, int]) -> Path:
    """Export transformers' model for one size, with torch's exporter."""
    file = folder / "transformers.onnx"
    pixel_values = torch.randn(1, 3, *size)
    model = load_transformers(folder).eval()
    torch.onnx.export(model, (pixel_values,), file, dynamo=True, opset_version=18, verbose=False)
    return file


def onnx_runtime_contender(file: Path, pixel_values: torch.Tensor) -> Contender:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: pixel_values.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino_contender(file: Path, pixel_values: torch.Tensor) -> Contender:
    compiled = compile_openvino(str(file))
    return lambda: torch.from_numpy(compiled(pixel_values.numpy())[0].copy())


def builders(variant: str, folder: Path, pixel_values: torch.Tensor):
    """A function for each contender that builds it, ours first."""
    built = {
        OURS: partial(torch_contender, partial(load_ours, folder), pixel_values),
        "transformers": partial(torch_contender, partial(load_transformers, folder), pixel_values),
        "smp": partial(torch_contender, partial(load_smp, folder, variant), pixel_values),
    }
    if pixel_values.device.type == "cpu" and pixel_values.dtype == torch.float32 and len(pixel_values) == 1:
        file = export_to_onnx(folder, (pixel_values.shape[2], pixel_values.shape[3]))
        built["ONNX Runtime"] = partial(onnx_runtime_contender, file, pixel_values)
        built["OpenVINO"] = partial(openvino_contender, file, pixel_values)
    return built


def print_label_map_table(pixel_values: torch.Tensor, rounds: int, file: Path | None) -> None:
    """Print the table of our label maps against resizing all logits, for smooth logits as those of a model."""
    rows = []
    for (height, width), (tall, wide) in (
        ((128, 128), (512, 512)),
        ((128, 128), (1080, 1920)),
        ((256, 512), (1024, 2048)),
    ):
        coarse = torch.randn(1, CLASSES, height // 8, width // 8, device=pixel_values.device, dtype=pixel_values.dtype)
        logits = nn.functional.interpolate(coarse, (height, width), mode="bicubic") * 4
        logits = logits.contiguous(memory_format=torch.channels_last)
        contenders: dict[str, Contender] = {
            "ours": partial(label_map, logits, (tall, wide)),
            "plain": lambda size=(tall, wide), logits=logits: nn.functional.interpolate(
                logits, size, mode="bilinear"
            ).argmax(1),
        }
        best = time_interleaved(contenders, max(rounds // 2, 3), pixel_values.device.type)
        agree = (contenders["ours"]() == contenders["plain"]()).double().mean()  # type: ignore[union-attr]
        rows.append(
            [
                f"{height}x{width} to {tall}x{wide}",
                f"{best['ours']:.1f}",
                f"{best['plain']:.1f}",
                f"{best['plain'] / best['ours']:.2f}",
                f"{100 * agree:.5f} %",
            ]
        )
    title = f"Label maps, {CLASSES} classes, {describe(pixel_values)}"
    print_table(title, ["logits to map", "label_map ms", "interpolate + argmax ms", "ratio", "equal"], rows, file)


def main(
    variants: Annotated[str, typer.Option(help="rows of configs/models/segformer.yaml, comma-separated")] = "b0,b2",
    size: Annotated[int, typer.Option(help="side of the square images")] = 512,
    batch: Annotated[int, typer.Option(help="batch size; ONNX Runtime and OpenVINO are included for 1")] = 1,
    rounds: Rounds = 12,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print the tables."""
    set_up(threads)
    pixel_values = torch.randn(batch, 3, size, size, device=device, dtype=getattr(torch, dtype))
    rate = product_rate(device, pixel_values.dtype)
    for variant, folder in save_variants(variants, save_all):
        title = f"SegFormer-{variant.upper()}, {{images}}, {CLASSES} classes, {{machine}}"
        contest(title, builders(variant, folder, pixel_values), load_ours(folder), pixel_values, rounds, rate, out)
    print_label_map_table(pixel_values, rounds, out)


if __name__ == "__main__":
    typer.run(main)
