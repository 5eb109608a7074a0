"""A repository on the Hub as the place of one commit.

One commit, so that a push that is cut leaves the revision before it as it was (`upload_large_folder` makes many). What
was uploaded until then is known to the Hub by its hash: the same command again goes on where it was cut.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

Content = Mapping[str, Path | bytes]  # files by their path in the repository


class PushError(ValueError):
    """Something that cannot be pushed, and why, in one sentence."""


@dataclass(frozen=True)
class Target:
    """Where to push: `private` holds for a repository that is made new, `branch` is made if it is not there, and
    `create_pr` opens a pull request in place of committing.
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


def commit(target: Target, content: Content, is_replaced: Callable[[str], bool], **kind: Any) -> CommitInfo:
    """Make the repository (its `kind` as `create_repo` takes it) where there is none, and one commit in it.

    Paths of the repository for which `is_replaced`, and that are not in `content`, are removed by the same commit.
    """
    api, repo_type = HfApi(library_name="hf_vit_seg"), kind.get("repo_type")
    with hub_errors(target.repo_id):
        api.create_repo(target.repo_id, private=target.private, exist_ok=True, **kind)
        if target.branch is not None:
            api.create_branch(target.repo_id, branch=target.branch, repo_type=repo_type, exist_ok=True)
        present = api.list_repo_files(target.repo_id, revision=target.branch, repo_type=repo_type)
        stale = [path for path in present if is_replaced(path) and path not in content]
        return api.create_commit(
            target.repo_id,
            [*(CommitOperationAdd(*item) for item in content.items()), *map(CommitOperationDelete, stale)],
            commit_message=target.message or "Push by hf_vit_seg",
            revision=target.branch,
            create_pr=target.create_pr,
            repo_type=repo_type,
        )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Errors of the Hub and on the way to it as a PushError, which says that nothing was changed."""
    try:
        yield
    except RepositoryNotFoundError as error:
        raise PushError(f"{repo_id} is not there, or not yours to see: log in with hf auth login ({error})") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise PushError(
            f"{repo_id} is as it was before: {reason}. The same command again goes on where this one was cut"
        ) from error


__all__ = ["Content", "PushError", "Target", "commit"]
