"""Limits of HTTP requests before gradio reads them: their size, space for uploads, and no routes that are not used."""

import asyncio
import json
import logging
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from . import upload_folder
from .uploads import MEGABYTES, MOST_FILES, failure_text

MOST_JSON_BYTES = 1_000_000  # of the body of a call
MOST_UPLOAD_BYTES = MOST_FILES * MEGABYTES * 2**20 + MOST_JSON_BYTES
SECONDS_WITHOUT_DATA = 30  # before an upload is given up

# Features of gradio that the page does not use: requests to other servers, functions of components, files of sessions.
UNUSED = re.compile(
    r"/(gradio_api/)?(proxy=|component_server|stream/|process_recording|vibe|undo-vibe|deep_link|custom_component/|runs"
    r"|run-history|monitoring|(file=|file/)\s*[a-z][a-z0-9+.-]+:)",
    re.IGNORECASE,
)
UPLOAD = re.compile(r"/gradio_api/upload/?")

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]


class BodyTooLargeError(Exception):
    """More bytes arrive than a request may have."""


class RequestLimits:
    """An ASGI middleware around gradio's app."""

    def __init__(self, app: Any):
        self.app = app
        self.reserved = 0  # bytes of uploads in progress

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if UNUSED.match(path):
            return await refuse(receive, send, 404, "not found")
        if UPLOAD.fullmatch(path) and scope["method"] == "POST":
            return await self.upload(scope, receive, send)
        length = content_length(scope)
        if length is not None and length > MOST_JSON_BYTES:
            return await refuse(
                receive, send, 413, f"a call has at most {MOST_JSON_BYTES / 1e6:g} MB: upload files first"
            )
        return await self.limited(scope, receive, send, MOST_JSON_BYTES)

    async def upload(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass an upload on while there is space for it."""
        expected = content_length(scope)
        if expected is None:
            return await refuse(receive, send, 411, "an upload states its size: send it with Content-Length")
        if expected > MOST_UPLOAD_BYTES:
            return await refuse(receive, send, 413, f"an upload has at most {MOST_FILES} files of {MEGABYTES} MB each")
        used = await asyncio.to_thread(upload_folder.bytes_used, Path(get_upload_folder()))
        if used + self.reserved + expected > upload_folder.MOST_BYTES:
            return await refuse(receive, send, 507, str(upload_folder.FolderFullError()))
        self.reserved += expected
        try:
            return await self.limited(scope, receive, send, expected)
        finally:
            self.reserved -= expected

    async def limited(self, scope: Message, receive: Any, send: Any, most: int) -> None:
        """Pass a request on, of whose body at most so many bytes are read, and none when they come too slowly."""
        count, started = 0, False
        body_ended = False

        async def counted() -> Message:
            nonlocal count, body_ended
            if body_ended:
                return await receive()  # waits for the visitor to disconnect
            message = await asyncio.wait_for(receive(), SECONDS_WITHOUT_DATA)
            count += len(message.get("body", b""))
            if count > most:
                raise BodyTooLargeError
            body_ended = not message.get("more_body", False)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except Exception as error:
            if started:
                raise
            await refuse(ended if body_ended else receive, send, *answer_to(error, body_ended, most))


async def ended() -> Message:
    """Nothing follows a body that was read."""
    return {"type": "http.request", "body": b"", "more_body": False}


def answer_to(error: Exception, body_ended: bool, most: int) -> tuple[int, str]:
    """The status and the sentence for a request that failed before it was answered."""
    if isinstance(error, TimeoutError) and not body_ended:
        return 408, "the data came too slowly: send them again"
    if isinstance(error, BodyTooLargeError):
        return 413, f"the request has more than {most} bytes"
    logger.error("a request to the demo failed", exc_info=error)
    return 500, failure_text(error)


def content_length(scope: Message) -> int | None:
    """The size that a request states, if any."""
    values = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else None


async def refuse(receive: Any, send: Any, status: int, sentence: str) -> None:
    """Answer with a sentence.

    The body is read and dropped first, within limits: clients that are still sending do not see an answer.
    """
    dropped, more = 0, True
    while more and dropped <= MOST_UPLOAD_BYTES:
        try:
            message = await asyncio.wait_for(receive(), SECONDS_WITHOUT_DATA)
        except TimeoutError:
            break
        dropped += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["RequestLimits"]
