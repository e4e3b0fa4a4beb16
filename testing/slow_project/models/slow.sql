{{ config(materialized='table') }}

select sum(a.range * b.range) as total from range(100000000) as a, range(100000000) as b
