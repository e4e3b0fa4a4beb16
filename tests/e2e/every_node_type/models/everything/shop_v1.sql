select region_id as id from {{ ref('regions') }}
