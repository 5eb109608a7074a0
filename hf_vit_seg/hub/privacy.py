"""The last check before a push: no local paths, no host name, and no access tokens.

The package writes none of them (`hf_vit_seg.local_paths`); they are found in files that users wrote or changed.
"""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import get_token

from hf_vit_seg.local_paths import PRIVATE_LEVELS

from .repository import Content, PushError

SECRET_NAMES = re.compile(r"(?:TOKEN|API_KEY|ACCESS_KEY|SECRET|SECRET_KEY|PASSWORD)$")  # names of environment variables
SHORTEST_SECRET = 12  # characters; a shorter one may be part of ordinary text
SHORTEST_HOST = 6  # characters
HUB_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
WEIGHTS = ".safetensors"


def check_private(content: Content, message: str | None, directory: Path | None = None) -> None:
    """Refuse files and a commit message that contain a token, the home directory, or the path of the model's directory.

    PushError names the file and the line. Only the header of safetensors files is read, which has the metadata.
    """
    patterns = private_patterns(directory)
    texts = [(path, readable_part(path, file)) for path, file in content.items()]
    names = "\n".join(content).encode()
    for path, text in [*texts, ("the names of the files", names), ("the commit message", (message or "").encode())]:
        for title, pattern in patterns.items():
            if match := pattern.search(text):
                raise PushError(sentence(path, text[: match.start()].count(b"\n") + 1, title))


def sentence(path: str, line: int, title: str) -> str:
    """Describe the finding and its location; a token itself is not repeated."""
    return f"{path}, line {line}, contains {title}, which would be published: remove it there, and push again"


def readable_part(path: str, file: Path | bytes) -> bytes:
    """Return the bytes of a file; for safetensors, only its header."""
    if isinstance(file, bytes):
        return file
    if not path.endswith(WEIGHTS):
        return file.read_bytes()
    with file.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))


def private_patterns(directory: Path | None) -> dict[str, re.Pattern[bytes]]:
    """Return patterns of text that must not be published, by their name in messages."""
    patterns = {f"the value of {name}": match_any(spellings(value)) for name, value in secrets().items()}
    patterns["an access token of the Hub"] = HUB_TOKEN
    for folder in private_folders(directory):
        within = rb"(?<![\w.~-])" + match_any(spellings(folder)).pattern + rb"(?![\w-]|\.\w)"
        patterns[f"a path of this machine ({folder})"] = re.compile(within)
    if host := host_name():
        within = rb"(?<![\w-])" + match_any(spellings(host)).pattern + rb"(?![\w-])"
        patterns[f"the name of this machine ({host})"] = re.compile(within)
    return patterns


def host_name() -> str | None:
    """Return the name of this machine, or None for a common word such as `gpu` or `localhost`.

    The user's name is not looked for outside paths: it is often that of the account on the Hub, or of an author.
    """
    name = socket.gethostname().partition(".")[0]
    return name if len(name) >= SHORTEST_HOST and re.search(r"[\d-]", name) else None


def secrets() -> Mapping[str, str]:
    """Tokens in use and secrets in the environment."""
    values = {name: value for name, value in os.environ.items() if SECRET_NAMES.search(name.upper())}
    values["your access token of the Hub"] = get_token() or ""
    return {name: value for name, value in values.items() if len(value) >= SHORTEST_SECRET}


def private_folders(directory: Path | None) -> Iterator[str]:
    """Yield the home directory, and the directories of the model and the process unless they are shared."""
    home = Path.home()
    yield from {str(path) for path in (home, home.resolve()) if len(path.parts) > 1}
    others = [Path.cwd(), *([] if directory is None else [directory, directory.resolve()])]
    yield from {str(path) for path in others if len(path.parts) > PRIVATE_LEVELS}


def spellings(text: str) -> set[str]:
    """Return a text as it may be written in plain text, JSON, YAML and URLs."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], quote(text)}


def match_any(texts: set[str]) -> re.Pattern[bytes]:
    """Return a pattern of any of these texts."""
    return re.compile(b"(?:" + b"|".join(re.escape(text.encode()) for text in sorted(texts)) + b")")


__all__ = ["check_private"]
