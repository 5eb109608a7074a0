"""Whether a program is being recorded that shall take images of other sizes than the one it is recorded with."""

import torch


def sizes_are_open() -> bool:
    """Under torch.export and torch.jit.trace: a branch on a size would then hold for the recorded size alone."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


__all__ = ["sizes_are_open"]
