"""docs/code_map.md names functions that exist and call each other."""

import ast
import re

import pytest
from paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "code_map.md").read_text()
ROWS = re.findall(r"^\| ([\w/]+\.py) \| ([\w.]+) \| ([\w, ]+) \|$", PAGE, flags=re.MULTILINE)


def definition(file: str, name: str) -> ast.AST:
    """The function or method of a file."""
    node: ast.AST = ast.parse((REPOSITORY / file).read_text())
    for part in name.split("."):
        node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part)
    return node


def called_names(node: ast.AST) -> list[str]:
    """Names of the called functions and methods, in source order."""
    calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return [call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "") for call in calls]


def test_code_map_has_four_flows():
    assert len(ROWS) >= 20
    assert len(re.findall(r"^## (Register|Train|Predict|Convert)$", PAGE, flags=re.MULTILINE)) == 4


@pytest.mark.parametrize(("file", "name", "calls"), ROWS, ids=[f"{file}:{name}" for file, name, _ in ROWS])
def test_functions_call_each_other_in_order(file, name, calls):
    found = iter(called_names(definition(file, name)))
    for call in calls.split(", "):
        assert call in found, f"{call} is not called after those before it"  # `in` advances the iterator
