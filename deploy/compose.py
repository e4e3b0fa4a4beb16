"""The running compose deployment, for commands on the host; stop it, or upgrade it to what is checked out.

python3 -m deploy.compose stop|upgrade ENV_FILE    needs Docker with compose; no packages
"""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

# Whatever writes to the metadata, the warehouse or the dashboards.
WRITERS = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "bi")
RESEND_SECONDS = 30.0
# In a scheduler's log: it has heard the signal; and it goes on all the same, as one without plugins/patches can.
STOPPING, GOES_ON = "Exiting gracefully upon receiving signal", "Adopting or resetting orphaned tasks"
UP = ("up", "--detach", "--wait", "--wait-timeout", "900")


class ComposeError(Exception):
    """A step failed; the message says which, and what state that leaves."""


class Compose:
    """The deployment, through `docker compose`; its error messages go to standard error."""

    def __init__(self, env_file: str) -> None:
        self.command = ("docker", "compose", "--progress=quiet", "--env-file", env_file)

    def __call__(self, *words: str, stdin: Path | None = None) -> str:
        """Run `docker compose WORDS` and return its output; raise `ComposeError` if it fails."""
        with (stdin or Path(os.devnull)).open("rb") as source:
            ended = subprocess.run((*self.command, *words), stdin=source, stdout=subprocess.PIPE, text=True)
        _check(ended.returncode, words)
        return ended.stdout.strip()

    def save(self, path: Path, *words: str) -> None:
        """Write the output of `docker compose WORDS` to a file and flush it to disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            command = (*self.command, *words)
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
                assert process.stdout
                shutil.copyfileobj(process.stdout, out)
            _check(process.returncode, words)
            out.flush()
            os.fsync(out.fileno())

    def services(self) -> set[str]:
        """Return the services of the deployment, with those of its profiles."""
        return set(self("config", "--services").split())


def _check(returncode: int, words: tuple[str, ...]) -> None:
    if returncode:
        raise ComposeError(f"docker compose {' '.join(word for word in words if len(word) < 100)} failed")


def stop(compose: Compose) -> None:
    """Stop what writes. A scheduler can lose the signal, and would run on until it is killed: it is sent again.

    Raises:
        ComposeError: a service cannot be stopped.
    """
    words, since = ("stop", *_writers(compose)), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = subprocess.Popen((*compose.command, *words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while True:
        try:
            return _check(ended.wait(RESEND_SECONDS), words)
        except subprocess.TimeoutExpired:
            if "scheduler" not in compose("ps", "--services", "--status=running").split():
                continue
            # A second signal to one that waits for its tasks would end them.
            _, heard, then = compose("logs", "--no-log-prefix", f"--since={since}", "scheduler").rpartition(STOPPING)
            if not heard or GOES_ON in then:
                print("The scheduler goes on. Telling it again to stop ...", flush=True)
                compose("kill", "--signal=SIGTERM", "scheduler")


def _writers(compose: Compose) -> list[str]:
    return [name for name in WRITERS if name in compose.services()]


def upgrade(compose: Compose) -> None:
    """Build the images; then stop what runs and start the new version.

    Raises:
        ComposeError: a step failed. If it is the build, the old version still runs.
    """
    compose("build")
    stop(compose)
    compose(*UP)


def main() -> int:
    """Run one command; return the exit code."""
    command, env_file = sys.argv[1:]
    compose = Compose(env_file)
    try:
        if command == "upgrade":
            upgrade(compose)
        else:
            stop(compose)
            compose("stop")  # the databases
    except ComposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
