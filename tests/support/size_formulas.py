"""The sizes of the tensors in an exported program, as formulas of the dynamic dimensions."""

import sympy
import torch
from sympy.core.function import Application
from torch.export import ExportedProgram

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
