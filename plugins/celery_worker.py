"""Celery's configuration for workers on other machines: `AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS` (docs/scaling.md).

CeleryExecutor ignores `mp_forkserver_preload`. Its workers import the same modules as they start, so that task
processes fork from one that is warm, as with the LocalExecutor.
"""

from airflow.configuration import conf
from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

CELERY_CONFIG = {
    **DEFAULT_CELERY_CONFIG,
    "imports": conf.get("scheduler", "mp_forkserver_preload").split(","),
}
