{{ config(schema='marts', materialized='table') }} select 1 as id
