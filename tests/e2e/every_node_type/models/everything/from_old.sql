select shop.id, packaged.id as packaged_id, scored.score
from {{ ref('shop', v=1) }} as shop
left join {{ ref('cents', 'packaged') }} as packaged on packaged.id = shop.id
left join {{ ref('scored') }} as scored on scored.order_id = shop.id + 50
