"""Run Airflow on this machine: SQLite metadata, LocalExecutor, everything on loopback.

python scripts/airflow_local.py init    create the metadata database, the pool and the login
python scripts/airflow_local.py up      run Airflow until Ctrl-C
python scripts/airflow_local.py run     run the DAG once, in a running Airflow or one started for it
"""

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from include.runs import manifest
from include.settings import REPOSITORY_ROOT, warehouse_name
from include.warehouse import guard
from include.warehouse.errors import WarehouseError
from scripts.airflow_api import Api

HOME = Path(os.environ["AIRFLOW_HOME"])
PASSWORDS = HOME / "simple_auth_manager_passwords.json.generated"
RUNNING = HOME / "running.json"
DAG_ID = warehouse_name()
START_TIMEOUT_SECONDS = 300
PATIENCE_SECONDS = 180.0  # with an api-server that does not answer while a run goes on: it may be restarting
STOP_SECONDS = 30  # that a scheduler gets to finish its tasks


class LocalError(Exception):
    """An error to show to the user; the message says what to do."""


def init() -> None:
    """Create the metadata database, the pool and the login; idempotent."""
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not PASSWORDS.exists():
        PASSWORDS.touch(mode=0o600)
        PASSWORDS.write_text(json.dumps({"admin": secrets.token_urlsafe(16)}))
    _airflow_command("db", "migrate")
    _airflow_command("pools", "import", str(REPOSITORY_ROOT / "pools.json"))


def _airflow_command(*command: str) -> None:
    log = HOME / "init.log"
    with log.open("ab") as out:
        if subprocess.run(["airflow", *command], stdout=out, stderr=out).returncode:
            raise LocalError(f"airflow {' '.join(command)} failed; its output is in {log}")


def _password() -> str:
    return str(json.loads(PASSWORDS.read_text())["admin"])


def _log_in(api: Api) -> None:
    api.log_in("admin", _password())


def up() -> None:
    """Run Airflow until it is interrupted."""
    port = int(os.environ.get("AIRFLOW__API__PORT", "8080"))
    _airflow_command("pools", "import", str(REPOSITORY_ROOT / "pools.json"))  # somebody may have changed them in the UI
    with _airflow(port, "up") as (api, supervisor):
        _build_task_api(api)
        print(
            f"\n  Airflow:   {api.url}\n  login:     admin / {_password()}\n"
            f"  logs:      {HOME / 'logs'}\n  Ctrl-C stops it.\n",
            flush=True,
        )
        supervisor.wait()
        raise LocalError(f"Airflow stopped unexpectedly; see {HOME / 'logs' / 'supervisord.log'}")


def run(conf: dict[str, object]) -> bool:
    """Run the DAG once, in the Airflow started by `up` if any; return whether the run succeeded.

    Args:
        conf: the run's params, as in the trigger form.
    """
    if address := _address_of_up():
        print(f"Airflow is running at {address}: triggering the run there.")
        api = Api(address)
        _log_in(api)
        return _run_once(api, conf, is_ours=False)
    # Only the requested run, no scheduled ones.
    os.environ["AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE"] = "False"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _airflow(port, "run") as (api, _):
        return _run_once(api, conf, is_ours=True)


def _address_of_up() -> str | None:
    with _lock_file() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = _running()
            return str(running["url"]) if running.get("mode") == "up" else None
        return None


def _running() -> dict[str, Any]:
    """Return the lock holder's own record; empty while it is starting."""
    try:
        return dict(json.loads(RUNNING.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


@contextmanager
def _lock_file() -> Iterator[int]:
    lock = os.open(HOME / "running.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


@contextmanager
def _airflow(port: int, mode: str) -> Iterator[tuple[Api, "subprocess.Popen[bytes]"]]:
    """Start all processes, yield once they are healthy, and stop them at the end."""
    with _lock_file() as lock, ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _running()
            if mode == "up":
                raise LocalError(
                    f"Airflow is already running: {other.get('url')} (make {other.get('mode')}, "
                    f"PID {other.get('pid')}). Use that, or stop it with Ctrl-C there."
                ) from None
            holder = other.get("pid", "just starting")
            print(f"Another run is in progress (PID {holder}); waiting for it to finish.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise LocalError(f"Port {port} is taken. Choose another: AIRFLOW__API__PORT=8081 make up") from None
        api = Api(f"http://127.0.0.1:{port}")
        stack.enter_context(guard.serving(api.url))
        os.environ["AIRFLOW__API__PORT"] = str(port)
        os.environ["AIRFLOW__API__BASE_URL"] = api.url
        os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"{api.url}/execution/"
        os.environ.setdefault("TRIGGERER", "true" if mode == "up" else "false")
        os.environ.setdefault("DAG_PROCESSOR_NICENESS", "0" if mode == "up" else "10")
        (HOME / "logs").mkdir(exist_ok=True)
        # The supervisor inherits the lock and holds it as long as it lives.
        supervisor = subprocess.Popen(
            ["supervisord", "-c", str(Path(__file__).with_name("supervisord.conf"))],
            pass_fds=[lock],
            start_new_session=True,
        )
        RUNNING.write_text(json.dumps({"url": api.url, "mode": mode, "pid": supervisor.pid}))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(143))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
        try:
            # A run needs the dag-processor only if the DAG has changed.
            _wait_until_healthy(api, supervisor, ("scheduler", "dag_processor") if mode == "up" else ("scheduler",))
            yield api, supervisor
        finally:
            print("Stopping Airflow.", flush=True)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave processes behind
            _stop(supervisor)
            RUNNING.write_text("")


def _build_task_api(api: Api) -> None:
    """Have the api-server build the API of the tasks now: three seconds in which it answers nobody.

    Airflow leaves it to the first request, so to the first task.
    """
    with suppress(OSError):
        api.call("GET", "/execution/health")


def _stop(supervisor: "subprocess.Popen[bytes]") -> None:
    """Stop all processes: the scheduler in order, with the tasks that run, and then what is left.

    supervisord would stop one after another, and look once a second. Only the scheduler has anything to finish.
    """
    # Not killed yet: a scheduler whose log has no reader fails before it has told its workers to end, and waits for
    # them. Stopped, so that it starts none again.
    supervisor.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + STOP_SECONDS
    schedulers = [pid for pid in _session(supervisor.pid) if b"scheduler" in _command(pid).split(b"\0")]
    for pid in schedulers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while any(_command(pid) for pid in schedulers) and time.monotonic() < deadline:
        time.sleep(0.05)
    if any(_command(pid) for pid in schedulers):
        print(f"warning: the scheduler did not end within {STOP_SECONDS} s, and is killed", file=sys.stderr)
    while left := _session(supervisor.pid):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        supervisor.poll()
        time.sleep(0.05)


def _session(leader: int) -> list[int]:
    """Return the living processes of a session: an executor's worker can outlive its scheduler."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader and _command(pid):
                found.append(pid)
    return found


def _command(pid: int) -> bytes:
    """Return a process's command line; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _wait_until_healthy(api: Api, supervisor: "subprocess.Popen[bytes]", parts: Sequence[str]) -> None:
    """Wait for some of Airflow's processes, and for the DAG as it is now."""
    console = _Console()
    console.say("Starting Airflow ...")
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    reason = "no answer yet"
    while time.monotonic() < deadline and supervisor.poll() is None:
        console.wait(f"starting: {reason}")
        time.sleep(0.2)
        try:
            health = api.call("GET", "/api/v2/monitor/health")
            if bad := [part for part in parts if health[part]["status"] != "healthy"]:
                reason = f"{', '.join(bad)} not healthy"
                continue
            if not api.token:
                _log_in(api)
            if _is_parsed(api):
                return
            reason = "the DAG is not parsed yet"
        except urllib.error.HTTPError as error:
            reason = str(error)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            reason = "no answer yet"
    raise LocalError(f"Airflow did not start ({reason}); see {HOME / 'logs'}")


def _is_parsed(api: Api) -> bool:
    """Return whether Airflow has the DAG as its files are now.

    Airflow does not watch what a DAG file reads. A run of an older DAG would lack the tasks of new models.

    Raises:
        LocalError: a DAG file cannot be imported.
    """
    files = [*REPOSITORY_ROOT.glob("dags/*.py"), *REPOSITORY_ROOT.glob("plugins/*.py"), manifest.current().manifest]
    changed_at = datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)
    found = api.call("GET", "/api/v2/importErrors")["import_errors"]
    errors = [one for one in found if datetime.fromisoformat(one["timestamp"]) > changed_at]
    if errors:
        raise LocalError("\n".join(f"{one['filename']}: {one['stack_trace']}" for one in errors))
    try:
        parsed_at = api.call("GET", f"/api/v2/dags/{DAG_ID}")["last_parsed_time"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return False
    return bool(parsed_at) and datetime.fromisoformat(parsed_at) > changed_at


def _run_once(api: Api, conf: dict[str, object], *, is_ours: bool) -> bool:
    """Run the DAG and report on it until it ends; return whether it succeeded.

    Args:
        api: a running Airflow.
        conf: the run's params.
        is_ours: whether this Airflow was started for the run: then an interrupted run is ended.
    """
    console = _Console()
    while not _is_parsed(api):
        console.wait("waiting for Airflow to parse the changed DAG")
        time.sleep(0.5)
    _check_conf(api, conf)
    run_id = api.call("POST", f"/api/v2/dags/{DAG_ID}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]
    path = f"/api/v2/dags/{DAG_ID}/dagRuns/{urllib.parse.quote(run_id)}"
    console.say(f"Run {run_id}")
    if is_ours:
        _build_task_api(api)  # while the scheduler gets to the run
    try:
        state, tasks = _follow(api, path, console)
    except (KeyboardInterrupt, SystemExit):
        if is_ours:
            with suppress(urllib.error.URLError, ConnectionError):
                api.call("PATCH", path, {"state": "failed"})
            console.say("Interrupted: the run was ended, and nothing was published.")
        else:
            console.say(f"The run goes on at {api.url}.")
        raise
    if state == "success":
        return True
    if waiting := [task for task in tasks if task["state"] == "upstream_failed"]:
        console.end("not run", 0, f"{len(waiting)} tasks that need a failed one")
    for task in tasks:
        if task["state"] == "failed":
            print(f"\nTask {task['task_id']} failed:\n")
            for text in _errors(api, path, task):
                print(text)
    print(
        "\nNothing was published: readers still see the last good run. Fix the cause, then run `make run` again, or "
        "`make up` and clear the task in the UI."
    )
    return False


def _check_conf(api: Api, conf: dict[str, object]) -> None:
    """Refuse what is not a param of the DAG: Airflow would take it, and ignore it.

    Raises:
        LocalError: names the known ones.
    """
    known = api.call("GET", f"/api/v2/dags/{DAG_ID}/details")["params"]
    if unknown := [name for name in conf if name not in known]:
        raise LocalError(f"CONF: {DAG_ID} has no {', '.join(map(repr, unknown))}. It has {', '.join(sorted(known))}.")


def _get(api: Api, path: str) -> Any:
    return _patiently(api, partial(api.call, "GET", path))


def _patiently(api: Api, ask: Callable[[], Any]) -> Any:
    """Ask an api-server that was up before, and may be slow or down for a while.

    Raises:
        LocalError: it has not answered for `PATIENCE_SECONDS`.
        urllib.error.HTTPError: it refuses.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise
            if time.monotonic() > deadline:
                raise LocalError(f"Airflow does not answer at {api.url} ({error}); see {HOME / 'logs'}") from error
        time.sleep(0.5)


def _follow(api: Api, path: str, console: "_Console") -> tuple[str, list[dict[str, Any]]]:
    reported: dict[str, tuple[str, int]] = {}
    running_since: dict[str, float] = {}
    while True:
        news = _report(api, path, console, reported, _get(api, f"{path}/taskInstances?{_ENDED}")["task_instances"])
        active = _get(api, f"{path}/taskInstances?{_ACTIVE}")["task_instances"]
        running = [task for task in active if task["state"] == "running"]
        state = "running"
        if not news and not active:  # to answer for a run, Airflow reads all of its tasks
            state = str(_get(api, path)["state"])
        if state in ("success", "failed"):
            tasks = _patiently(api, partial(api.task_instances, path))
            _report(api, path, console, reported, tasks)
            return state, tasks
        running_since = {task["task_id"]: running_since.get(task["task_id"], time.monotonic()) for task in running}
        console.wait(_doing(api, path, state, running, running_since))
        time.sleep(0.3)


def _report(
    api: Api, path: str, console: "_Console", reported: dict[str, tuple[str, int]], tasks: list[dict[str, Any]]
) -> bool:
    """Show how tasks have ended, if `reported` does not have it yet; return whether that is news of any."""
    news = False
    for task in sorted(tasks, key=lambda task: task["end_date"] or "9"):
        name, now = task["task_id"], (task["state"], task["try_number"])
        if task["state"] in _COLORS and reported.get(name) != now:
            reported[name], news = now, True
            why = (_errors(api, path, task) or [""])[0] if task["state"] == "up_for_retry" else ""
            first_line = why.strip().partition("\n")[0]
            console.end(task["state"], task["duration"] or 0, f"{name}  {first_line}".rstrip())
    return news


def _doing(api: Api, path: str, state: str, running: list[dict[str, Any]], running_since: dict[str, float]) -> str:
    """Return what a run is doing; of a task that takes long also its last log line, such as a lock it waits for."""
    if state == "queued":
        found = _get(api, f"/api/v2/dags/{DAG_ID}/dagRuns?state=running&limit=1")["dag_runs"]
        return f"waiting for run {found[0]['dag_run_id']}" if found else "waiting for the scheduler"
    if not running:
        return "waiting for the next task"
    task = running[0]
    text = f"running {task['task_id']}"
    if time.monotonic() - running_since[task["task_id"]] > _LONG_SECONDS and (log := _log(api, path, task)):
        text += f": {' '.join(str(log[-1].get('event', '')).split())[:100]}"
    return text


_LONG_SECONDS = 5.0
_COLORS = {"success": 32, "failed": 31, "up_for_retry": 33, "skipped": 33, "not run": 33}  # ANSI
_ACTIVE = "state=scheduled&state=queued&state=running"
# The last that have ended; far fewer end between two looks.
_ENDED = "order_by=-end_date&limit=25&" + "&".join(f"state={state}" for state in _COLORS if state != "not run")


class _Console:
    """Progress for a person: on a terminal a last line that changes, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._has_color = self._is_terminal and "NO_COLOR" not in os.environ
        self._doing = ""
        self._since = self._said_at = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\033[K{text}" if self._is_terminal else text, flush=True)
        self._said_at = time.monotonic()

    def end(self, state: str, seconds: float, text: str) -> None:
        """Print how a task has ended."""
        shown = f"{state:<16}"
        if self._has_color:
            shown = f"\033[{_COLORS[state]}m{shown}\033[0m"
        self.say(f"  {shown} {seconds:6.1f} s  {text}")

    def wait(self, doing: str) -> None:
        """Show what is being waited for, and since when."""
        now = time.monotonic()
        if doing.partition(":")[0] != self._doing.partition(":")[0]:
            self._since = now
        self._doing = doing
        line = f"  {doing} ({now - self._since:.0f} s)"
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line[:width]}", end="", flush=True)
        elif now - self._said_at > 3 * _LONG_SECONDS:
            self.say(line)


def _log(api: Api, path: str, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a task's last try logged; nothing if that try never started."""
    url = f"{path}/taskInstances/{task['task_id']}/logs/{task['try_number']}?full_content=true"
    try:
        lines = _get(api, url)["content"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return []
    # Without Airflow's own headings, such as `::group::Log message source details`.
    return [line for line in lines if isinstance(line, dict) and not str(line.get("event", "")).startswith("::")]


def _errors(api: Api, path: str, task: dict[str, Any]) -> list[str]:
    """Return the errors that a task's last try logged, or its last lines; each text once."""
    lines = _log(api, path, task)
    errors = [line for line in lines if line.get("level") in ("error", "critical")]
    texts: list[str] = []
    for line in errors or lines[-5:]:
        details = [f"{detail['exc_type']}: {detail['exc_value']}" for detail in line.get("error_detail") or []]
        for text in (line["event"], *details):
            if not any(text.partition(": ")[2] in known or text in known for known in texts):
                texts.append(text)
    return texts


def _conf(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"CONF is not JSON ({error}): {text}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f"CONF must be a JSON object, such as '{{\"full_refresh\": true}}', not: {text}"
        )
    return found


def main() -> int:
    """Run one subcommand and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("init", "up", "run"))
    parser.add_argument("--conf", type=_conf, default={}, help="params of the run, as JSON")
    options = parser.parse_args()
    try:
        if options.command == "init":
            init()
        elif options.command == "up":
            up()
        elif not run(options.conf):
            return 1
    except (LocalError, WarehouseError, urllib.error.URLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
