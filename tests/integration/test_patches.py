"""Each change to a library is still needed, and still fits: a test that fails says that a patch can go, or must change.

Libraries are changed for a whole process, so each test has one of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from testing.project import NAME

pytestmark = [pytest.mark.integration, pytest.mark.files, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("include/patches", "plugins/patches")
PATCHES = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py") if file.stem != "__init__")


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Run a program, and return the JSON that it prints last."""

    def ask(program: str, *arguments: str, **env: str) -> Any:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DBT_", "OPENLINEAGE_"))}
        clean |= {
            "PYTHONPATH": f"{ROOT}:{ROOT}/plugins",
            "WAREHOUSE_DIR": str(tmp_path),
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__PLUGINS_FOLDER": f"{ROOT}/plugins",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "DO_NOT_TRACK": "1",
        }
        command = [sys.executable, "-c", "import json\n" + program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean | env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


@pytest.mark.parametrize("file", PATCHES, ids=lambda file: file.stem)
def test_every_patch_says_why_it_is_there_and_when_it_can_go(file: Path) -> None:
    text = file.read_text().split('"""')[1]
    for word in ("\nWhat: ", "\nWhy", "\nReported: ", "\nSince: ", "\nRemove once "):
        assert word in text, word
    assert file.stem in Path(__file__).read_text(), "it has no test"


DBT = """
import inspect, pkgutil, sys
from unittest import mock
from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest
def count(*command):
    found = {}
    with (
        mock.patch.object(pkgutil, "iter_modules", wraps=pkgutil.iter_modules) as found["dbt_plugins"],
        mock.patch.object(inspect, "stack", wraps=inspect.stack) as found["dbt_behavior_flags"],
        mock.patch.object(Manifest, "from_msgpack", wraps=Manifest.from_msgpack) as found["dbt_manifest read"],
        mock.patch.object(Manifest, "write", autospec=True, side_effect=Manifest.write) as found["dbt_manifest write"],
    ):
        options = ["--project-dir", sys.argv[1], "--profiles-dir", sys.argv[1]]
        assert dbtRunner().invoke(["--quiet", *command, *options]).success
    return {name: one.call_count for name, one in found.items()}
count("parse")
print(json.dumps(count("run")))
"""


def test_dbt_still_repeats_for_each_command_what_a_process_could_keep(ask: Any, tmp_path: Path) -> None:
    for name, text in {
        "dbt_project.yml": "{name: tiny, profile: tiny, flags: {send_anonymous_usage_stats: false}}",
        "profiles.yml": "tiny: {target: dev, outputs: {dev: {type: duckdb, path: ':memory:'}}}",
        "models/one.sql": "select 1 as i",
    }.items():
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_text(text)
    counts = ask(DBT, str(tmp_path / "tiny"))
    assert counts.pop("dbt_behavior_flags") >= 1
    assert counts == {"dbt_plugins": 1, "dbt_manifest read": 1, "dbt_manifest write": 2}


def test_every_patch_of_dbt_fits(ask: Any) -> None:
    """That they then do what they should is in test_warm_dbt.py."""
    program = """
import logging
import dbt.parser.manifest, dbt.task.runnable
from dbt.plugins.manager import PluginManager
from dbt_common.behavior_flags import BehaviorFlagRendered
from include.patches import dbt_behavior_flags, dbt_manifest, dbt_plugins
names = [(dbt.parser.manifest, "ManifestLoader"), (dbt.parser.manifest, "write_manifest"),
    (dbt.task.runnable, "write_manifest"), (PluginManager, "get_prefixed_modules"),
    (BehaviorFlagRendered, "_default_source")]
before = [getattr(*one) for one in names]
for patch in (dbt_behavior_flags, dbt_manifest, dbt_plugins):
    patch.apply()
print(json.dumps([str(one) for one, old in zip(names, before, strict=True) if getattr(*one) == old]))
"""
    assert ask(program) == []


CANCEL = """
import os, signal, sys, threading, time
from dbt.cli.main import dbtRunner
from dbt.adapters.factory import FACTORY
from include.patches import dbt_duckdb_close
from include.patches.dbt_cancel import cancel_queries
if sys.argv[3] == "close":
    dbt_duckdb_close.apply()
class Limit(BaseException):
    pass
class State:
    limit, ended, waited = threading.Event(), threading.Event(), None
def at_limit(*_):
    State.limit.set()
    raise Limit
def watch():
    def names():
        adapters = list(FACTORY.adapters.values())
        return [str(one.name) for two in adapters for one in list(two.connections.thread_connections.values())]
    while not any(name.startswith("model.") for name in names()):
        if State.ended.wait(0.1):
            return
    time.sleep(2)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    State.limit.wait()
    State.waited = not State.ended.wait(3)
    while not State.ended.wait(1):
        cancel_queries()
signal.signal(signal.SIGUSR1, at_limit)
watcher = threading.Thread(target=watch)
watcher.start()
result = dbtRunner().invoke(["run", "--project-dir", sys.argv[1], "--profiles-dir", sys.argv[2]])
State.ended.set()
watcher.join()
print(json.dumps([State.waited, type(result.exception).__name__]), flush=True)
os._exit(0)  # as a task does: Python's own end aborts if the query's thread is still in DuckDB
"""


@pytest.mark.parametrize("patch", ["", "close"])
def test_dbt_still_waits_for_its_queries_at_a_time_limit_or_fails_and_dbt_cancel_and_dbt_duckdb_close_are_needed(
    ask: Any, tmp_path: Path, patch: str
) -> None:
    project, profiles = ROOT / "testing" / "slow_project", ROOT / "include" / "dbt_project"
    program = CANCEL.replace('"run", ', f'"run", "--target-path", {str(tmp_path)!r}, "--log-path", {str(tmp_path)!r}, ')
    waits, error = ask(program, str(project), str(profiles), patch)
    if duckdb.__version__ < "2":
        assert (waits, error) == (True, "Limit")
    else:
        assert (waits, error) == (False, "Limit" if patch else "ResourceInUseException")


def test_the_page_of_dbts_documentation_still_requests_what_does_not_exist(ask: Any) -> None:
    from include.patches import dbt_docs_page
    from include.warehouse_catalog import dbt_docs

    program = "import dbt.task.docs; print(json.dumps(dbt.task.docs.__path__[0]))"
    index = Path(ask(program)) / "index.html"
    for piece in (dbt_docs_page.ICON, dbt_docs_page.UNFILLED):
        assert piece in index.read_text(encoding="utf-8")
    assert dbt_docs_page.ICON not in dbt_docs.page()


@pytest.mark.parametrize(("apply", "is_asked"), [("", True), ("cosmos_openlineage.apply()", False)])
def test_cosmos_still_asks_openlineage_although_it_is_disabled(ask: Any, apply: str, is_asked: bool) -> None:
    program = f"""
from cosmos.operators.local import AbstractDbtLocalBase
from include.patches import cosmos_openlineage
{apply}
print(json.dumps(AbstractDbtLocalBase._get_dbt_local_artifact_processor() is not None))
"""
    assert ask(program, OPENLINEAGE_DISABLED="True") is is_asked


ONE_TASK = f"""
import contextlib, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from cosmos.airflow import graph
from patches import cosmos_one_task
make = graph.create_airflow_task
if sys.argv[1] == "without":
    cosmos_one_task.only_this_task = contextlib.nullcontext
elif sys.argv[1] == "with another signature":
    graph.create_airflow_task = lambda task, dag, task_group=None, colour="red": make(task, dag, task_group)
with _airflow_parsing_context_manager(dag_id="{NAME}", task_id="transform.orders.run"):
    bag = DagBag(sys.argv[2])
assert not bag.import_errors, bag.import_errors
tasks = bag.dags["{NAME}"].tasks
made = [one for one in tasks if one.task_id.startswith("transform.") and one.task_type != "EmptyOperator"]
print(json.dumps([len(made), "transform.orders.run" in [one.task_id for one in made]]))
"""


def test_cosmos_still_makes_all_tasks_in_a_tasks_process_and_cosmos_one_task_fits_or_does_nothing(ask: Any) -> None:
    dag = str(ROOT / "dags" / "jaffle_shop.py")
    every, _ = ask(ONE_TASK, "without", dag)
    assert every > 5
    assert ask(ONE_TASK, "with", dag) == [1, True]
    assert ask(ONE_TASK, "with another signature", dag) == [every, True], "slower, but right"


def test_airflow_still_cannot_clear_a_run_with_its_own_deadline_so_queued_deadline_is_needed(ask: Any) -> None:
    program = """
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from airflow._shared.timezones.timezone import utcnow
from airflow.models import taskinstance
from airflow.models.deadline_alert import DeadlineAlert
from airflow.serialization.encoders import encode_deadline_alert
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert as Declared, DeadlineReference
declared = Declared(DeadlineReference.DAGRUN_QUEUED_AT, timedelta(hours=1), SyncCallback(print))
encoded = encode_deadline_alert(declared)
alert = DeadlineAlert(interval=encoded["__var"]["interval"] if "__var" in encoded else encoded["interval"])
row = (SimpleNamespace(id=1, deadline_time=utcnow()), alert)
session = SimpleNamespace(execute=lambda query: SimpleNamespace(all=lambda: [row]))
run = SimpleNamespace(id=1, dag_id="d", run_id="r")
try:
    taskinstance._recalculate_dagrun_queued_at_deadlines(run, utcnow(), session)
    print(json.dumps(""))
except TypeError as error:
    print(json.dumps(str(error)))
"""
    assert "timedelta" in ask(program)


LOCAL_EXECUTOR = """
import os, signal, sys, time
from airflow.executors.local_executor import LocalExecutor
import multiprocessing, multiprocessing.forkserver
multiprocessing.set_start_method(sys.argv[1])
executor = LocalExecutor(parallelism=1)
executor.start()
if sys.argv[1] == "forkserver":
    print(json.dumps([bool(executor.workers), multiprocessing.forkserver._forkserver._forkserver_pid]))
    sys.exit()
time.sleep(2)
for worker in executor.workers.values():  # it waits for work, with the queue's lock
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
executor.activity_queue.put(None)  # a healthy worker ends as it takes this
executor._unread_messages.value = 1
executor.sync()
assert executor.workers, "no other worker"
time.sleep(4)
stuck = not executor.activity_queue.empty()
for worker in executor.workers.values():
    worker.kill()
print(json.dumps(stuck))
"""


def test_a_killed_worker_still_stops_all_others_so_local_executor_is_needed(ask: Any) -> None:
    assert ask(LOCAL_EXECUTOR, "fork") is True


EXECUTOR = """
import sys, time
from types import SimpleNamespace
from unittest import mock
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.local_executor import LocalExecutor
from airflow.executors.workloads import ExecuteTask
from airflow.models.taskinstancekey import TaskInstanceKey
from patches import local_executor

def workload(dag, number, queue="resident"):
    key = TaskInstanceKey(dag, str(number), "run", 1, -1)
    return ExecuteTask.model_construct(ti=SimpleNamespace(key=key, queue=queue, priority_weight=1))
def make(class_, parallelism):
    executor = class_(parallelism=parallelism)
    executor.workers, executor.activity_queue, executor._known = {}, mock.Mock(), set()
    executor._unread_messages, executor._check_workers = mock.MagicMock(value=0), lambda: None
    executor._preload, executor._sharing = mock.Mock(is_alive=lambda: False), set()
    executor._read_results = lambda: None
    return executor
def given(executor):
    keys = [call.args[0].key for call in executor.activity_queue.put.call_args_list]
    return [key.dag_id + key.task_id for key in keys]
def end(executor, dag, number):
    executor.change_state(TaskInstanceKey(dag, str(number), "run", 1, -1), "success")
"""

LOOKS = (
    EXECUTOR
    + """
executor = make(local_executor.WatchfulLocalExecutor, 8)
ends = iter(sys.argv[1].split(","))
def results():
    if executor.running and (one := next(ends, "")):
        end(executor, one[0], one[1:])
executor._read_results = results
clock = [0.0]
local_executor.time = SimpleNamespace(
    monotonic=lambda: clock[0], sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds)
)
for queue, names in (("resident", sys.argv[2]), ("default", sys.argv[3])):
    for one in filter(None, names.split(",")):
        executor.queue_workload(workload(one[0], one[1:], queue), None)
executor.heartbeat()
print(json.dumps([given(executor), len(executor.event_buffer), clock[0] < local_executor.LOOK_SECONDS]))
"""
)


def test_local_executor_gives_workers_two_of_a_dags_tasks_that_share_a_process_and_looks_when_two_are_left(
    ask: Any,
) -> None:
    six = "a1,a2,a3,a4,a5,a6"
    assert ask(LOOKS, ",,,a1,a2,a3,a4,a5", six, "") == [six.split(","), 4, True], "another two are with workers"
    assert ask(LOOKS, "", "", "") == [[], 0, True], "nothing to wait for"
    assert ask(LOOKS, "", "a1,a2,a3", "") == [["a1", "a2"], 0, False], "a second later, for what is new"
    assert ask(LOOKS, ",a1", "a1", "") == [["a1"], 1, True]
    assert ask(LOOKS, ",c1,a1", six, "c1,c2") == [["a1", "a2", "c1", "c2"], 1, True], "a task of another kind"
    assert ask(LOOKS, ",a1,b1", f"{six},b1", "") == [["a1", "a2", "b1", "a3"], 2, True], "another DAG has none left"


SLOTS = (
    EXECUTOR
    + """
class_ = {"airflow": LocalExecutor, "patched": local_executor.WatchfulLocalExecutor}[sys.argv[1]]
executor = make(class_, 2)
for number in range(3):
    executor.queue_workload(workload("a", number, "default"), None)
BaseExecutor.heartbeat(executor)
BaseExecutor.heartbeat(executor)
print(json.dumps([given(executor), executor.slots_available + executor.slots_occupied, len(executor.running)]))
"""
)


def test_airflow_still_counts_no_tasks_with_workers_so_local_executor_is_needed(ask: Any) -> None:
    assert ask(SLOTS, "airflow") == [["a0", "a1", "a2"], 2, 0]
    assert ask(SLOTS, "patched") == [["a0", "a1"], 2, 2]


def test_local_executor_still_preloads_with_the_first_task(ask: Any) -> None:
    assert ask(LOCAL_EXECUTOR, "forkserver") == [False, None]


KILLED_SCHEDULER = """
import multiprocessing, os, sys, time
import psutil
from airflow.executors.local_executor import LocalExecutor
from patches.local_executor import WatchfulLocalExecutor
read, write = os.pipe()
if os.fork():  # the scheduler is a process of its own, whose end this one outlives
    workers = [psutil.Process(int(pid)) for pid in os.read(read, 100).split()]
    _, alive = psutil.wait_procs(workers, timeout=5 if sys.argv[1] == "airflow" else 60)
    for worker in alive:
        worker.kill()
    print(json.dumps(len(workers) - len(alive)))
else:
    multiprocessing.set_start_method("forkserver")
    executor = {"airflow": LocalExecutor, "patched": WatchfulLocalExecutor}[sys.argv[1]](parallelism=2)
    executor.start()
    executor._spawn_worker()
    executor._spawn_worker()
    time.sleep(5)  # then they wait for a task
    os.write(write, " ".join(map(str, executor.workers)).encode())
    os.kill(os.getpid(), 9)
"""


def test_a_killed_schedulers_workers_still_stay_so_local_executor_ends_them(ask: Any) -> None:
    assert ask(KILLED_SCHEDULER, "airflow") == 0
    assert ask(KILLED_SCHEDULER, "patched") == 2


WAIT = """
import multiprocessing, psutil, socket, sys
from unittest import mock
from airflow.sdk.execution_time.supervisor import ActivitySubprocess, PsutilTracker
from patches.supervisor_wait import TaskProcess
class_ = {"airflow": ActivitySubprocess, "patched": TaskProcess}[sys.argv[1]]
process = multiprocessing.get_context("fork").Process(target=input)
process.start()
process.kill()
tracker = PsutilTracker(psutil.Process(process.pid))
selector = mock.Mock(**{"select.return_value": []})
others = {"id": None, "stdin": socket.socket(), "process_log": mock.Mock(), "client": None}
task = class_(pid=process.pid, process=tracker, selector=selector, **others)
code = task._service_subprocess(max_wait_time=60)
print(json.dumps([code, selector.select.call_args.kwargs["timeout"]]))
"""


def test_airflow_still_sleeps_beside_a_process_without_sockets_so_supervisor_wait_is_needed(ask: Any) -> None:
    assert ask(WAIT, "airflow")[1] == 60
    assert ask(WAIT, "patched") == [-9, 0.01]


DAG_FILE = f"""
import sys
from types import SimpleNamespace
from unittest import mock
import structlog
from airflow.dag_processing import dagbag
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from airflow.sdk.execution_time import task_runner
from patches import task_runner_dag
made = []
class Bag(dagbag.BundleDagBag):
    def __init__(self, *words, **options):
        made.append(words)
        super().__init__(*words, **options)
dagbag.BundleDagBag = Bag
if sys.argv[1] == "patched":
    task_runner_dag.apply()
def parse(task_id):
    ti = SimpleNamespace(dag_id="{NAME}", task_id=task_id, model_dump=lambda **_: {{"task_id": task_id}})
    what = SimpleNamespace(
        ti=ti, ti_context=SimpleNamespace(max_tries=0), start_date=None, sentry_integration="",
        bundle_info=SimpleNamespace(name="dags-folder", version=None), dag_rel_path="{NAME}.py",
    )
    with _airflow_parsing_context_manager(dag_id="{NAME}", task_id=task_id):
        return task_runner.parse(what, structlog.get_logger()).task
first, second, other = (parse(f"transform.{{one}}.run") for one in ("orders", "orders", "customers"))
first.full_refresh = "rendered"
print(json.dumps([len(made), second.full_refresh, other.task_type, other.dag is second.dag, len(other.dag.tasks)]))
"""


def test_airflow_still_parses_a_dag_for_each_task_and_task_runner_dag_does_once_but_shares_no_operator(
    ask: Any,
) -> None:
    dags = {"AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags")}
    count, _, _, shared, tasks = ask(DAG_FILE, "airflow", **dags)
    assert (count, shared) == (3, False)
    rendered = "{{ params.full_refresh }}"
    assert ask(DAG_FILE, "patched", **dags) == [1, rendered, "DbtRunLocalOperator", True, tasks]


TYPES = """
import sys
from unittest import mock
import structlog
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk.execution_time import comms, task_runner
import pydantic
from patches import task_runner_types
made = []
init = pydantic.TypeAdapter._init_core_attrs
def count(self, *words, **options):
    made.append(self)
    return init(self, *words, **options)
if sys.argv[1] == "patched":
    task_runner_types.apply()
with mock.patch.object(pydantic.TypeAdapter, "_init_core_attrs", count):
    for _ in range(2):
        fields = task_runner._serialize_rendered_fields(BashOperator(task_id="a", bash_command="b", env={"c": "d"}))
        comms.CommsDecoder(socket=mock.Mock())
        made.append(None)
print(json.dumps([len(made) - made.index(None) - 2, fields["env"]]))
"""


def test_airflow_still_builds_the_types_of_its_messages_for_each_task_so_task_runner_types_is_needed(ask: Any) -> None:
    count, fields = ask(TYPES, "airflow")
    assert count >= 5
    assert ask(TYPES, "patched") == [0, fields]


TELEMETRY = """
import sys
from unittest import mock
from airflow.sdk.listener import get_listener_manager
from cosmos.listeners import task_instance_listener as listener
from patches import cosmos_telemetry
manager = get_listener_manager()
if not manager.pm.is_registered(listener):
    manager.add_listener(listener)
if sys.argv[1] == "patched":
    cosmos_telemetry.apply()
with (
    mock.patch.object(listener, "_is_cosmos_task", return_value=True),
    mock.patch.object(listener, "_build_task_metrics", return_value={}) as build,
):
    manager.hook.on_task_instance_success(previous_state=None, task_instance=mock.Mock())
print(json.dumps(build.call_count))
"""


def test_cosmos_still_collects_telemetry_that_is_switched_off(ask: Any) -> None:
    off = {"AIRFLOW__COSMOS__ENABLE_TELEMETRY": "False"}
    assert ask(TELEMETRY, "cosmos", **off) == 1
    assert ask(TELEMETRY, "patched", **off) == 0


GARBAGE = """
import sys
from unittest import mock
import airflow
from cosmos.dbt import runner
from patches import cosmos_garbage
if sys.argv[1] == "patched":
    cosmos_garbage.apply()
with mock.patch("gc.collect") as collect:
    for _ in range(20):
        runner._cleanup_dbt_adapters()
print(json.dumps(collect.call_count))
"""


def test_cosmos_still_collects_garbage_after_each_command_so_cosmos_garbage_is_needed(ask: Any) -> None:
    assert ask(GARBAGE, "cosmos") == 20
    assert ask(GARBAGE, "patched") == 2


TWICE = """
import sys
from unittest import mock
from dbt.cli.main import dbtRunner
import jinja2.compiler
from dbt.compilation import Linker
from dbt_common.events import functions
from dbt_common.events.event_manager import EventManager
from dbt_common.events.logger import _TextLogger
from include import dbt_session
from dbt.config.runtime import RuntimeConfig
from dbt.contracts.graph.manifest import Manifest
from dbt.parser.manifest import ManifestLoader
options = ["--project-dir", sys.argv[2], "--profiles-dir", sys.argv[2]]
runner = dbtRunner()
if sys.argv[1] == "patched":
    dbt_session.start()
elif sys.argv[1] == "manifest":
    runner = dbtRunner(manifest=dbtRunner().invoke(["parse", *options]).result)
def build(*more, words=("--quiet", "run")):
    with (
        mock.patch.object(functions, "env_secrets", wraps=functions.env_secrets) as secrets,
        mock.patch.object(ManifestLoader, "load", autospec=True, side_effect=ManifestLoader.load) as load,
        mock.patch.object(Manifest, "build_flat_graph", autospec=True, side_effect=Manifest.build_flat_graph),
        mock.patch.object(jinja2.environment, "generate", wraps=jinja2.environment.generate) as texts,
        mock.patch.object(RuntimeConfig, "new_project", autospec=True, side_effect=RuntimeConfig.new_project) as reads,
        mock.patch.object(Linker, "link_graph", autospec=True, side_effect=Linker.link_graph) as graphs,
        mock.patch.object(_TextLogger, "write_line", autospec=True, side_effect=_TextLogger.write_line) as lines,
    ):
        done = runner.invoke([*words, *options, *more])
    nodes = {one.node.unique_id: one.node for one in done.result}
    two = nodes["model.tiny.two"]
    return {
        "success": done.success,
        "loads": load.call_count,
        "sql": two.compiled_code,
        "macros": sorted(two.depends_on.macros),
        "nodes": sorted(nodes),
        "secrets": secrets.call_count,
        "texts": texts.call_count,
        "graphs": graphs.call_count,
        "packages": reads.call_count,
        "lines": sorted({call.args[1].info.level for call in lines.call_args_list}),
    }
found = [build(), build()]
for names in ("tiny.two", "fqn:tiny.*", "three.v1 two", "three_v2 two", "tiny.sub.four two", "two+"):
    found.append(build("--select", *names.split()))
found += [build("--vars", "{a: 1}"), build(words=("--debug", "run"))]
sys.stdout.flush()
print()
print(json.dumps(found))
"""


@pytest.fixture
def nested(tmp_path: Path) -> str:
    """A project with a model on an ephemeral one, which is compiled into it."""
    files = {
        "dbt_project.yml": "{name: tiny, profile: tiny, flags: {send_anonymous_usage_stats: false},"
        " on-run-start: [select 1], on-run-end: [select 2]}",
        "profiles.yml": "tiny: {target: dev, outputs: {dev: {type: duckdb, path: ':memory:'}}}",
        "models/one.sql": "{{ config(materialized='ephemeral') }} select 1 as i",
        "models/two.sql": "select * from {{ ref('one') }}",
        "models/three_v1.sql": "select 1 as i",
        "models/three_v2.sql": "select * from {{ ref('two') }}",
        "models/three.yml": "models: [{name: three, versions: [{v: 1}, {v: 2}]}]",
        "models/sub/four.sql": "select * from {{ ref('three') }}",
    }
    for name, text in files.items():
        (tmp_path / "nested" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nested" / name).write_text(text)
    return str(tmp_path / "nested")


def test_a_kept_manifest_gives_each_command_what_a_parse_gives(ask: Any, nested: str) -> None:
    parsed, kept = (ask(TWICE, how, nested, DBT_LOG_LEVEL_FILE="none") for how in ("dbt", "patched"))
    again = [0] * (len(parsed) - 3)
    for loads, number in (("loads", 1), ("graphs", 1), ("packages", 2)):
        assert [one[loads] for one in parsed] == [number] * len(parsed)
        expected = [number, *again, number, number]
        assert [one[loads] for one in kept] == expected, "dbt_kept_manifest: but not with other variables"
    for one, other in zip(parsed, kept, strict=True):
        assert one["success"] and other["success"]
        assert all(one[what] == other[what] for what in ("sql", "macros", "nodes"))
    assert "__dbt__cte__one" in kept[1]["sql"]
    assert len({str(one["nodes"]) for one in parsed}) == 6, "different selections"
    assert parsed[1]["texts"] > 3
    assert kept[1]["texts"] < parsed[1]["texts"] / 2, "dbt_templates"
    assert "debug" in parsed[1]["lines"]
    assert "debug" not in kept[1]["lines"], "dbt_quiet_events"
    assert "debug" in kept[-1]["lines"]


def test_dbt_still_cannot_use_a_manifest_twice(ask: Any, nested: str) -> None:
    first, second, *_ = ask(TWICE, "manifest", nested)
    assert first["sql"] != second["sql"] or first["macros"] != second["macros"] or not second["success"]


def test_dbts_logger_still_decodes_the_environment_for_each_event(ask: Any, nested: str) -> None:
    assert ask(TWICE, "dbt", nested)[1]["secrets"] > 20
    program = """
import os
from dbt_common.events import functions
from include.patches import dbt_secrets
dbt_secrets.apply()
none = functions.env_secrets()
os.environ["DBT_ENV_SECRET_WORD"] = "hush"
print(json.dumps([none, functions.env_scrubber("say hush")]))
"""
    assert ask(program) == [[], "say *****"]


VALUES = """
import sys
from dbt.cli.main import dbtRunner
files = {
    "dbt_project.yml": "{name: shows, profile: shows, flags: {send_anonymous_usage_stats: false}}",
    "profiles.yml": "shows: {target: duckdb, outputs: {duckdb: {type: duckdb, path: 'x.duckdb'}}}",
    "models/one.sql": "{{ config(materialized='table') }} select cast('of a' || ' person' as int) as i",
    "models/two.sql": "select nocolumn from (values (1)) as q(v)",
}
from pathlib import Path
Path("models").mkdir()
for name, text in files.items():
    Path(name).write_text(text)
if sys.argv[1] == "unchanged":
    from include.patches import dbt_values
    dbt_values.apply = lambda connections: None
dbtRunner().invoke(["--no-use-colors", "run"])
kept = Path("target/run_results.json").read_text()
print(json.dumps([Path("logs/dbt.log").read_text(), kept]))
"""


def test_dbt_values_shows_no_value_of_a_row_in_an_error(ask: Any) -> None:
    """dbt_values is still needed: without it, dbt repeats the value that DuckDB quotes."""
    assert all("of a person" in text for text in ask(VALUES, "unchanged"))


def test_dbt_values_keeps_names_in_errors(ask: Any) -> None:
    for text in ask(VALUES, "masked"):
        assert "of a person" not in text and "Could not convert string '***' to INT32" in text
        assert "nocolumn" in text


INDEXES = """
import sys
import threading

import duckdb
from dbt.adapters.duckdb.environments.local import DuckDBCursorWrapper

from include.patches import dbt_index_list
if sys.argv[1] == "waits":
    dbt_index_list.apply()
connection = duckdb.connect()
connection.execute("create table old as select 1 as id; create index by_id on old (id)")
writer = connection.cursor()
connection.execute("create table mine as select 1 as id; create index of_mine on mine (id)")
writer.begin()
writer.execute("drop index by_id; alter table old rename to new")
timer = threading.Timer(1, writer.commit)
timer.start()
reader = DuckDBCursorWrapper(connection.cursor())
reader.begin()
try:
    reader.execute("select 1")
    reader.execute("select index_name from duckdb_indexes()")
    found = reader.fetchall()
except duckdb.CatalogException as error:
    found = str(error)
timer.join()
print(json.dumps(found))
"""


def test_dbt_index_list_waits_for_another_models_rename(ask: Any) -> None:
    assert ask(INDEXES, "waits") == [["of_mine"]]
    assert "Table with name new does not exist" in ask(INDEXES, "unchanged"), "still needed"


SAVEPOINT = """
import sqlite3, sys
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
if sys.argv[1] == "changed":
    from patches import sqlite_savepoint
    sqlite_savepoint.apply()
engine = create_engine("sqlite:///x.db")
with engine.begin() as connection:
    connection.execute(text("pragma journal_mode = wal"))
    connection.execute(text("create table t (i int)"))
other = sqlite3.connect("x.db", timeout=0.1)
found = "wrote"
with engine.connect() as connection:
    nested = connection.begin_nested()
    connection.execute(text("select * from t")).fetchall()
    try:
        other.execute("insert into t values (1)")
        other.commit()
    except sqlite3.OperationalError:
        pass  # it waits
    try:
        connection.execute(text("insert into t values (2)"))
        nested.commit()
        connection.commit()
    except OperationalError as error:
        found = str(error)
print(json.dumps(found))
"""


BUSY = """
import asyncio, sys
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
if sys.argv[1] == "changed":
    from patches import sqlite_savepoint
    sqlite_savepoint.apply()

async def ask():
    async with create_async_engine("sqlite+aiosqlite:///x.db").connect() as connection:
        return (await connection.execute(text("pragma busy_timeout"))).scalar()

with create_engine("sqlite:///x.db").connect() as connection:
    print(json.dumps([connection.execute(text("pragma busy_timeout")).scalar(), asyncio.run(ask())]))
"""


def test_with_sqlite_savepoint_a_write_waits_longer_than_the_drivers_five_seconds(ask: Any) -> None:
    assert ask(BUSY, "unchanged") == [5000, 5000]
    assert ask(BUSY, "changed") == [30000, 30000]


def test_sqlite_savepoint_is_still_needed(ask: Any) -> None:
    assert "database is locked" in ask(SAVEPOINT, "unchanged")


def test_with_sqlite_savepoint_a_savepoint_waits_for_its_turn_to_write(ask: Any) -> None:
    assert ask(SAVEPOINT, "changed") == "wrote"


READY = """
import random
import sys
from unittest import mock
from uuid import uuid4
from airflow.models import Base, TaskInstance, import_all_models
from airflow.models.dagrun import DagRun
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.latest_only import LatestOnlyOperator
from airflow.sdk import DAG, timezone
from airflow.serialization.serialized_objects import DagSerialization
from patches import ready_tasks
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

RULES = ["all_success"] * 12 + ["all_done", "none_failed", "one_success", "one_failed", "none_skipped"]
ENDED = ["success", "failed", "skipped", "upstream_failed"]
STATES = ["success"] * 8 + ENDED + ["running", "up_for_retry", "queued"]
import_all_models()
engine = create_engine("sqlite://")
Base.metadata.create_all(engine)


def look(dag, states):
    '''Return what the scheduler finds of a run: the tasks to start, whether any may start later, all states.'''
    dag = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    run = DagRun(dag_id=dag.dag_id, run_id="r", run_type="manual", run_after=timezone.utcnow(), state="running")
    run.dag = dag
    with Session(engine) as session:
        session.add(run)
        for task_id in dag.task_ids:
            ti = TaskInstance(dag.get_task(task_id), dag_version_id=uuid4(), run_id="r", state=states.get(task_id))
            ti.end_date = timezone.utcnow()
            session.add(ti)
        session.flush()
        found = run.task_instance_scheduling_decisions(session=session)
        later, _ = run._are_premature_tis(found.unfinished_tis, found.finished_tis, session)
        ready = sorted(ti.task_id for ti in found.schedulable_tis)
        return ready, bool(later), {ti.task_id: ti.state for ti in found.tis}


def odd(case):
    '''Return a DAG of odd shape, and states that its tasks may have.'''
    pick, tasks, states = random.Random(case), [], {}
    with DAG(f"x{case}") as dag:
        for number in range(12):
            kind = LatestOnlyOperator if pick.random() < 0.03 else EmptyOperator
            task = kind(task_id=f"t{number}", trigger_rule=pick.choice(RULES))
            pick.sample(tasks, min(len(tasks), pick.randrange(3))) >> task
            if pick.random() < 0.8 and all(states.get(one) in ENDED for one in task.upstream_task_ids):
                states[task.task_id] = pick.choice(STATES)
            tasks.append(task)
        if pick.random() < 0.1:
            tasks[0].as_setup()
    return dag, states


if sys.argv[1] == "changed":
    ready_tasks.apply()
with DAG("chain") as chain:
    EmptyOperator(task_id="first") >> EmptyOperator(task_id="middle") >> EmptyOperator(task_id="last")
met = TaskInstance.are_dependencies_met
with mock.patch.object(TaskInstance, "are_dependencies_met", autospec=True, side_effect=met) as looks:
    look(chain, {"first": "running"})
looked_at = {call.args[0].task_id for call in looks.call_args_list}
print(json.dumps([looked_at > {"first"}, [look(*odd(case)) for case in range(150)]]))
"""


def test_airflow_still_evaluates_tasks_that_wait_so_ready_tasks_is_needed_and_changes_no_decision(ask: Any) -> None:
    evaluates, decisions = ask(READY, "unchanged")
    evaluates_changed, decisions_changed = ask(READY, "changed")
    assert evaluates and not evaluates_changed
    assert decisions_changed == decisions
    ready = [case for case in decisions if case[0]]
    assert len(ready) > 50 and any("upstream_failed" in case[2].values() for case in ready)


STOP = """
import signal
import weakref
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner


class Thing:
    pass


def call_back(reference):
    signal.raise_signal(signal.SIGTERM)
    for _ in range(9):  # Python handles signals at the next turn of a loop
        pass


def ends_the_loop():
    try:
        runner._do_scheduling(None)
    except SystemExit:
        return True
    return False


SchedulerJobRunner._do_scheduling = lambda self, session: 0  # all the rest of a round
runner = SchedulerJobRunner(Job())  # tells plugins that it starts
runner.register_signals()
before, thing = ends_the_loop(), Thing()
watch = weakref.ref(thing, call_back)
del thing
print(json.dumps([before, ends_the_loop()]))
"""


def test_airflow_still_loses_a_signal_in_a_callback_of_python_so_scheduler_stop_is_needed(
    ask: Any, tmp_path: Path
) -> None:
    assert ask(STOP, AIRFLOW__CORE__PLUGINS_FOLDER=str(tmp_path)) == [False, False]
    assert ask(STOP) == [False, True]


RUNNING_LOG = """
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from airflow.utils.log.file_task_handler import FileTaskHandler
from airflow.utils.state import TaskInstanceState
Path("x.log").write_text('{"event": "hello"}')
ti = SimpleNamespace(state=TaskInstanceState.RUNNING, try_number=1, executor=None, hostname="127.0.0.1")
names = {"_render_filename": "x.log", "_read_from_logs_server": ([], []), "_read_remote_logs": ([], [])}
mocks = {name: mock.Mock(return_value=value) for name, value in names.items()}
with mock.patch.multiple(FileTaskHandler, **mocks):
    lines = [str(line) for line in FileTaskHandler(".")._read(ti, 1)[0]]
print(json.dumps([mocks["_read_from_logs_server"].call_count, any("hello" in line for line in lines)]))
"""


def test_airflow_still_asks_a_log_server_for_a_running_tasks_log_so_local_executor_is_needed(ask: Any) -> None:
    assert ask(RUNNING_LOG, AIRFLOW__CORE__EXECUTOR="LocalExecutor") == [1, True]
    assert ask(RUNNING_LOG, AIRFLOW__CORE__EXECUTOR="patches.local_executor.WatchfulLocalExecutor") == [0, True]
