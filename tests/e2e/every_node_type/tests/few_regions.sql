{{ config(severity='warn') }} select * from {{ ref('regions') }} where region_id > 2
