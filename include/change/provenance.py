"""Which code a release or a preview is of: commit, branch, whether the tree was dirty."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from include.settings import REPOSITORY_ROOT

# What an image, which has no .git, was built from.
_COMMIT, _BRANCH = "SOURCE_COMMIT", "SOURCE_BRANCH"
_SECONDS = 10.0


@dataclass(frozen=True)
class Code:
    """The state of a checkout.

    Attributes:
        commit: full hash; empty if unknown.
        branch: empty if unknown, or if no branch is checked out.
        is_dirty: whether files differ from the commit; None if unknown.
    """

    commit: str = ""
    branch: str = ""
    is_dirty: bool | None = None

    @property
    def title(self) -> str:
        """What it is, for people."""
        if not self.commit:
            return "this checkout"
        name = f"branch {self.branch}" if self.branch else f"commit {self.commit[:10]}"
        return f"{name}, with uncommitted changes" if self.is_dirty else name


def current_code(root: Path = REPOSITORY_ROOT) -> Code:
    """Return the state of a checkout; in an image that of its build, if it says so.

    Args:
        root: the checkout.
    """
    status = _git(root, "status", "--porcelain", "--branch", "--untracked-files=normal")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if status is None or not commit:
        return Code(
            os.environ.get(_COMMIT, ""), os.environ.get(_BRANCH, ""), False if os.environ.get(_COMMIT) else None
        )
    branch = _git(root, "symbolic-ref", "--quiet", "--short", "HEAD") or ""
    return Code(commit, branch, any(not line.startswith("##") for line in status.splitlines()))


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output; None if there is no git, no repository, or one of somebody else's."""
    # No lock: git must not get in the way of somebody who commits.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
