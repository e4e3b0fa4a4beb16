"""The daily pipeline in Airflow: CSV files >> tested, published marts."""

from elt import PROJECT_NAME, elt_dag, load, publish, source_freshness, transform

SOURCES = ("jaffle_shop",)  # each is a NAME_pipeline.py in include/dlt_pipelines

with elt_dag(PROJECT_NAME, schedule="@daily", description="CSV files to tested, published marts") as dag:
    models = transform()
    load(SOURCES) >> source_freshness(SOURCES) >> models >> publish(models)
