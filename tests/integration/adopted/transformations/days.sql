select day from {{ ref('helpers', 'days') }} where day <= date '2026-01-07'
