"""Timing, memory and bounds. Contenders run in turns, so that other load affects all of them equally."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Contender = Callable[[], torch.Tensor]


def time_interleaved(contenders: Mapping[str, Contender], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Best time in ms of each contender over `rounds` rounds in which each runs once, after two warm-up rounds.

    The pause lets idle threads of other runtimes, which spin for a while, go to sleep.
    """
    best = dict.fromkeys(contenders, float("inf"))
    for round_ in range(-2, rounds):
        for name, contender in contenders.items():
            time.sleep(0.02)
            synchronize(device)
            start = time.perf_counter()
            contender()
            synchronize(device)
            if round_ >= 0:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def synchronize(device: str) -> None:
    """Wait until a GPU has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(build: Callable[[], Contender], device: str) -> float:
    """Peak MiB of one call above the memory in use before: of the GPU, or of a new process on a CPU."""
    if device.startswith("cuda"):
        contender = build()
        contender()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("spawn")  # a fork would inherit locked thread pools
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak_of_process, args=(build, sender, torch.get_num_threads()))
    process.start()
    process.join()
    if not receiver.poll():
        raise RuntimeError(f"the process that measured memory exited with code {process.exitcode}")
    return receiver.recv()


def _peak_of_process(build: Callable[[], Contender], sender, threads: int) -> None:
    torch.set_num_threads(threads)
    contender = build()
    before = reset_peak()
    contender()
    sender.send((peak_rss() - before) / 2**20)


def reset_peak() -> int:
    """Reset the peak resident memory (Linux), and return the resident memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss()


def peak_rss() -> int:
    """Highest resident memory in bytes since the last reset, or since the start of the process.

    Without /proc, it includes the peak of the process that started this one, which `ru_maxrss` inherits.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.inference_mode()
def product_rate(device: str, dtype: torch.dtype) -> float:
    """Measure the highest rate of matrix products in GMAC/s, of matmul and 1x1 convolutions."""
    side = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    column = left.view(1, 1, side, side).permute(0, 3, 1, 2)
    best = time_interleaved(
        {
            "matmul": lambda: left @ right,
            "convolution": lambda: torch.nn.functional.conv2d(column, right[:, :, None, None]),
        },
        rounds=10,
        device=device,
    )
    return side**3 / (1e6 * min(best.values()))


def multiplications(model: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """GMAC of one forward of the model without folded layers, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    def convolution(tokens, weight, *_, out_shape, **__) -> int:
        return conv_flop_count(tokens, weight, out_shape)

    # The counter does not know the oneDNN operator of our linear layers.
    known = {torch.ops.aten.mkldnn_convolution: convolution}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        model(*inputs)  # with autograd, which disables the fused inference paths
    return counter.get_total_flops() / 2e9


def print_table(title: str, columns: list[str], rows: list[list[str]], file: Path | None = None) -> None:
    """Print a table, and append it to a Markdown file if one is given."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    if file is not None:
        lines = [f"\n### {title}\n", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        with file.open("a") as out:
            out.write("\n".join(lines) + "\n")
