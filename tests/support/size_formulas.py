"""Sizes of tensors: formulas of dynamic dimensions in an exported program, and the largest tensor of a computation."""

import sympy
import torch
from sympy.core.function import Application
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Record operators: `numel` is that of the largest tensor in the context, including backward passes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


MAX_SIZE = 10**6  # of a side or a batch: a lower upper bound was added by a condition on sizes


def size_formulas(program: ExportedProgram) -> set[sympy.Expr]:
    """The distinct formulas of the sizes of all tensors."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    sides = [side for value in values if isinstance(value, torch.Tensor) for side in value.shape]
    return {side.node.expr for side in sides if isinstance(side, torch.SymInt)}


def roundings(program: ExportedProgram) -> set[Application]:
    """The distinct quotients, remainders, minima and maxima in the formulas."""
    return set().union(*(formula.atoms(Application) for formula in size_formulas(program)))


def assert_unbounded(program: ExportedProgram) -> None:
    """Assert that batch, height and width are three independent, unbounded numbers."""
    bounds = list(program.range_constraints.values())
    assert len(bounds) == 3
    assert all(bound.upper > MAX_SIZE for bound in bounds)
