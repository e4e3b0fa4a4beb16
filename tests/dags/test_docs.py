"""The documentation shown on the DAGs' pages in Airflow."""

from typing import Any

import pytest

from testing.project import NAME

pytestmark = pytest.mark.dags


def test_each_dbt_task_has_its_dbt_description(dag_bag: Any) -> None:
    dag = dag_bag.dags[NAME]
    docs = {task.task_id: task.doc_md or "" for task in dag.tasks if task.task_id.startswith("transform.")}
    assert docs["transform.orders.run"].startswith("One row per order")
    assert docs["transform.orders.test"] == docs["transform.orders.run"]
    assert docs["transform.payments_reconcile_with_marts_test"].startswith("What was paid")
    assert [task_id for task_id, text in docs.items() if not text] == []


def test_each_dag_has_tags_a_description_and_a_reachable_owner(dag_bag: Any) -> None:
    for dag in dag_bag.dags.values():
        assert dag.tags and dag.description and dag.doc_md, dag.dag_id
    dag = dag_bag.dags[NAME]
    assert {task.owner for task in dag.tasks} <= dag.owner_links.keys()
