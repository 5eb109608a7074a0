"""Read small text and JSON files that may come from a stranger: limited in size and depth, one sentence for errors."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from .errors import HfVitSegError
from .records import shorten

MAX_BYTES = 64 * 2**20  # the index of a checkpoint with 100,000 tensors has 10 MB
MAX_DEPTH = 50  # nested lists and objects
ANNOTATION_BYTES = 8 * 2**30  # of files in COCO format: COCO's own has 450 MB, that of Objects365 7 GB
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read a UTF-8 file; HfVitSegError if it is not a regular file, is too large, or not UTF-8.

    No more than the size of the file is read: files below /proc have no size, and some never end.
    """
    try:
        with open(path, "rb", opener=open_without_waiting) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise HfVitSegError(f"'{path}' is not a regular file; replace it by a text file")
            if facts.st_size > max_bytes:
                raise HfVitSegError(f"'{path}' has {facts.st_size:,} bytes, expected at most {max_bytes:,}")
            content = stream.read(facts.st_size)
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise HfVitSegError(f"'{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise HfVitSegError(f"'{path}' cannot be read ({error.strerror or error})") from None


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer does not block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_json(text: str, unique_keys: bool = False) -> Any:
    """Parse JSON; HfVitSegError for invalid JSON, deep nesting, long numbers or half of a surrogate pair.

    With `unique_keys`, also for an object with a duplicate key, of which JSON keeps the last.
    """
    try:
        content = json.loads(text, object_pairs_hook=build_unique if unique_keys else None)
    except HfVitSegError:
        raise
    except json.JSONDecodeError as error:
        raise HfVitSegError(str(error)) from None
    except ValueError:  # of int()
        raise HfVitSegError("a number has more than 4,300 digits") from None
    except RecursionError:
        raise HfVitSegError(f"lists and objects are nested more than {MAX_DEPTH} levels deep") from None
    check_depth(content)
    if SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            found = error.object[error.start : error.end]
            raise HfVitSegError(f"a string contains {found!r}, half of a surrogate pair") from None
    return content


def build_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; HfVitSegError for a duplicate key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise HfVitSegError(f"found the key {shorten(key)} twice, expected it once")
        found[key] = value
    return found


def check_depth(content: Any) -> None:
    """Raise HfVitSegError if lists and objects are nested deeper than MAX_DEPTH."""
    level, depth = [content] if isinstance(content, dict | list) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise HfVitSegError(f"lists and objects are nested more than {MAX_DEPTH} levels deep")
        children = (each for value in level for each in (value.values() if isinstance(value, dict) else value))
        level = [each for each in children if isinstance(each, dict | list)]


def read_json(path: Path, max_bytes: int = MAX_BYTES, unique_keys: bool = False) -> Any:
    """Read a JSON file; HfVitSegError with its name if it cannot be read."""
    text = read_text(path, max_bytes)
    try:
        return parse_json(text, unique_keys)
    except HfVitSegError as error:
        raise HfVitSegError(f"'{path}' is not valid JSON ({error}); fix or remove it") from None


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file that contains an object."""
    content = read_json(path, max_bytes)
    if not isinstance(content, dict):
        raise HfVitSegError(f"'{path}' contains {shorten(content)}, expected a JSON object")
    return content


__all__ = ["ANNOTATION_BYTES", "MAX_BYTES", "parse_json", "read_json", "read_json_object", "read_text"]
