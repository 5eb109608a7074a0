"""Uncompressed tar files: the places of their members, by which they are read in any order."""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.errors import error_sentence

from .addresses import open_binary


class Member(NamedTuple):
    """A regular file in a tar file: its name, its first byte in the tar file, and its size in bytes."""

    name: str
    offset: int
    size: int


def list_members(path: str) -> Iterator[Member]:
    """The regular files of a tar file, local or at an address, by their headers. Raises ImageFileError."""
    with open_binary(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        yield Member(member.name, member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ImageFileError(f"{path} is not an uncompressed tar file: {error_sentence(error)}") from error


__all__ = ["Member", "list_members"]
