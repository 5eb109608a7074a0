"""Commit files to a repository on the Hub.

Everything is one commit, so that an interrupted push does not change the repository (`upload_large_folder` makes many
commits). The Hub recognizes uploaded files by their hash, so the same command resumes an interrupted upload.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.errors import HfVitSegError

Content = Mapping[str, Path | bytes]  # files by their path in the repository


class PushError(HfVitSegError):
    """A model or Space that cannot be pushed."""


@dataclass(frozen=True)
class Target:
    """The repository to push to, by default in the user's namespace.

    `private` is the visibility of a new repository, and an existing one must match. `branch` is created if it does not
    exist. `create_pr` opens a pull request instead of committing.
    """

    repo_id: str
    _: KW_ONLY
    private: bool | None = None
    branch: str | None = None
    create_pr: bool = False
    message: str | None = None

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise PushError(f"found '{self.repo_id}', expected a repository such as me/my-model: {error}") from None
        if self.branch is not None and self.create_pr:
            raise PushError("a pull request always targets main; use either a branch or a pull request")


def resolve_target(target: Target, repo_type: str | None = None) -> Target:
    """Return the target with its namespace. PushError if it exists with another visibility."""
    api = HfApi(library_name=PACKAGE)
    with hub_errors(target.repo_id):
        repo_id = target.repo_id if "/" in target.repo_id else f"{api.whoami()['name']}/{target.repo_id}"
        try:
            private = api.repo_info(repo_id, repo_type=repo_type).private
        except RepositoryNotFoundError:
            private = target.private
    if target.private not in (None, private):
        visibility, expected = ("private", "public") if private else ("public", "private")
        raise PushError(
            f"{repo_id} already exists and is {visibility}; make it {expected} in its settings, or omit --{expected}"
        )
    return replace(target, repo_id=repo_id)


def commit(target: Target, content: Content, is_replaced: Callable[[str], bool], **kind: Any) -> CommitInfo:
    """Create the repository if it does not exist (with `kind` for `create_repo`), and make one commit.

    The commit removes existing paths for which `is_replaced` is true and that are not in `content`.
    """
    api, repo_type = HfApi(library_name=PACKAGE), kind.get("repo_type")
    additions = [CommitOperationAdd(*item) for item in content.items()]
    where = {"revision": target.branch, "create_pr": target.create_pr, "repo_type": repo_type}
    with hub_errors(target.repo_id):
        api.create_repo(target.repo_id, private=target.private, exist_ok=True, **kind)
        if target.branch is not None:
            api.create_branch(target.repo_id, branch=target.branch, repo_type=repo_type, exist_ok=True)
        present = api.list_repo_files(target.repo_id, revision=target.branch, repo_type=repo_type)
        stale = [path for path in present if is_replaced(path) and path not in content]
        api.preupload_lfs_files(target.repo_id, additions, free_memory=False, **where)
    with hub_errors(target.repo_id, uploaded=True):
        operations = [*additions, *map(CommitOperationDelete, stale)]
        return api.create_commit(
            target.repo_id, operations, commit_message=target.message or f"Push by {PACKAGE}", **where
        )


@contextmanager
def hub_errors(repo_id: str, uploaded: bool = False) -> Iterator[None]:
    """Convert errors of the Hub and of the connection into a PushError, which states that nothing has changed.

    After the upload (`uploaded`), a commit may exist even if the Hub's response is lost.
    """
    try:
        yield
    except RepositoryNotFoundError as error:
        raise PushError(f"{repo_id} does not exist or is private; log in with hf auth login ({error})") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # failed uploads raise RuntimeError
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:400] or type(error).__name__
        if uploaded and may_have_succeeded(error):
            raise PushError(f"{repo_id} may have the new files: no response from the Hub ({reason})") from error
        raise PushError(f"{repo_id} is unchanged: {reason}. Run the same command again to resume") from error


def may_have_succeeded(error: Exception) -> bool:
    """Return whether the Hub received a request but its result is unknown."""
    response = getattr(error, "response", None)
    return isinstance(error, HTTPError) and (response is None or response.status_code >= 500)


__all__ = ["Content", "PushError", "Target", "commit", "resolve_target"]
