"""Which exceptions are raised, and which are converted to one-sentence errors for users, read from the code."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_vit_seg.models
from hf_vit_seg.errors import HfVitSegError, error_sentence, write_errors

PACKAGE = Path(hf_vit_seg.models.__file__).parents[1]
ROOT = PACKAGE.parent
FILES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for folder in (PACKAGE, ROOT / "conversion")
    for path in sorted(folder.rglob("*.py"))
}
# Allowed besides HfVitSegError: mistakes in code that calls the library, and internal signals between functions.
PROGRAMMING_ERRORS = {"NotImplementedError", "TypeError", "KeyboardInterrupt", "typer.Exit", "gr.Error"}
BY_FILE = {
    # It runs without the package, and the endpoint answers with the text of any exception.
    "hf_vit_seg/hub/handler.py": {"ValueError"},
    "hf_vit_seg/__init__.py": {"AttributeError"},  # of a module
    "hf_vit_seg/inference/__init__.py": {"AttributeError"},
    "conversion/settings/stage_depths.py": {"KeyError"},  # a tensor missing in the checkpoint, see config_building
    "conversion/vit/config_fields.py": {"KeyError"},
    "hf_vit_seg/demo/image_reading.py": {"EOFError", "RuntimeError"},  # of an exited process, caught in the same file
    "hf_vit_seg/demo/request_limits.py": {
        "BodyTooLargeError",
        "TooSlowError",
    },  # converted to an HTTP status in the same file
    "hf_vit_seg/inference/batch/processes.py": {"RuntimeError"},  # a bug in another process
    "hf_vit_seg/models/bilinear.py": {"RuntimeError"},  # as torch raises for a second derivative
    "hf_vit_seg/training/checkpoints/main_process.py": {"RuntimeError"},  # a bug in another process
    "hf_vit_seg/training/figures/layout.py": {"ValueError"},  # mistakes of callers
    "hf_vit_seg/training/figures/poses.py": {"ValueError"},
    "hf_vit_seg/training/optimization/ema.py": {"ValueError"},
    "hf_vit_seg/text_files.py": {"yaml.constructor.ConstructorError"},  # caught in the same file
}
# Calls that run a model, a loss, an optimizer or plugin code.
RUNNING = {
    "accumulate", "backward", "clip_grad_norm_", "combine", "evaluate", "forward", "generate", "logits", "model",
    "one_step", "predict_video", "predict_tiled", "segment", "segmenter", "step", "take_step", "totals", "train_locked",
}  # fmt: skip
# Conversions around such calls that select one case by its message and re-raise everything else.
GUARDS = {"is_killed_worker", "is_lost_process", "is_out_of_memory", "is_single_value_error"}


def classes() -> dict[str, list[str]]:
    """The bases of every class, by name."""
    nodes = [node for tree in FILES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name: [ast.unparse(base) for base in node.bases] for node in nodes}


CLASSES = classes()


def is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type):
        return issubclass(kind, BaseException)
    return any(map(is_exception, CLASSES.get(name, ())))


def is_expected(name: str) -> bool:
    return name == "HfVitSegError" or any(map(is_expected, CLASSES.get(name, ())))


EXCEPTIONS = sorted(name for name in CLASSES if is_exception(name))
# Functions that return an exception, by annotation.
MAKERS = {
    node.name: ast.unparse(node.returns)
    for tree in FILES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) in EXCEPTIONS
}


def exception_name(node: ast.Raise) -> str:
    """The class that a statement raises."""
    assert node.exc is not None
    name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
    return MAKERS.get(name.rpartition(".")[2], name)


def raises(tree: ast.AST) -> Iterator[ast.Raise]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)


def test_exception_classes_are_found():
    assert len(EXCEPTIONS) > 30 and sum(1 for tree in FILES.values() for _ in raises(tree)) > 400


@pytest.mark.parametrize("name", [name for name in EXCEPTIONS if name not in ("BodyTooLargeError", "TooSlowError")])
def test_every_exception_class_is_reported_without_traceback(name):
    assert is_expected(name)


@pytest.mark.parametrize("path", FILES)
def test_only_errors_for_users_and_known_programming_errors_are_raised(path):
    allowed = PROGRAMMING_ERRORS | BY_FILE.get(path, set())
    others = {
        f"line {node.lineno}: {exception_name(node)}"
        for node in raises(FILES[path])
        if not is_expected(exception_name(node))
    }
    assert {each for each in others if each.partition(": ")[2] not in allowed} == set()


def test_allowlist_has_no_unused_entries():
    for path, names in BY_FILE.items():
        assert names <= {exception_name(node) for node in raises(FILES[path])}, path


def converts(handler: ast.ExceptHandler) -> bool:
    """Whether a handler turns an exception that is not HfVitSegError into one that is."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    caught = ["BaseException" if kind is None else ast.unparse(kind) for kind in kinds]
    if all(map(is_expected, caught)):
        return False
    return any(is_expected(exception_name(node)) for statement in handler.body for node in raises(statement))


def has_guard(handler: ast.ExceptHandler) -> bool:
    """Whether a handler begins with `if not GUARD(error): raise`."""
    first = handler.body[0]
    return (
        isinstance(first, ast.If)
        and any(isinstance(node, ast.Name) and node.id in GUARDS for node in ast.walk(first.test))
        and isinstance(first.body[-1], ast.Raise)
        and first.body[-1].exc is None
    )


def converting(tree: ast.AST) -> Iterator[ast.Try]:
    """The try statements that convert exceptions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(converts(each) and not has_guard(each) for each in node.handlers):
            yield node


def converting_contexts(trees: list[ast.AST]) -> set[str]:
    """Context managers that convert exceptions of their body."""
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "contextmanager" in map(ast.unparse, node.decorator_list)
        for attempt in converting(node)
        if any(isinstance(inner, ast.Yield) for statement in attempt.body for inner in ast.walk(statement))
    }


def call_names(statements: list[ast.stmt]) -> set[str]:
    """The last part of the name of every call; functions that are only defined there are not included."""
    return {
        ast.unparse(node.func).rpartition(".")[2]
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    }


def running_functions(trees: list[ast.AST]) -> set[str]:
    """RUNNING and the functions that call it, if their names are unique."""
    functions: dict[str, list[ast.FunctionDef]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                functions.setdefault(node.name, []).append(node)
    calls = {name: call_names(found[0].body) for name, found in functions.items() if len(found) == 1}
    known = set(RUNNING)
    while more := {name for name, names in calls.items() if names & known} - known:
        known |= more
    return known


def wrapped_calls(trees: list[ast.AST]) -> set[str]:
    """Calls of a model, a loss, an optimizer or a plugin inside a conversion."""
    running, contexts = running_functions(trees), converting_contexts(trees)
    found: set[str] = set()
    for tree in trees:
        for attempt in converting(tree):
            found |= call_names(attempt.body) & running
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.With)
                and call_names([ast.Expr(item.context_expr) for item in node.items]) & contexts
            ):
                found |= call_names(node.body) & running
            if isinstance(node, ast.Try) and any(map(converts, node.handlers)):
                plugin = {name for name in call_names(node.body) if name in ("value", "head")}
                found |= plugin
    return found


def test_error_conversion_does_not_wrap_models_losses_or_plugins():
    assert wrapped_calls(list(FILES.values())) == set()


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    try:\n        one_step(net)\n    except ValueError:\n        raise HfVitSegError",
        "def g():\n    one_step(net)\ntry:\n    g()\nexcept Exception:\n    raise HfVitSegError",
        "@contextmanager\ndef c():\n    try:\n        yield\n    except OSError:\n        raise HfVitSegError\n"
        "with c():\n    optimizer.step()",
        "try:\n    runtime.value(path)\nexcept Exception:\n    raise HfVitSegError",
    ],
)
def test_error_conversion_around_a_model_is_detected(text):
    assert wrapped_calls([ast.parse(text)])


@pytest.mark.parametrize(
    ("error", "whole", "short"),
    [
        (OSError("a b.\n  More. Still more"), "a b. More. Still more", "a b."),
        (RuntimeError("In X:\n\tsize mismatch. Advice"), "In X: size mismatch. Advice", "In X: size mismatch"),
        (KeyError(), "KeyError", "KeyError"),
        (HfVitSegError("One. Two"), "One. Two", "One. Two"),
    ],
)  # fmt: skip
def test_exception_message_is_one_sentence(error, whole, short):
    assert error_sentence(error) == whole
    assert error_sentence(error, short=True) == short


def test_os_errors_are_converted_and_bugs_are_not(tmp_path):
    with pytest.raises(HfVitSegError, match="absent"), write_errors(tmp_path / "absent"):
        (tmp_path / "absent" / "file").write_text("")
    with pytest.raises(ZeroDivisionError), write_errors(tmp_path):
        raise ZeroDivisionError
