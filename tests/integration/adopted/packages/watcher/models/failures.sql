select * from {{ ref('results') }} where status in ('fail', 'error')
