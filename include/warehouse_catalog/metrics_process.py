"""The process that `metrics.py` starts: lists a dbt project's metrics or compiles a query for some, by MetricFlow.

It reads a JSON request from stdin, writes a JSON answer to stdout, opens no database, runs isolated (`python -I`),
imports nothing from the project, and is not meant to be imported.
"""

import json
import resource
import sys
from typing import Any

from metricflow.engine.metricflow_engine import MetricFlowEngine, MetricFlowQueryRequest, OutputColumnOrderMode
from metricflow.protocols.sql_client import SqlEngine
from metricflow.sql.render.duckdb_renderer import DuckDbSqlPlanRenderer
from metricflow_semantic_interfaces.references import MetricReference
from metricflow_semantics.errors.error_classes import MetricFlowException
from metricflow_semantics.model.dbt_manifest_parser import parse_manifest_from_dbt_generated_manifest
from metricflow_semantics.model.linkable_element_property import GroupByItemProperty
from metricflow_semantics.model.semantic_manifest_lookup import SemanticManifestLookup
from metricflow_semantics.model.semantics.element_filter import GroupByItemSetFilter

# What a metric has for each date and each way to it. Of a date, the smallest grain stands for all.
_NOT_LISTED = (
    GroupByItemProperty.DATE_PART,
    GroupByItemProperty.DERIVED_TIME_GRANULARITY,
    GroupByItemProperty.LOCAL_LINKED,
    GroupByItemProperty.METRIC,
)


class _Dialect:
    """What MetricFlow asks of a connection while it compiles."""

    sql_engine_type = SqlEngine.DUCKDB
    sql_plan_renderer = DuckDbSqlPlanRenderer()


def main() -> None:
    """Answer one request."""
    order = json.load(sys.stdin)
    for limit, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, order["seconds"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, order["memory_bytes"]),
    ):
        resource.setrlimit(limit, (most, most))
    try:
        lookup = SemanticManifestLookup(parse_manifest_from_dbt_generated_manifest(order["manifest"]))
        engine = MetricFlowEngine(lookup, _Dialect())  # type: ignore[arg-type]  # it runs nothing
        answer = _compile(engine, order) if order["metrics"] else _list(engine, lookup)
    except (MetricFlowException, ValueError, AssertionError) as error:
        answer = {"error": str(error).strip()[:5000] or type(error).__name__}
    except MemoryError:
        answer = {"error": "The project's semantic models need more memory than a query may use."}
    json.dump(answer, sys.stdout)


def _compile(engine: MetricFlowEngine, order: dict[str, Any]) -> dict[str, Any]:
    request = MetricFlowQueryRequest.create(
        metric_names=order["metrics"],
        group_by_names=order["by"],
        output_column_order_mode=OutputColumnOrderMode.INPUT_ORDER,
    )
    statement = engine.explain(request).sql_statement
    if statement.bind_parameter_set.param_items:
        raise ValueError("MetricFlow made a query with parameters, which cannot be run here.")
    return {"sql": statement.sql}


def _list(engine: MetricFlowEngine, lookup: SemanticManifestLookup) -> dict[str, Any]:
    texts: dict[tuple[str, str], str | None] = {}
    for model in lookup.semantic_manifest.semantic_models:
        texts |= {(model.name, one.name): one.description for one in model.dimensions}
        texts |= {(model.name, one.name): one.description for one in model.entities}
    listed = []
    for metric in engine.list_metrics(include_dimensions=False):
        found = lookup.metric_lookup.get_common_group_by_items(
            metric_references=(MetricReference(metric.name),),
            set_filter=GroupByItemSetFilter.create(any_properties_denylist=_NOT_LISTED),
        )
        by = {}
        for item in found.annotated_specs:
            grain = item.time_grain.name if item.time_grain else ""
            models = item.origin_semantic_model_references
            described = next((texts.get((one.semantic_model_name, item.element_name)) for one in models), None)
            name = item.spec.dunder_name.removesuffix(f"__{grain}") if grain else item.spec.dunder_name
            by[name] = {
                "name": name,
                "kind": item.element_type.name.lower().removesuffix("_dimension"),
                "grain": grain,
                "description": described or "",
            }
        listed.append(
            {
                "name": metric.name,
                "label": metric.label or metric.name,
                "description": metric.description or "",
                "kind": metric.type.value,
                "by": [by[name] for name in sorted(by)],
            }
        )
    return {"metrics": listed}


if __name__ == "__main__":
    main()
