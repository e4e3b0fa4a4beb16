select * from {{ ref('helpers', 'days') }} where day is null
