"""A repository on the Hub as the place of one commit.

One commit, so that a push that is cut leaves the revision before it as it was (`upload_large_folder` makes many). What
was uploaded until then is known to the Hub by its hash: the same command again goes on where it was cut.
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
    """Something that cannot be pushed, and why, in one sentence."""


@dataclass(frozen=True)
class Target:
    """Where to push: to one's own namespace, if `repo_id` has none. `private` is what a new repository becomes and one
    that is there must be, `branch` is made if it is not there, and `create_pr` opens a pull request in place of
    committing.
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
            raise PushError(f"'{self.repo_id}' is no name of a repository, such as me/my-model: {error}") from None
        if self.branch is not None and self.create_pr:
            raise PushError("a pull request is made against main: give a branch, or ask for a pull request")


def settled(target: Target, repo_type: str | None = None) -> Target:
    """The target with its namespace. PushError if it is there, and private or public against what is asked for."""
    api = HfApi(library_name=PACKAGE)
    with hub_errors(target.repo_id):
        repo_id = target.repo_id if "/" in target.repo_id else f"{api.whoami()['name']}/{target.repo_id}"
        try:
            private = api.repo_info(repo_id, repo_type=repo_type).private
        except RepositoryNotFoundError:
            private = target.private
    if target.private not in (None, private):
        found, wanted = ("private", "public") if private else ("public", "private")
        raise PushError(
            f"{repo_id} is there already, and {found}: make it {wanted} in its settings, or leave --{wanted} out"
        )
    return replace(target, repo_id=repo_id)


def commit(target: Target, content: Content, is_replaced: Callable[[str], bool], **kind: Any) -> CommitInfo:
    """Make the repository (its `kind` as `create_repo` takes it) where there is none, and one commit in it.

    Paths of the repository for which `is_replaced`, and that are not in `content`, are removed by the same commit.
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
    """Errors of the Hub and on the way to it as a PushError, which says that nothing was changed.

    With everything `uploaded` the commit may have been made where the Hub's answer is lost.
    """
    try:
        yield
    except RepositoryNotFoundError as error:
        raise PushError(f"{repo_id} is not there, or not yours to see: log in with hf auth login ({error})") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # a RuntimeError: what went wrong with an upload
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:400] or type(error).__name__
        if uploaded and is_lost_answer(error):
            raise PushError(f"{repo_id} may have the new files, the Hub did not say: look there ({reason})") from error
        raise PushError(
            f"{repo_id} is as it was before: {reason}. The same command again goes on where this one was cut"
        ) from error


def is_lost_answer(error: Exception) -> bool:
    """Whether the Hub was asked, and nobody knows what it did."""
    response = getattr(error, "response", None)
    return isinstance(error, HTTPError) and (response is None or response.status_code >= 500)


__all__ = ["Content", "PushError", "Target", "commit", "settled"]
