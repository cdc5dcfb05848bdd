{# C = A W on cooperative matrices: f16 operands, f32 sums. Tiles of A and W lie in workgroup memory in words of up to four f16:
   NVIDIA's compiler fails on matrices of f16 in memory of another type. The sums pass through workgroup memory on their way out.
   `weights` is 2 where a gate is computed beside it: then W 0 is the gate's. #}
enable f16;
enable wgpu_cooperative_matrix;

{% if vector == 8 %}
// 16 bytes that are loaded at once.
struct Eight {
    @align(16) low: vec4<f16>,
    high: vec4<f16>,
}
{% set load = "Eight" %}
{% else %}
{% set load = word %}
{% endif %}

@group(0) @binding(0) var<storage, read> a: array<{{ load }}>;
{% for w in range(weights) %}
@group(0) @binding({{ w + 1 }}) var<storage, read> w_{{ w }}: array<{{ load }}>;
{% endfor %}
{% if split_k > 1 %}
@group(0) @binding({{ weights + 1 }}) var<storage, read_write> partials: array<{{ epilogue.real }}>;
{% else %}
{% set math_widths = [epilogue.width] %}
{% include "math.wgsl" %}
{% include "epilogue.wgsl" %}
{% endif %}

var<workgroup> pool: array<{{ word }}, {{ stages * stage_words }}>;
var<workgroup> strips: array<{{ epilogue.real }}, {{ threads // subgroup_size * strip_words }}>;

{% set a_row = tile_k // vector %}
{# Loads of a row of W's tile: of [k, n], or transposed of [n, k]. #}
{% set b_row = (tile_k if transpose else tile_n) // vector %}
{% set a_count = tile_m * a_row %}
{% set b_count = tile_k * tile_n // vector %}
{% set b_step = tile_k // vector if transpose else tile_k * n // vector %}
{% set a_loads = (a_count + threads - 1) // threads %}
{% set b_loads = (b_count + threads - 1) // threads %}
{% set columns = n // epilogue.width %}

{# Sets of registers for tiles under way. #}
{% set sets = [prefetch, 1] | max %}

{% macro fetch(set, step) %}
{% for l in range(a_loads) %}
{% set guards %}{% if a_count % threads != 0 and loop.last %}a_index_{{ l }} < {{ a_count }}u && {% endif %}{% if ragged_m %}a_row_{{ l }} < {{ m }}u && {% endif %}{% if ragged_k %}a_k_{{ l }} + {{ step }} * {{ a_row }}u < {{ k // vector }}u && {% endif %}{% endset %}
{% if guards %}
        fetched_{{ set }}_a_{{ l }} = {{ load }}();
        if ({{ guards }}true) {
            fetched_{{ set }}_a_{{ l }} = a[a_at_{{ l }} + {{ step }} * {{ a_row }}u];
        }
{% else %}
        fetched_{{ set }}_a_{{ l }} = a[a_at_{{ l }} + {{ step }} * {{ a_row }}u];
{% endif %}
{% endfor %}
{% for l in range(b_loads) %}
{% set guards %}{% if b_count % threads != 0 and loop.last %}b_index_{{ l }} < {{ b_count }}u && {% endif %}{% if ragged_n %}b_column_{{ l }} < {{ n if transpose else n // vector }}u && {% endif %}{% if ragged_k %}b_k_{{ l }} + {{ step }} * {{ tile_k // vector if transpose else tile_k }}u < {{ k // vector if transpose else k }}u && {% endif %}{% endset %}
{% for w in range(weights) %}
{% if guards %}
        fetched_{{ set }}_{{ w }}_{{ l }} = {{ load }}();
        if ({{ guards }}true) {
            fetched_{{ set }}_{{ w }}_{{ l }} = w_{{ w }}[b_at_{{ l }} + {{ step }} * {{ b_step }}u];
        }
{% else %}
        fetched_{{ set }}_{{ w }}_{{ l }} = w_{{ w }}[b_at_{{ l }} + {{ step }} * {{ b_step }}u];
{% endif %}
{% endfor %}
{% endfor %}
{% endmacro %}

{% macro put(at, value) %}
{% if vector == 8 %}
            pool[{{ at }}] = {{ value }}.low;
            pool[{{ at }} + 1u] = {{ value }}.high;
{% else %}
            pool[{{ at }}] = {{ value }};
{% endif %}
{% endmacro %}

{% macro keep(set, buffer) %}
{% for l in range(a_loads) %}
{% set whole = a_count % threads == 0 or not loop.last %}
{% if not whole %}
        if (a_index_{{ l }} < {{ a_count }}u) {
{% endif %}
{{ put("a_to_" ~ l ~ " + " ~ buffer * stage_words ~ "u", "fetched_" ~ set ~ "_a_" ~ l) }}
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
{{ put("b_to_" ~ l ~ " + " ~ (buffer * stage_words + w * b_words) ~ "u", "fetched_" ~ set ~ "_" ~ w ~ "_" ~ l) }}
{% endfor %}
{% if not whole %}
        }
{% endif %}
{% endfor %}
{% endmacro %}

{% set rows_of_sums = subgroup_m // unit %}
{% set columns_of_sums = subgroup_n // unit %}

{% macro multiply(buffer) %}
{% for kk in range(tile_k // unit) %}
        {
{% for i in range(rows_of_sums) %}
            let a_{{ i }} = coopLoadT<coop_mat{{ unit }}x{{ unit }}<f16, A>>(&pool[from_a + {{ buffer * stage_words + i * unit * stride_a + kk * unit // word_elements }}u], {{ stride_a }}u);
{% endfor %}
{% for w in range(weights) %}
{% for j in range(columns_of_sums) %}
            {
{% set b_matrix = (j * unit * stride_b + kk * unit // word_elements) if transpose else (kk * unit * stride_b + j * unit // word_elements) %}
                let b = {{ "coopLoad" if transpose else "coopLoadT" }}<coop_mat{{ unit }}x{{ unit }}<f16, B>>(&pool[from_b + {{ buffer * stage_words + w * b_words + b_matrix }}u], {{ stride_b }}u);
{% for i in range(rows_of_sums) %}
                sum_{{ w }}_{{ i }}_{{ j }} = coopMultiplyAdd(a_{{ i }}, b, sum_{{ w }}_{{ i }}_{{ j }});
{% endfor %}
            }
{% endfor %}
{% endfor %}
        }
{% endfor %}
{% endmacro %}

@compute @workgroup_size({{ threads }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
{% include "matmul-order.wgsl" %}
    let subgroup_row = subgroup / {{ tile_n // subgroup_n }}u;
    let subgroup_column = subgroup % {{ tile_n // subgroup_n }}u;
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
    let a_to_{{ l }} = a_index_{{ l }} / {{ a_row }}u * {{ stride_a }}u + a_index_{{ l }} % {{ a_row }}u{% if vector == 8 %} * 2u{% endif %};
{% for set in range(sets) %}
    var fetched_{{ set }}_a_{{ l }}: {{ load }};
{% endfor %}
{% endfor %}
{% for l in range(b_loads) %}
    let b_index_{{ l }} = thread + {{ l * threads }}u;
{% if transpose %}
    let b_k_{{ l }} = first_step * {{ b_row }}u + b_index_{{ l }} % {{ b_row }}u;
    let b_column_{{ l }} = tile_column * {{ tile_n }}u + b_index_{{ l }} / {{ b_row }}u;
    let b_at_{{ l }} = b_column_{{ l }} * {{ k // vector }}u + b_k_{{ l }};
{% else %}
    let b_k_{{ l }} = first_step * {{ tile_k }}u + b_index_{{ l }} / {{ b_row }}u;
    let b_column_{{ l }} = tile_column * {{ b_row }}u + b_index_{{ l }} % {{ b_row }}u;
    let b_at_{{ l }} = b_k_{{ l }} * {{ n // vector }}u + b_column_{{ l }};
{% endif %}
    let b_to_{{ l }} = {{ a_words }}u + b_index_{{ l }} / {{ b_row }}u * {{ stride_b }}u + b_index_{{ l }} % {{ b_row }}u{% if vector == 8 %} * 2u{% endif %};
{% for set in range(sets) %}
{% for w in range(weights) %}
    var fetched_{{ set }}_{{ w }}_{{ l }}: {{ load }};
{% endfor %}
{% endfor %}
{% endfor %}
{% for w in range(weights) %}
{% for i in range(rows_of_sums) %}
{% for j in range(columns_of_sums) %}
    var sum_{{ w }}_{{ i }}_{{ j }} = coop_mat{{ unit }}x{{ unit }}<f32, C>();
{% endfor %}
{% endfor %}
{% endfor %}
    let from_a = subgroup_row * {{ subgroup_m * stride_a }}u;
    let from_b = {{ a_words }}u + subgroup_column * {{ subgroup_n * stride_b if transpose else subgroup_n // word_elements }}u;

{% if stages == 2 or prefetch > 0 %}
{% for set in range(sets) %}
{% if set > 0 %}
    if ({{ set }}u < steps) {
{% else %}
    {
{% endif %}
{{ fetch(set, set ~ "u") }}
    }
{% endfor %}
{% endif %}
{% if stages == 2 %}
    {
{{ keep(0, 0) }}
    }
    workgroupBarrier();
    // Two steps at a time, so that what lies where is known here.
    for (var step = 0u; step < steps; step += 2u) {
{% for buffer in range(2) %}
{% if buffer == 1 %}
        if (step + 1u >= steps) {
            break;
        }
{% endif %}
        if (step + {{ buffer + sets }}u < steps) {
{{ fetch(buffer % sets, "(step + " ~ (buffer + sets) ~ "u)") }}
{% if prefetch == 0 %}
{{ keep(0, 1 - buffer) }}
{% endif %}
        }
{{ multiply(buffer) }}
{% if prefetch > 0 %}
        if (step + {{ buffer + 1 }}u < steps) {
{{ keep((buffer + 1) % sets, 1 - buffer) }}
        }
{% endif %}
        workgroupBarrier();
{% endfor %}
    }
{% else %}
    for (var step = 0u; step < steps; step += {{ sets }}u) {
{% for set in range(sets) %}
{% if set > 0 %}
        if (step + {{ set }}u >= steps) {
            break;
        }
{% endif %}
{% if prefetch == 0 %}
{{ fetch(0, "step") }}
{% endif %}
{{ keep(set, 0) }}
        workgroupBarrier();
{% if prefetch > 0 %}
        if (step + {{ set + sets }}u < steps) {
{{ fetch(set, "(step + " ~ (set + sets) ~ "u)") }}
        }
{% endif %}
{{ multiply(0) }}
        workgroupBarrier();
{% endfor %}
    }
{% endif %}

    // The sums leave in strips of {{ strip }} matrices of each subgroup.
{% set width = epilogue.width %}
{% set strip_columns = strip * unit // width %}
    let strip_at = subgroup * {{ strip_words }}u;
{% for i in range(rows_of_sums) %}
{% for s in range(columns_of_sums // strip) %}
{% for w in range(weights) %}
{% for j in range(strip) %}
    coopStoreT(sum_{{ w }}_{{ i }}_{{ s * strip + j }}, &strips[strip_at + {{ w * unit * strip_stride + j * unit // width }}u], {{ strip_stride }}u);
{% endfor %}
{% endfor %}
    workgroupBarrier();
    for (var item = lane; item < {{ unit * strip_columns }}u; item += {{ subgroup_size }}u) {
        let item_row = item / {{ strip_columns }}u;
        let item_column = item % {{ strip_columns }}u;
        let row = tile_row * {{ tile_m }}u + subgroup_row * {{ subgroup_m }}u + {{ i * unit }}u + item_row;
        let column = tile_column * {{ tile_n // width }}u + subgroup_column * {{ subgroup_n // width }}u + {{ s * strip_columns }}u + item_column;
        let source = strip_at + item_row * {{ strip_stride }}u + item_column;
{% set guards %}{% if ragged_m %}row < {{ m }}u && {% endif %}{% if ragged_n %}column < {{ columns }}u && {% endif %}{% endset %}
{% if guards %}
        if ({{ guards }}true) {
{% endif %}
{% for w in range(weights) %}
            let value_{{ w }} = strips[source + {{ w * unit * strip_stride }}u];
{% endfor %}
{% if split_k > 1 %}
{% for w in range(weights) %}
            partials[(group.z * {{ weights }}u + {{ w }}u) * {{ m * columns }}u + row * {{ columns }}u + column] = value_{{ w }};
{% endfor %}
{% else %}
            finish(row, column, {% for w in range(weights) %}value_{{ w }}{{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% if guards %}
        }
{% endif %}
    }
{% if not loop.last or i + 1 < rows_of_sums %}
    workgroupBarrier();
{% endif %}
{% endfor %}
{% endfor %}
}
