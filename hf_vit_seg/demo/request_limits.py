"""Limits of HTTP requests before gradio reads them: their size, space for uploads, and no routes that are not used."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.utils import get_upload_folder
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from . import upload_folder
from .call_checks import check_call, is_call
from .upload_folder import FolderFullError
from .uploads import MAX_FILES, MEGABYTES, failure_text

MAX_JSON_BYTES = 1_000_000  # size of a call's body
MAX_UPLOAD_BYTES = MAX_FILES * MEGABYTES * 2**20 + MAX_JSON_BYTES
SECONDS_WITHOUT_DATA = 30  # before a request is given up
SECONDS_RECEIVING = 900  # time limit for the whole body of a request

# Features of gradio that the page does not use: requests to other servers, functions of components, files of sessions.
UNUSED = re.compile(
    r"/(gradio_api/)?(proxy=|component_server|stream/|process_recording|vibe|undo-vibe|deep_link|custom_component/|runs"
    r"|run-history|monitoring|(file=|file/)\s*[a-z][a-z0-9+.-]+:)",
    re.IGNORECASE,
)
# Exceptions of gradio's form parser for parts without a file name, a field name, or a boundary.
FORM_ERRORS = (AssertionError, AttributeError, KeyError, TypeError)
NO_FORM = "an upload is a multipart form whose parts are called files and have a filename each"
UPLOAD = re.compile(r"/gradio_api/upload/?")

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]


class BodyTooLargeError(Exception):
    """More bytes arrive than a request may have."""


class TooSlowError(Exception):
    """The body of a request does not arrive in time."""


class RequestLimits:
    """An ASGI middleware around gradio's app."""

    def __init__(self, app: Any, page: gr.Blocks):
        self.app, self.page = app, page
        self.arrived = 0  # bytes of uploads in progress; announced sizes cost a client nothing, so they do not count

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
        if length is not None and length > MAX_JSON_BYTES:
            return await refuse(
                receive, send, 413, f"a call has at most {MAX_JSON_BYTES / 1e6:g} MB: upload files first"
            )
        if is_call(path) and scope["method"] == "POST":
            return await self.call(path, scope, receive, send)
        return await self.forward_limited(scope, receive, send, MAX_JSON_BYTES)

    async def call(self, path: str, scope: Message, receive: Any, send: Any) -> None:
        """Pass a call on if its body has the right form and its function exists."""
        body = LimitedBody(receive, MAX_JSON_BYTES)
        try:
            content = await body.read()
        except (BodyTooLargeError, TooSlowError) as error:
            return await refuse(body.rest(error), send, *answer_to(error, MAX_JSON_BYTES))
        if refusal := check_call(self.page, path, content):
            return await refuse(receive_empty, send, *refusal)
        first: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive_again() -> Message:
            return first.pop() if first else await receive()

        await self.forward_limited(scope, receive_again, send, MAX_JSON_BYTES)

    async def upload(self, scope: Message, receive: Any, send: Any) -> None:
        """Forward an upload if the folder has space for it."""
        expected = content_length(scope)
        if expected is None:
            return await refuse(receive, send, 411, "an upload requires the header Content-Length")
        if expected > MAX_UPLOAD_BYTES:
            return await refuse(receive, send, 413, f"an upload has at most {MAX_FILES} files of {MEGABYTES} MB each")
        used = await asyncio.to_thread(upload_folder.bytes_used, Path(get_upload_folder()))
        space = upload_folder.MAX_BYTES - used
        if self.arrived + expected > space:
            return await refuse(receive, send, *answer_to(FolderFullError(), expected))

        def count_bytes(size: int) -> None:
            self.arrived += size
            if self.arrived > space:
                raise FolderFullError

        body = LimitedBody(receive, expected, count_bytes)
        try:
            return await self.forward(scope, body, send, FORM_ERRORS)
        finally:
            self.arrived -= body.size

    async def forward_limited(self, scope: Message, receive: Any, send: Any, max_bytes: int) -> None:
        """Pass a request on if its body has at most `max_bytes` bytes, and arrives in time."""
        await self.forward(scope, LimitedBody(receive, max_bytes), send)

    async def forward(
        self, scope: Message, body: "LimitedBody", send: Any, malformed: tuple[type[Exception], ...] = ()
    ) -> None:
        """Pass a request on, and answer errors with a sentence unless the app has begun to answer.

        Errors of the types `malformed` are faults of the request.
        """
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, body.receive, send_and_note)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:
                raise
            answer = (400, NO_FORM) if isinstance(error, malformed) else answer_to(error, body.max_bytes)
            await refuse(body.rest(error), send, *answer)


class LimitedBody:
    """The body of a request, received in parts, at most `max_bytes` bytes in a limited time.

    `arrive` is called with the size of each part.
    """

    def __init__(self, receive: Any, max_bytes: int, arrive: Callable[[int], None] = lambda more: None):
        self.unlimited, self.max_bytes, self.arrive = receive, max_bytes, arrive
        self.size, self.has_ended = 0, False
        self.end = time.monotonic() + SECONDS_RECEIVING

    async def receive(self) -> Message:
        """Return the next part. Raises BodyTooLargeError or TooSlowError beyond the limits."""
        if self.has_ended:
            return await self.unlimited()  # waits for the visitor to disconnect
        message = await receive_in_time(self.unlimited, self.end)
        count = len(message.get("body", b""))
        self.size += count
        self.arrive(count)
        if self.size > self.max_bytes:
            raise BodyTooLargeError
        self.has_ended = not message.get("more_body", False)
        return message

    async def read(self) -> bytes:
        """Return the whole body."""
        parts = []
        while not self.has_ended:
            parts.append((await self.receive()).get("body", b""))
        return b"".join(parts)

    def rest(self, error: Exception) -> Any:
        """Return the function that receives the rest of the body after an error."""
        return receive_empty if self.has_ended or isinstance(error, TooSlowError) else self.unlimited


async def receive_in_time(receive: Any, end: float) -> Message:
    """Return the next part of a body. Raises TooSlowError if it, or the whole body, takes too long."""
    seconds = min(SECONDS_WITHOUT_DATA, end - time.monotonic())
    try:
        return await asyncio.wait_for(receive(), max(seconds, 0))
    except TimeoutError:
        raise TooSlowError from None


async def receive_empty() -> Message:
    """Return an empty last part, for a body that was read."""
    return {"type": "http.request", "body": b"", "more_body": False}


def answer_to(error: Exception, max_bytes: int) -> tuple[int, str]:
    """Return the status and the message for a request that failed before it was answered."""
    if isinstance(error, TooSlowError):
        return 408, "the request timed out: send it again"
    if isinstance(error, FolderFullError):
        return 507, str(error)
    if isinstance(error, BodyTooLargeError):
        return 413, f"the request has more than {max_bytes} bytes"
    logger.error("a request to the demo failed", exc_info=error)
    return 500, failure_text(error)


def content_length(scope: Message) -> int | None:
    """Return the size that a request states, if any."""
    values = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else None


async def refuse(receive: Any, send: Any, status: int, sentence: str) -> None:
    """Answer with a sentence.

    The body is read and dropped first, within limits: clients that are still sending do not see an answer.
    """
    dropped, more = 0, True
    end = time.monotonic() + SECONDS_WITHOUT_DATA
    while more and dropped <= MAX_UPLOAD_BYTES:
        try:
            message = await receive_in_time(receive, end)
        except TooSlowError:
            break
        dropped += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a request whose fields have other types than gradio expects with a sentence."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return JSONResponse({"detail": f"the request is not valid at {field}: {first['msg']}"}, 422)


__all__ = ["RequestLimits", "answer_invalid_request"]
