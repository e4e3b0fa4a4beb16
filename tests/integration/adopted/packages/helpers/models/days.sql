select cast('2026-01-01' as date) + cast(i as integer) as day from range(31) as r(i)
