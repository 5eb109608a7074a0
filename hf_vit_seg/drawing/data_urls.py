"""Images as data URLs, which a browser shows without another file."""

import base64
from io import BytesIO
from typing import Any

from PIL import Image


def data_url(content: bytes, kind: str) -> str:
    """Return the data URL of an image file's content; `kind` is its format, such as PNG."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode('ascii')}"


def image_url(image: Image.Image, kind: str, **options: Any) -> str:
    """Return the data URL of an image in a format, saved with PIL's `options`."""
    stream = BytesIO()
    image.save(stream, kind, **options)
    return data_url(stream.getvalue(), kind)


__all__ = ["data_url", "image_url"]
