# The same Python as requirements.txt, the tests and CI.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
COPY requirements/uv.txt requirements/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/uv.txt \
 && python -m venv --without-pip /opt/venv
# Such as `ducklake`, `postgres` or `ducklake serve`: what else to install, by its lock file.
ARG EXTRA=
COPY requirements.txt .
COPY requirements/*.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --compile-bytecode --link-mode=copy --python /opt/venv/bin/python \
        -r requirements.txt $(for name in $EXTRA; do echo "-r requirements/$name.txt"; done)

# Apache Superset, for compose's profile `bi`: an image of its own.
FROM ${PYTHON} AS bi
COPY requirements/uv.txt requirements/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/uv.txt \
 && python -m venv --without-pip /opt/venv && useradd --uid 50000 --create-home airflow && install -d -o airflow -g airflow /var/lib/bi
COPY requirements/bi.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --compile-bytecode --link-mode=copy --python /opt/venv/bin/python -r requirements/bi.txt
COPY --chmod=755 deploy/with_secrets.sh /usr/local/bin/with-secrets
COPY bi /opt/bi
USER airflow
ENV BI_HOME=/var/lib/bi BI_HOST=0.0.0.0
ENTRYPOINT ["with-secrets"]
CMD ["/opt/venv/bin/python", "/opt/bi/serve.py"]

FROM ${PYTHON}
LABEL org.opencontainers.image.title="jaffle-shop-elt" \
      org.opencontainers.image.description="CSV files to tested, published marts: Airflow with dlt, dbt and DuckDB" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"
# Volumes inherit their owner from these folders.
RUN useradd --uid 50000 --create-home airflow \
 && install -d -o airflow -g airflow /opt/elt/data /opt/elt/logs /opt/elt/files
COPY --from=packages /opt/venv /opt/venv
WORKDIR /opt/elt
# At run time only /tmp and the volumes are writable.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/elt \
    PYTHONUNBUFFERED=1 \
    HOME=/home/airflow \
    AIRFLOW_HOME=/tmp/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/elt/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/elt/plugins \
    AIRFLOW__LOGGING__BASE_LOG_FOLDER=/opt/elt/logs \
    DLT_DATA_DIR=/tmp/dlt \
    DLT_PROJECT_DIR=/opt/elt/include/dlt_pipelines \
    WAREHOUSE_DIR=/opt/elt/data
# DuckDB's extensions, such as httpfs for encryption; they are never loaded from folders writable at run time.
RUN python -c "import duckdb, duckdb_extensions as d, pkgutil; start = 'duckdb_extension_'; \
    [d.import_extension(m.name.removeprefix(start), con=duckdb.connect()) for m in pkgutil.iter_modules() if m.name.startswith(start)]"
COPY --chmod=755 deploy/with_secrets.sh /usr/local/bin/with-secrets
COPY airflow.env pools.json dbt_build_graph.py ./
COPY deploy/init.py deploy/sso.py deploy/
COPY include include
# Parse as the tasks do, WAREHOUSE_DIR included; otherwise dbt would not reuse the result.
RUN export $(grep ^WAREHOUSE_NAME= airflow.env) && export DO_NOT_TRACK=1 DBT_LOG_LEVEL_FILE=none && cd include/dbt_project \
 && if [ -e packages.yml ] || [ -e dependencies.yml ]; then dbt --quiet deps; fi \
 && python -m include.runs.manifest && chmod -R a+rX .
COPY docs/runbook.md docs/
COPY plugins plugins
COPY dags dags
# At run time Python cannot keep bytecode, and each task would compile these again.
RUN python -m compileall -q dags include plugins
# Which code this is, for each release that it publishes. Last: it changes with each build.
ARG SOURCE_COMMIT= SOURCE_BRANCH=
ENV SOURCE_COMMIT=${SOURCE_COMMIT} SOURCE_BRANCH=${SOURCE_BRANCH}
USER airflow
ENTRYPOINT ["with-secrets"]
