{# Which tile of C a workgroup has: `tile_row`, `tile_column`. Workgroups start in the order of their x and y; `swizzle` rows of
   tiles are walked column by column, so that those which run together read the same tiles of both operands. #}
{% if swizzle > 1 %}
    let linear = group.y * {{ tiles_n }}u + group.x;
    let band = linear / {{ swizzle * tiles_n }}u;
    let inside = linear % {{ swizzle * tiles_n }}u;
{% if tiles_m % swizzle == 0 %}
    let band_rows = {{ swizzle }}u;
{% else %}
    let band_rows = min({{ swizzle }}u, {{ tiles_m }}u - band * {{ swizzle }}u);
{% endif %}
    let tile_row = band * {{ swizzle }}u + inside % band_rows;
    let tile_column = inside / band_rows;
{% else %}
    let tile_row = group.y;
    let tile_column = group.x;
{% endif %}
