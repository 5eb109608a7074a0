"""Check the bodies of calls before gradio reads them: which function, and a list of values.

gradio answers an unknown function with an exception, and a body of another form with a validation report.
"""

import re
from typing import Any

import gradio as gr

from hf_vit_seg.text_files import parse_json

CALL = re.compile(r"/gradio_api/(?:queue/join|call/(?P<version>v2/)?(?P<name>[^/]+))/?")

Refusal = tuple[int, str]  # HTTP status and message


def is_call(path: str) -> bool:
    """Return whether requests to a path call a function of the page."""
    return CALL.fullmatch(path) is not None


def check_call(page: gr.Blocks, path: str, body: bytes) -> Refusal | None:
    """Return the status and message for an invalid call, or None."""
    match = CALL.fullmatch(path)
    try:
        call = parse_json(body.decode())
    except ValueError:  # HfVitSegError, or not UTF-8
        return 422, "the body of a call is not valid JSON"
    if match is None or not isinstance(call, dict):
        return 422, f"the body of a call is a JSON object, found {json_type(call)}"
    if not match["version"] and not isinstance(call.get("data"), list):
        return 422, f'"data" of a call is a list of values, found {json_type(call.get("data"))}'
    refusal = unknown_function(page, call, match["name"])
    return refusal or (wrong_arguments(page, call, match["name"]) if match["version"] else None)


def unknown_function(page: gr.Blocks, call: dict[str, Any], name: str | None) -> Refusal | None:
    """Return an error response unless the page has the function of a call, given by name or index.

    Events that only the browser handles, such as a button that cancels a call, have no function.
    """
    functions = {index: function for index, function in page.fns.items() if function.fn is not None}
    names = sorted(str(function.api_name) for function in functions.values() if isinstance(function.api_name, str))
    index = call.get("fn_index")
    if name is not None and index is None:
        return None if name in names else (404, f"unknown function name, expected one of {', '.join(names)}")
    if isinstance(index, bool) or not isinstance(index, int) or index not in functions:
        return 404, f"unknown function index, expected one of {', '.join(map(str, functions))}"
    return None


def wrong_arguments(page: gr.Blocks, call: dict[str, Any], name: str) -> Refusal | None:
    """Return an error response unless a call names the arguments of the function."""
    parameters = page.get_api_info()["named_endpoints"][f"/{name}"]["parameters"]
    names = {each["parameter_name"] for each in parameters}
    missing = {each["parameter_name"] for each in parameters if not each.get("parameter_has_default")} - call.keys()
    unknown = call.keys() - names
    if not missing and not unknown:
        return None
    problems = ", ".join([*(f"no {each}" for each in sorted(missing)), *(each[:30] for each in sorted(unknown)[:3])])
    return 422, f"expected the arguments {', '.join(sorted(names))}, found {problems}"


def json_type(value: Any) -> str:
    """Return the name of a value's JSON type with its article, for messages."""
    types = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return types.get(type(value), "a number")


__all__ = ["check_call", "is_call"]
