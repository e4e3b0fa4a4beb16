select * from {{ ref('sales_cleaned') }} where amount > {{ var('smallest') }}
