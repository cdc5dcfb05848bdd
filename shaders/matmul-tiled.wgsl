{# C = A W: a tile of C for each workgroup, a register tile for each invocation, tiles of A (transposed) and W in workgroup memory as
   f32. `weights` is 2 where a gate is computed beside it: then W 0 is the gate's. #}
{% macro real(width) %}{% if width == 1 %}f32{% else %}vec{{ width }}<f32>{% endif %}{% endmacro %}
{% macro lane(width, index) %}{% if width > 1 %}[{{ index }}]{% endif %}{% endmacro %}
{% if half %}
enable f16;

{% endif %}
@group(0) @binding(0) var<storage, read> a: array<{{ load }}>;
{% for w in range(weights) %}
@group(0) @binding({{ w + 1 }}) var<storage, read> w_{{ w }}: array<{{ load }}>;
{% endfor %}
{% if split_k > 1 %}
@group(0) @binding({{ weights + 1 }}) var<storage, read_write> partials: array<{{ real(vector) }}>;
{% else %}
{% set math_widths = [vector] %}
{% include "math.wgsl" %}
{% include "epilogue.wgsl" %}
{% endif %}

{# Rows of the transposed A are one chunk longer than they need to be: its columns then start in different banks. #}
{% set stride_a = tile_m // chunk_m + 1 %}
{% set stride_b = tile_n // chunk_n %}
var<workgroup> tile_a: array<{{ real(chunk_m) }}, {{ stages * tile_k * stride_a }}>;
{% for w in range(weights) %}
var<workgroup> tile_{{ w }}: array<{{ real(chunk_n) }}, {{ stages * tile_k * stride_b }}>;
{% endfor %}

{% set a_row = tile_k // vector %}
{% set b_row = tile_n // vector %}
{% set a_count = tile_m * a_row %}
{% set b_count = tile_k * b_row %}
{% set a_loads = (a_count + threads - 1) // threads %}
{% set b_loads = (b_count + threads - 1) // threads %}

{% macro fetch(step) %}
{% for l in range(a_loads) %}
{% set guards %}{% if a_count % threads != 0 and loop.last %}a_index_{{ l }} < {{ a_count }}u && {% endif %}{% if ragged_m %}a_row_{{ l }} < {{ m }}u && {% endif %}{% if ragged_k %}a_k_{{ l }} + {{ step }} * {{ a_row }}u < {{ k // vector }}u && {% endif %}{% endset %}
{% if guards %}
        fetched_a_{{ l }} = {{ load }}();
        if ({{ guards }}true) {
            fetched_a_{{ l }} = a[a_at_{{ l }} + {{ step }} * {{ a_row }}u];
        }
{% else %}
        fetched_a_{{ l }} = a[a_at_{{ l }} + {{ step }} * {{ a_row }}u];
{% endif %}
{% endfor %}
{% for l in range(b_loads) %}
{% set guards %}{% if b_count % threads != 0 and loop.last %}b_index_{{ l }} < {{ b_count }}u && {% endif %}{% if ragged_n %}b_column_{{ l }} < {{ n // vector }}u && {% endif %}{% if ragged_k %}b_k_{{ l }} + {{ step }} * {{ tile_k }}u < {{ k }}u && {% endif %}{% endset %}
{% for w in range(weights) %}
{% if guards %}
        fetched_{{ w }}_{{ l }} = {{ load }}();
        if ({{ guards }}true) {
            fetched_{{ w }}_{{ l }} = w_{{ w }}[b_at_{{ l }} + {{ step }} * {{ tile_k * n // vector }}u];
        }
{% else %}
        fetched_{{ w }}_{{ l }} = w_{{ w }}[b_at_{{ l }} + {{ step }} * {{ tile_k * n // vector }}u];
{% endif %}
{% endfor %}
{% endfor %}
{% endmacro %}

{% macro keep(buffer) %}
{% for l in range(a_loads) %}
{% set whole = a_count % threads == 0 or not loop.last %}
{% if not whole %}
        if (a_index_{{ l }} < {{ a_count }}u) {
{% endif %}
        {
            let value = {{ real(vector) }}(fetched_a_{{ l }});
{% for j in range(vector) %}
            tile_a[a_to_{{ l }} + {{ (buffer * tile_k + j) * stride_a }}u]{% if chunk_m > 1 %}[a_lane_{{ l }}]{% endif %} = value{{ lane(vector, j) }};
{% endfor %}
        }
{% if not whole %}
        }
{% endif %}
{% endfor %}
{% for l in range(b_loads) %}
{% set whole = b_count % threads == 0 or not loop.last %}
{% if not whole %}
        if (b_index_{{ l }} < {{ b_count }}u) {
{% endif %}
{% for w in range(weights) %}
{% if vector == chunk_n %}
        tile_{{ w }}[b_to_{{ l }} + {{ buffer * tile_k * stride_b }}u] = {{ real(vector) }}(fetched_{{ w }}_{{ l }});
{% else %}
{% for j in range(vector) %}
        tile_{{ w }}[b_to_{{ l }} + {{ buffer * tile_k * stride_b }}u][b_lane_{{ l }} + {{ j }}u] = f32(fetched_{{ w }}_{{ l }}{{ lane(vector, j) }});
{% endfor %}
{% endif %}
{% endfor %}
{% if not whole %}
        }
{% endif %}
{% endfor %}
{% endmacro %}

{% set threads_m = tile_m // thread_m %}
{% set threads_n = tile_n // thread_n %}
{% set columns = n // vector %}
{% macro multiply(buffer) %}
{% for kk in range(tile_k) %}
        {
{% for c in range(thread_m // chunk_m) %}
            let a_{{ c }} = tile_a[thread_row + {{ (buffer * tile_k + kk) * stride_a + c * threads_m }}u];
{% endfor %}
{% for w in range(weights) %}
{% for j in range(thread_n // chunk_n) %}
            let b_{{ w }}_{{ j }} = tile_{{ w }}[thread_column + {{ (buffer * tile_k + kk) * stride_b + j * threads_n }}u];
{% endfor %}
{% for i in range(thread_m) %}
{% for j in range(thread_n // chunk_n) %}
            sum_{{ w }}_{{ i }}_{{ j }} = fma({{ real(chunk_n) }}(a_{{ i // chunk_m }}{{ lane(chunk_m, i % chunk_m) }}), b_{{ w }}_{{ j }}, sum_{{ w }}_{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
{% endfor %}
        }
{% endfor %}
{% endmacro %}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
{% include "matmul-order.wgsl" %}
    // Neighbours form a block of {{ block_m }}x{{ block_n }}: that reads fewer different words than a row of them.
    let block = thread / {{ block_m * block_n }}u;
    let in_block = thread % {{ block_m * block_n }}u;
    let thread_row = block / {{ threads_n // block_n }}u * {{ block_m }}u + in_block / {{ block_n }}u;
    let thread_column = block % {{ threads_n // block_n }}u * {{ block_n }}u + in_block % {{ block_n }}u;
{% if split_k > 1 %}
    let first_step = group.z * {{ steps }}u;
    let steps = min({{ steps }}u, {{ (k + tile_k - 1) // tile_k }}u - first_step);
{% else %}
    let first_step = 0u;
    let steps = {{ steps }}u;
{% endif %}

{% for l in range(a_loads) %}
    let a_index_{{ l }} = thread + {{ l * threads }}u;
    let a_row_{{ l }} = tile_row * {{ tile_m }}u + a_index_{{ l }} / {{ a_row }}u;
    let a_k_{{ l }} = first_step * {{ a_row }}u + a_index_{{ l }} % {{ a_row }}u;
    let a_at_{{ l }} = a_row_{{ l }} * {{ k // vector }}u + a_k_{{ l }};
    let a_to_{{ l }} = a_index_{{ l }} % {{ a_row }}u * {{ vector * stride_a }}u + a_index_{{ l }} / {{ a_row * chunk_m }}u;
{% if chunk_m > 1 %}
    let a_lane_{{ l }} = a_index_{{ l }} / {{ a_row }}u % {{ chunk_m }}u;
{% endif %}
    var fetched_a_{{ l }}: {{ load }};
{% endfor %}
{% for l in range(b_loads) %}
    let b_index_{{ l }} = thread + {{ l * threads }}u;
    let b_k_{{ l }} = first_step * {{ tile_k }}u + b_index_{{ l }} / {{ b_row }}u;
    let b_column_{{ l }} = tile_column * {{ b_row }}u + b_index_{{ l }} % {{ b_row }}u;
    let b_at_{{ l }} = b_k_{{ l }} * {{ columns }}u + b_column_{{ l }};
    let b_to_{{ l }} = b_index_{{ l }} / {{ b_row }}u * {{ stride_b }}u + b_index_{{ l }} % {{ b_row }}u{% if vector != chunk_n %} / {{ chunk_n // vector }}u{% endif %};
{% if vector != chunk_n %}
    let b_lane_{{ l }} = b_index_{{ l }} % {{ chunk_n // vector }}u * {{ vector }}u;
{% endif %}
{% for w in range(weights) %}
    var fetched_{{ w }}_{{ l }}: {{ load }};
{% endfor %}
{% endfor %}
{% for w in range(weights) %}
{% for i in range(thread_m) %}
{% for j in range(thread_n // chunk_n) %}
    var sum_{{ w }}_{{ i }}_{{ j }} = {{ real(chunk_n) }}();
{% endfor %}
{% endfor %}
{% endfor %}

{% if stages == 2 %}
    {
{{ fetch("0u") }}
{{ keep(0) }}
    }
    workgroupBarrier();
    // Two steps at a time, so that what lies where is known here.
    for (var step = 0u; step < steps; step += 2u) {
{% for buffer in range(2) %}
{% set next = "(step + " ~ (buffer + 1) ~ "u)" %}
{% if buffer == 1 %}
        if (step + 1u >= steps) {
            break;
        }
{% endif %}
        if ({{ next }} < steps) {
{{ fetch(next) }}
{% if not prefetch %}
{{ keep(1 - buffer) }}
{% endif %}
        }
{{ multiply(buffer) }}
{% if prefetch %}
        if ({{ next }} < steps) {
{{ keep(1 - buffer) }}
        }
{% endif %}
        workgroupBarrier();
{% endfor %}
    }
{% else %}
{% if prefetch %}
    {
{{ fetch("0u") }}
    }
{% endif %}
    for (var step = 0u; step < steps; step++) {
{% if not prefetch %}
{{ fetch("step") }}
{% endif %}
{{ keep(0) }}
        workgroupBarrier();
{% if prefetch %}
        if (step + 1u < steps) {
{{ fetch("(step + 1u)") }}
        }
{% endif %}
{{ multiply(0) }}
        workgroupBarrier();
    }
{% endif %}

{% for i in range(thread_m) %}
    {
        let row = tile_row * {{ tile_m }}u + {{ i // chunk_m * threads_m * chunk_m + i % chunk_m }}u + thread_row * {{ chunk_m }}u;
{% if ragged_m %}
        if (row < {{ m }}u) {
{% endif %}
{% for j in range(thread_n // chunk_n) %}
{% for p in range(chunk_n // vector) %}
        {
            let column = tile_column * {{ b_row }}u + {{ j * threads_n * chunk_n // vector + p }}u + thread_column * {{ chunk_n // vector }}u;
{% if ragged_n %}
            if (column < {{ columns }}u) {
{% endif %}
{% if split_k > 1 %}
{% for w in range(weights) %}
                partials[(group.z * {{ weights }}u + {{ w }}u) * {{ m * columns }}u + row * {{ columns }}u + column] = sum_{{ w }}_{{ i }}_{{ j }}{{ pieces[p] }};
{% endfor %}
{% else %}
                finish(row, column, {% for w in range(weights) %}sum_{{ w }}_{{ i }}_{{ j }}{{ pieces[p] }}{{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% if ragged_n %}
            }
{% endif %}
        }
{% endfor %}
{% endfor %}
{% if ragged_m %}
        }
{% endif %}
    }
{% endfor %}
}
