"""Celery's configuration for workers on other machines: `AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS` (docs/scaling.md).

CeleryExecutor ignores `mp_forkserver_preload`. Its workers import the same modules as they start, so that task
processes fork from one that is warm, as with the LocalExecutor.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazily: Airflow's plugin loader imports this file everywhere, and only workers have the provider.
    if name != "CELERY_CONFIG":
        raise AttributeError(name)
    from airflow.configuration import conf
    from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

    modules = conf.get("scheduler", "mp_forkserver_preload").split(",")
    return {**DEFAULT_CELERY_CONFIG, "imports": modules}
