"""Semantic models and metrics for a copy of the project, which has none of its own."""

import gzip
from pathlib import Path

from include.runs.artifacts import SEMANTIC_MANIFEST
from testing.project import Copy

_MODELS = "include/dbt_project/models/marts/"
_FILES = {
    "days.sql": "select cast(range as date) as day from range(date '2025-01-01', date '2026-01-01', interval 1 day)\n",
    "metrics.yml": """
models:
  - name: days
    description: One row per day.
    config: {contract: {enforced: false}}
    time_spine: {standard_granularity_column: day}
    columns:
      - {name: day, description: The day., granularity: day}

semantic_models:
  - name: orders
    model: ref('orders')
    defaults: {agg_time_dimension: order_date}
    entities:
      - {name: order, type: primary, expr: order_id}
      - {name: customer, type: foreign, expr: customer_id}
    dimensions:
      - {name: order_date, type: time, type_params: {time_granularity: day}}
      - {name: status, type: categorical, description: "Where the order is <b>now</b>."}
      - {name: has_coupon, type: categorical, expr: coupon_amount > 0}
    measures:
      - {name: revenue, agg: sum, expr: amount}
      - {name: orders, agg: count, expr: order_id}
  - name: customers
    model: ref('customers')
    entities:
      - {name: customer, type: primary, expr: customer_id}
    dimensions:
      - {name: first_name, type: categorical}
      - {name: initial, type: categorical, expr: "upper(left(last_name, 1))"}
  - name: payments
    model: ref('stg_payments')
    primary_entity: payment
    entities:
      - {name: order, type: foreign, expr: order_id}
    dimensions:
      - {name: payment_method, type: categorical}
      - {name: known_on, type: time, expr: "date '2025-01-01'", type_params: {time_granularity: day}}
    measures:
      - {name: paid, agg: sum, expr: amount, agg_time_dimension: known_on}

metrics:
  - {name: revenue, label: Revenue, description: What orders brought., type: simple, type_params: {measure: revenue}}
  - {name: orders, label: Orders, type: simple, type_params: {measure: orders}}
  - {name: paid, label: Paid, type: simple, type_params: {measure: paid}}
  - name: average_order
    label: Average order
    type: ratio
    type_params: {numerator: revenue, denominator: orders}
  - name: revenue_so_far
    label: Revenue so far
    type: cumulative
    type_params: {measure: revenue}
  - name: orders_of_a_name
    label: Orders of a name
    type: simple
    type_params: {measure: orders}
    filter: "{{ Dimension('customer__first_name') }} = 'Michael'"
""",
}


def with_metrics(root: Path) -> Copy:
    """Return a copy of the project that declares metrics."""
    copy = Copy(root)
    for name, text in _FILES.items():
        copy.write(_MODELS + name, text)
    return copy


def declare(run_artifacts: Path, root: Path) -> None:
    """Keep the metrics with a run, as publish would have if the project had declared them."""
    copy = with_metrics(root)
    copy.run("python -m include.runs.manifest")
    made = copy.file("include/dbt_project/target/pipeline/duckdb/semantic_manifest.json")
    (run_artifacts / SEMANTIC_MANIFEST).write_bytes(gzip.compress(made.read_bytes()))
