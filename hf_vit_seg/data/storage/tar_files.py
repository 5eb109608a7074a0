"""Uncompressed tar files: the places of their members, by which they are read in any order."""

import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.errors import HfVitSegError, error_sentence

from .addresses import ConnectionLost, is_address, open_binary


class Member(NamedTuple):
    """A regular file in a tar file: its name, its first byte in the tar file, and its size in bytes.

    `data` is its content if that was read with the list.
    """

    name: str
    offset: int
    size: int
    data: bytes = b""


def list_members(path: str, accepts: Callable[[str], bool] = lambda name: False) -> Iterator[Member]:
    """Yield the regular files of a tar file, local or at an address, by their headers.

    Of members whose name is `wanted`, the content is read too. Raises ImageFileError, or ConnectionLost.
    """
    with open_binary(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        stream = tar.extractfile(member) if accepts(member.name) else None
                        data = stream.read() if stream else b""
                        yield Member(member.name, member.offset_data, member.size, data)
        except tarfile.TarError as error:
            raise ImageFileError(f"{path} is not an uncompressed tar file: {error_sentence(error)}") from error
        except HfVitSegError:
            raise
        except Exception as error:  # network errors; each file system has its own classes
            if not is_address(path):
                raise
            raise ConnectionLost(f"{path} cannot be read: {error_sentence(error)}") from error


__all__ = ["Member", "list_members"]
