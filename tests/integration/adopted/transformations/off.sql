{{ config(enabled=var('with_off', false)) }} select 1 as id
