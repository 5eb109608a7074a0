"""Find a checkpoint: a local path, a repository of the Hub, or an https address; downloads are cached and resumed."""

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
from hf_vit_seg.conversion.checkpoint_readers import (
    CONFIG,
    LICENSE,
    PROCESSOR,
    PROCESSORS,
    SUFFIXES,
    choose_weights,
    shard_names,
)
from hf_vit_seg.conversion.errors import ConversionError
from huggingface_hub import (
    _CACHED_NO_EXIST,
    cached_assets_path,
    constants,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import validate_repo_id

from hf_vit_seg.directory_lock import LockError, lock_file
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.provenance import CARD

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # hosts whose addresses need no https
FILE_SUFFIXES = (*SUFFIXES, ".ckpt", ".onnx", ".pte", ".xml")  # suffixes of checkpoints and exported models
CACHE = {"library_name": "hf_vit_seg", "namespace": "checkpoints"}


def repository_id(name: str | Path) -> str | None:
    """Return the name if it is a Hub id, that of a file's address on the Hub, and None for others and local paths."""
    if is_url(str(name)):
        reference = hub_file(str(name))
        return reference and reference[0]
    return None if Path(name).expanduser().exists() else str(name)


def locate(name: str | Path, **hub: Any) -> Path:
    """Return the local path of a checkpoint; those of the Hub and of an https address are downloaded.

    `hub` has the options of `from_pretrained`: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
    `force_download`. Of a repository, only one set of weights is downloaded, with config, image processor, card and
    license files.
    Raises ConversionError.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path / hub.get("subfolder", "") if path.is_dir() else path
    text = os.fspath(name)
    if is_url(text):
        return download_address(text, **hub)
    if not is_repository(text):
        raise ConversionError(
            f"'{text}' does not exist; pass the path of a checkpoint file or directory, a Hub id such as "
            "nvidia/segformer-b0-finetuned-ade-512-512, or an https address"
        )
    return download_repository(text, **hub)


def is_url(text: str) -> bool:
    """Return whether a text is an http(s) address."""
    return text.startswith(("https://", "http://"))


def is_repository(text: str) -> bool:
    """Return whether a text can be the id of a repository on the Hub, and not the name of a checkpoint file."""
    if text.lower().endswith(FILE_SUFFIXES):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return not text.startswith((".", "/", "~"))


def names_repository(name: str | Path) -> bool:
    """Return whether a name is that of a repository, and not of a path that exists."""
    return is_repository(str(name)) and not Path(name).expanduser().exists()


def download_repository(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    file: str | None = None,
) -> Path:
    """Download a checkpoint from the Hub to its cache; return the local folder, or the path of `file` in it."""
    options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    try:
        files = (
            None if local_files_only or constants.HF_HUB_OFFLINE else list_files(repo_id, revision, token, cache_dir)
        )
        folder = f"{subfolder.strip('/')}/" if subfolder else ""
        if files is not None:
            names = [name.removeprefix(folder) for name in files if name.startswith(folder)]
            weights = file or choose_weights(names, f"{f'folder {folder} of ' if folder else ''}repository '{repo_id}'")
            if weights not in names:
                raise ConversionError(f"repository '{repo_id}' has no file '{folder}{weights}'; check the address")
            if weights.endswith(".index.json"):
                index = hf_hub_download(repo_id, folder + weights, force_download=force_download, **options)
                shards = shard_names(Path(index))
            else:
                shards = []
            licenses = [name for name in names if name.startswith(LICENSE) and "/" not in name]
            file_names = [folder + name for name in (CONFIG, PROCESSOR, PROCESSORS, CARD, weights, *shards, *licenses)]
            local = snapshot_download(repo_id, allow_patterns=file_names, force_download=force_download, **options)
        else:
            local = cached_folder(repo_id, subfolder, revision, cache_dir)
            is_complete = local is not None and any(
                name == file if file else name.endswith(SUFFIXES) for name in os.listdir(local)
            )
            if local is None or not is_complete:
                raise ConversionError(download_error(repo_id, OfflineModeIsEnabled()))
            return local / (file or "")
    except ConversionError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        raise ConversionError(download_error(repo_id, error)) from error
    return Path(local, subfolder, file or "")


def download_file(
    repo_id: str, name: str, *, subfolder: str = "", trust_cache: bool = True, **options: Any
) -> Path | None:
    """Download one file of a repository; None if the repository has no such file. Raises ConversionError.

    If the Hub does not answer, a repository in the cache is taken as complete with `trust_cache`; otherwise only if the
    Hub said before that it has no such file, or offline.
    """
    try:
        return Path(hf_hub_download(repo_id, name, subfolder=subfolder.strip("/") or None, **options))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        version = {"revision": options.get("revision"), "cache_dir": options.get("cache_dir")}
        if try_to_load_from_cache(repo_id, f"{subfolder.strip('/')}/{name}".strip("/"), **version) is _CACHED_NO_EXIST:
            return None
        trust_cache |= constants.HF_HUB_OFFLINE or bool(options.get("local_files_only"))
        if trust_cache and cached_folder(repo_id, subfolder, options.get("revision"), options.get("cache_dir")):
            return None  # a cached repository
        raise ConversionError(download_error(repo_id, error)) from error
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, GatedRepoError):  # as transformers does
            folder = cached_folder(repo_id, subfolder, options.get("revision"), options.get("cache_dir"))
            if folder is not None:
                return folder / name if (folder / name).is_file() else None
        raise ConversionError(download_error(repo_id, error)) from error


def find_file(name: str | Path, file: str, **hub: Any) -> Path | None:
    """Return the path of a file of a directory or of a repository; None if there is none. Raises ConversionError.

    transformers' `cached_file` also returns None for a file that cannot be downloaded.
    """
    if names_repository(name):
        return download_file(str(name), file, **hub)
    path = Path(name).expanduser() / hub.get("subfolder", "") / file
    return path if path.is_file() else None


def cached_folder(repo_id: str, subfolder: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """Return the folder of a repository in the local cache, which may lack files; None if it is not there."""
    revision_name = revision or constants.DEFAULT_REVISION
    try:
        cached = scan_cache_dir(cache_dir or constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):
        return None
    for repo in cached.repos:
        for version in repo.revisions if (repo.repo_id, repo.repo_type) == (repo_id, "model") else ():
            folder = version.snapshot_path / subfolder
            if (revision_name == version.commit_hash or revision_name in version.refs) and folder.is_dir():
                return folder
    return None


def list_files(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> list[str] | None:
    """Return the paths of all files of a repository; None if the Hub cannot be reached, or refuses a cached one."""
    try:
        return huggingface_hub.list_repo_files(repo_id, revision=revision, token=token)
    except HfHubHTTPError as error:  # gated, too many requests, failures of the server
        is_absent = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
        if is_absent or isinstance(error, RevisionNotFoundError):
            raise
        if cached_folder(repo_id, "", revision, cache_dir) is None:
            raise
        return None  # as transformers does
    except (OSError, HTTPError):  # no connection
        return None


def download_error(name: str, error: Exception) -> str:
    """Format the error message of a download from the Hub."""
    if isinstance(error, GatedRepoError):
        return f"'{name}' is gated: accept its conditions on its page, and log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"'{name}' has no such revision; pass a branch, a tag or a commit of the repository"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"'{name}' is neither a local path nor a repository on the Hub that you can read; check the name, or log "
            "in with `hf auth login` if it is private"
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"'{name}' is not in the local cache, and the Hub cannot be reached; go online and load it once"
    if isinstance(error, EntryNotFoundError):
        return f"'{name}' lacks a file of its checkpoint: {error_sentence(error, short=True)}"
    return f"'{name}' cannot be downloaded: {error_sentence(error, short=True)}"


def download_address(address: str, **hub: Any) -> Path:
    """Download a file from an https address to the cache; a file of the Hub, to the Hub's."""
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise ConversionError(f"'{address}' is not encrypted, expected an https address")
    if reference := hub_file(address):
        repo_id, revision, path = reference
        folder, _, file = path.rpartition("/")
        options = {name: value for name, value in hub.items() if name not in ("subfolder", "revision")}
        return download_repository(repo_id, revision=revision, subfolder=folder, file=file, **options)
    if page := hub_page(address):
        raise ConversionError(f"'{address}' is a page of the Hub; pass '{page}', or the address of a file")
    name = Path(unquote(parts.path)).name
    if not name:
        raise ConversionError(f"'{address}' names no file, expected the address of a checkpoint file")
    folder = cached_assets_path(subfolder=hashlib.sha256(address.encode()).hexdigest()[:16], **CACHE)
    target = folder / name
    if target.exists() and not hub.get("force_download"):
        return target
    if hub.get("local_files_only") or constants.HF_HUB_OFFLINE:
        raise ConversionError(f"'{address}' is not in the local cache; go online and load it once")
    download_to(address, target)
    return target


def hub_path(address: str) -> list[str]:
    """Return the parts of an address's path on the Hub; empty for others."""
    base = constants.ENDPOINT.rstrip("/") + "/"
    if not address.startswith(base):
        return []
    return unquote(urlsplit(address.removeprefix(base)).path).strip("/").split("/")


def hub_file(address: str) -> tuple[str, str, str] | None:
    """Return (repository, revision, file) of the address of a file on the Hub, or None."""
    parts = hub_path(address)
    index = next((index for index, part in enumerate(parts) if part in ("resolve", "blob", "raw")), 0)
    if index not in (1, 2) or len(parts) < index + 3:
        return None
    return "/".join(parts[:index]), parts[index + 1], "/".join(parts[index + 2 :])


def hub_page(address: str) -> str | None:
    """Return the repository of the address of its page, or of a folder's, on the Hub, or None."""
    parts = hub_path(address)
    return "/".join(parts[:2]) if len(parts) == 2 or parts[2:3] == ["tree"] else None


def download_to(address: str, target: Path) -> None:
    """Download to a file, with a progress bar, continuing an interrupted download."""
    partial = target.with_name(target.name + ".incomplete")
    try:
        with lock_file(target), partial.open("ab") as stream:
            http_get(address, stream, resume_size=stream.tell(), displayed_filename=target.name)
            stream.flush()
            os.replace(partial, target)
    except LockError as error:
        raise ConversionError(str(error)) from error
    except Exception as error:  # any error of the HTTP client, which may change
        reason = error_sentence(error, short=True)
        raise ConversionError(f"'{address}' cannot be downloaded: {reason}; try again to continue") from error
