select * from {{ ref('by_shop') }} order by amount desc limit 1
