"""Airflow imports this module in each of its processes, as soon as its settings are read.

An Airflow process makes millions of objects as it starts, and keeps them. With its default thresholds, Python's garbage
collector takes a third of the start to look through them again and again.

With `OTEL_EXPORTER_OTLP_ENDPOINT`, metrics and traces go there (docs/deployment.md).
"""

import gc
import os

from patches import sqlite_savepoint

__all__: list[str] = []  # Airflow takes over what is named here

# Airflow replaces it in a task's environment, so that tasks do not use it; cleaning it is one (dags/maintenance.py).
METADATA = os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")

gc.set_threshold(50_000, 20, 100)
sqlite_savepoint.apply()

if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
    os.environ.setdefault("AIRFLOW__METRICS__OTEL_ON", "True")
    os.environ.setdefault("AIRFLOW__TRACES__OTEL_ON", "True")
    # Airflow sends metrics over HTTP by default, traces over gRPC.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    _over_http = os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] != "grpc"
    os.environ.setdefault("OTEL_TRACES_EXPORTER", "otlp_proto_http" if _over_http else "otlp_proto_grpc")
    os.environ.setdefault("OTEL_SERVICE_NAME", os.environ.get("WAREHOUSE_NAME") or "airflow")
