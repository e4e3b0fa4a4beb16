"""Read the published warehouse and its history: tables, tests, run artifacts, queries.

Read-only: nothing here opens the working database, and no database handle outlives the call that opened it.
"""
