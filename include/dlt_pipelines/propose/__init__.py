"""Proposals for files that are to become a source: contracts, dbt's description of it, staging models with tests.

    files ──detect──▶ encoding, layout ──▶ types, keys, relationships ──▶ preview ──▶ Python, YAML, SQL

Detection only proposes: all rows are then read by the parser of the loads, with the proposed contract.
"""

from include.dlt_pipelines.propose.add import add
from include.dlt_pipelines.propose.compare import compare
from include.dlt_pipelines.propose.preview import preview
from include.dlt_pipelines.propose.table import Header, ProposalError, Table, propose

__all__ = ["Header", "ProposalError", "Table", "add", "compare", "preview", "propose"]
