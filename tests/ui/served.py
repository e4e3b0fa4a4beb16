"""Serve the Warehouse section alone: `python served.py PORT`. Only the login is replaced: a header names the user."""

import logging
import sys

import uvicorn
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.common.dagbag import create_dag_bag
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI, Request
from warehouse_ui.app import create_app


def user(request: Request) -> SimpleAuthManagerUser:
    name = request.headers.get("x-user", "admin")
    return SimpleAuthManagerUser(username=name, role=name)


def main(port: int) -> None:
    logging.disable(logging.INFO)
    app = create_app("/warehouse", "")
    app.dependency_overrides[get_user] = user
    root = FastAPI()
    root.mount("/warehouse", app)
    init_auth_manager(root)
    root.state.dag_bag = app.state.dag_bag = create_dag_bag()
    uvicorn.run(root, host="127.0.0.1", port=port, log_level="warning")


main(int(sys.argv[1]))
