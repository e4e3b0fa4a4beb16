"""What made a release or a preview: commit, branch, whether the tree was dirty, versions, who started the run."""

import functools
import getpass
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from include.settings import REPOSITORY_ROOT

# What of the checkout makes the data. The files that are delivered there are data.
_CODE = ("include", "dags", "plugins", "dbt_build_graph.py", "airflow.env", "pools.json", "requirements.txt")
_DATA = ":(exclude)include/data"
_PACKAGES = ("dbt-core", "dlt", "duckdb", "apache-airflow", "astronomer-cosmos")
_SECONDS = 10.0
_DIRTY = "-dirty"  # as in git describe

_starter: ContextVar[str] = ContextVar("starter", default="")


@dataclass(frozen=True)
class Provenance:
    """What made a release. Releases of earlier versions of this project know nothing of it.

    Attributes:
        commit: full hash; empty if unknown.
        branch: empty if unknown, or if no branch was checked out.
        is_dirty: whether code differed from the commit; None if unknown.
        versions: of the main libraries, by package.
        started_by: who started the run; empty if unknown.
    """

    commit: str = ""
    branch: str = ""
    is_dirty: bool | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    started_by: str = ""

    @property
    def title(self) -> str:
        """The code, for people; empty if unknown."""
        if not self.commit:
            return ""
        name = f"branch {self.branch}" if self.branch else f"commit {self.commit[:10]}"
        return f"{name}, with uncommitted changes" if self.is_dirty else name

    @property
    def text(self) -> str:
        """The code with its commit, for people; empty if unknown."""
        if not self.commit:
            return ""
        branch = f" on {self.branch}" if self.branch else ""
        return f"{self.commit[:10]}{branch}{' with uncommitted changes' if self.is_dirty else ''}"

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> "Provenance":
        """Return what `to_json` made of it; nothing known from anything else."""
        try:
            raw = json.loads(text or "{}")
            return cls(**{name: raw[name] for name in cls.__dataclass_fields__ if name in raw})
        except (ValueError, TypeError):
            return cls()


def current(root: Path = REPOSITORY_ROOT) -> Provenance:
    """Return what makes a release now.

    An image has no `.git`: there, `SOURCE_COMMIT`, with `-dirty` at its end if so, and `SOURCE_BRANCH` say what it was
    built from.

    Args:
        root: the checkout.
    """
    versions, starter = package_versions(), _starter.get() or _user()
    status = _git(root, "status", "--porcelain", "--", *_CODE, _DATA)
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if status is None or not commit:
        described, branch = os.environ.get("SOURCE_COMMIT", ""), os.environ.get("SOURCE_BRANCH", "")
        is_dirty = described.endswith(_DIRTY) if described else None
        return Provenance(described.removesuffix(_DIRTY), branch, is_dirty, versions, starter)
    branch = _git(root, "symbolic-ref", "--quiet", "--short", "HEAD") or ""
    return Provenance(commit, branch, bool(status), versions, starter)


@contextmanager
def started_by(name: str) -> Iterator[None]:
    """Record somebody else than this process's user as who started a run."""
    token = _starter.set(name)
    try:
        yield
    finally:
        _starter.reset(token)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of the packages that make a release, by name."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output; None if there is no git, no repository, or one of somebody else's."""
    # Without optional locks, git does not get in the way of somebody who commits.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(root), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
