"""Shared code of the model benchmarks: contenders that must agree before they are timed, and command line options."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from transformers import logging

from .measuring import Contender, multiplications, peak_memory, print_table, time_interleaved

logging.disable_progress_bar()  # here, because the processes that measure memory also import this

OURS = "hf_vit_seg"

Rounds = Annotated[int, typer.Option(help="turns of each contender")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's choice if not given")]
Out = Annotated[Path | None, typer.Option(help="Markdown file to append the tables to")]


def set_up(threads: int | None) -> None:
    """Set the number of CPU threads and the seed."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)


def save_variants(variants: str, save: Callable[[str, Path], None]) -> Iterator[tuple[str, Path]]:
    """Yield each of the comma-separated variants with a temporary folder that contains its weights."""
    for variant in variants.split(","):
        with tempfile.TemporaryDirectory() as folder:
            save(variant, Path(folder))
            yield variant, Path(folder)


class Logits(nn.Module):
    """A model whose forward returns a tensor, for exporters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def randomize(model: Any) -> Any:
    """Randomize norms: new ones are the identity, and the last one of a ResNet branch is zero."""
    with torch.no_grad():
        for name, tensor in (*model.named_buffers(), *model.named_parameters()):
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.3)
            elif name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 2)
    return model


def torch_contender(
    load: Callable[[], nn.Module], pixel_values: torch.Tensor, channels_last: bool = False
) -> Contender:
    """Return a module in evaluation mode, on the device and in the dtype of the images."""
    model = load().eval().to(pixel_values.device, pixel_values.dtype)
    for parameter in model.parameters():  # memory-mapped ones would count as memory of the first call
        parameter.data = parameter.data.clone()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return model(pixel_values)

    return run


def check(contenders: dict[str, Contender], dtype: torch.dtype) -> dict[str, float]:
    """Largest difference of each contender's logits from ours, in standard deviations; RuntimeError above a limit."""
    reference = contenders[OURS]().float()
    differences = {}
    for name, contender in contenders.items():
        differences[name] = float((contender().float() - reference).abs().max() / reference.std())
        if differences[name] > (1e-3 if dtype == torch.float32 else 0.5):
            raise RuntimeError(
                f"{name} does not agree with our model: logits differ by {differences[name]:.3g} standard deviations"
            )
    return differences


def contest(
    title: str,
    built: Mapping[str, Callable[[], Contender]],
    counted: nn.Module,
    pixel_values: torch.Tensor,
    rounds: int,
    rate: float,
    file: Path | None,
) -> None:
    """Print the table of one model: time, memory and agreement of each contender, and the bound for `counted`'s FLOPs.

    `title` may contain {images} and {machine}.
    """
    device = pixel_values.device.type
    memory = {who: peak_memory(build, device) for who, build in built.items()}
    contenders = {who: build() for who, build in built.items()}
    differences = check(contenders, pixel_values.dtype)
    best = time_interleaved(contenders, rounds, device)
    work = multiplications(counted.eval().to(pixel_values.device, pixel_values.dtype), pixel_values)
    bound = 1e3 * work / rate
    rows = [
        [
            who,
            f"{ms:.1f}",
            f"{ms / best[OURS]:.2f}",
            f"{ms / bound:.2f}",
            f"{memory[who]:.0f}",
            f"{differences[who]:.1e}",
        ]
        for who, ms in best.items()
    ]
    rows.append(
        [f"bound: {work:.2f} GMAC at {rate:.0f} GMAC/s", f"{bound:.1f}", f"{bound / best[OURS]:.2f}", "1.00", "", ""]
    )
    batch, _, height, width = pixel_values.shape
    title = title.format(images=f"{batch}x{height}x{width}", machine=describe(pixel_values))
    print_table(title, ["", "ms", "to ours", "to bound", "peak MiB", "difference"], rows, file)


def describe(pixel_values: torch.Tensor) -> str:
    dtype = str(pixel_values.dtype).removeprefix("torch.")
    if pixel_values.is_cuda:
        return f"{dtype}, {torch.cuda.get_device_name()}"
    return f"{dtype}, {torch.get_num_threads()} CPU threads"
