"""Import include.warm_dbt like the forkserver, then run each dbt command from stdin (one JSON per line) in a fork."""

import importlib
import inspect
import json
import os
import sys
import traceback
from typing import Any
from unittest import mock

from dbt.cli.main import dbtRunner
from dbt.plugins import PluginManager
from dbt_common.clients.jinja import template_cache

from include import warm_dbt  # noqa: F401, warms up
from include.patches import dbt_manifest


def run(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    os.environ.update(env)
    compiled = len(template_cache.file_cache)
    with mock.patch.object(inspect, "stack", wraps=inspect.stack) as stack:
        outcome = dbtRunner().invoke(command)
    try:
        importlib.import_module("openlineage.common.provider.dbt.local")
        openlineage = True
    except ImportError:
        openlineage = False
    return {
        "success": outcome.success,
        "exception": str(outcome.exception or ""),
        "had the manifest": dbt_manifest._offered is None,
        "parsed": dbt_manifest._unchanged is None,
        "sql": {node.node.name: node.node.compiled_code for node in getattr(outcome.result, "results", [])},
        "macros compiled": len(template_cache.file_cache) - compiled,
        "plugin scans": PluginManager.get_prefixed_modules.cache_info().misses,
        "stacks read": stack.call_count,
        "openlineage": openlineage,
    }


answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # dbt prints there
for line in sys.stdin:
    asked = json.loads(line)
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    try:
        answer = run(asked["command"], asked["env"])
    except BaseException:  # noqa: BLE001, the test shows it
        answer = {"error": traceback.format_exc()}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    os._exit(0)
