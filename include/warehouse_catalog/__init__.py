"""What the published warehouse holds and how it came about: tables, tests, artifacts of runs, queries.

Plain reading: nothing in here opens the working database, and no database handle outlives the call that opened it.
"""
