"""The sizes of the tensors in an exported program, as formulas of the open axes."""

import sympy
import torch
from sympy.core.function import Application
from torch.export import ExportedProgram

LARGEST = 10**6  # of a side or a batch: a bound below this is one that a condition on sizes has brought in


def size_formulas(program: ExportedProgram) -> set[sympy.Expr]:
    """The different formulas of all tensors' sides."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    sides = [side for value in values if isinstance(value, torch.Tensor) for side in value.shape]
    return {side.node.expr for side in sides if isinstance(side, torch.SymInt)}


def roundings(program: ExportedProgram) -> set[Application]:
    """The different quotients, remainders, minima and maxima in the formulas."""
    return set().union(*(formula.atoms(Application) for formula in size_formulas(program)))


def assert_unbounded(program: ExportedProgram) -> None:
    """Assert that batch, height and width are three independent numbers, as large as they like."""
    bounds = list(program.range_constraints.values())
    assert len(bounds) == 3
    assert all(bound.upper > LARGEST for bound in bounds)
