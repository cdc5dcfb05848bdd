{# C = A W on cooperative matrices: f16 operands, f32 sums. Tiles of A and W lie in workgroup memory, which the sums pass through
   on their way out too. It is made of words of `vector` f16, written f32 or vectors of f32: words are copied, never computed with.
   `weights` is 2 where a gate is computed beside it: then W 0 is the gate's. #}
enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read> a: array<{{ word }}>;
{% for w in range(weights) %}
@group(0) @binding({{ w + 1 }}) var<storage, read> w_{{ w }}: array<{{ word }}>;
{% endfor %}
{% if split_k > 1 %}
@group(0) @binding({{ weights + 1 }}) var<storage, read_write> partials: array<{{ epilogue.real }}>;
{% else %}
{% set math_widths = [epilogue.width] %}
{% include "math.wgsl" %}
{% include "epilogue.wgsl" %}
{% endif %}

var<workgroup> pool: array<{{ word }}, {{ pool_words }}>;

{% set a_row = tile_k // vector %}
{% set b_row = tile_n // vector %}
{% set a_count = tile_m * a_row %}
{% set b_count = tile_k * b_row %}
{% set a_loads = (a_count + threads - 1) // threads %}
{% set b_loads = (b_count + threads - 1) // threads %}
{% set columns = n // epilogue.width %}

{% macro fetch(step) %}
{% for l in range(a_loads) %}
{% set guards %}{% if a_count % threads != 0 and loop.last %}a_index_{{ l }} < {{ a_count }}u && {% endif %}{% if ragged_m %}a_row_{{ l }} < {{ m }}u && {% endif %}{% if ragged_k %}a_k_{{ l }} + {{ step }} * {{ a_row }}u < {{ k // vector }}u && {% endif %}{% endset %}
{% if guards %}
        fetched_a_{{ l }} = {{ word }}();
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
        fetched_{{ w }}_{{ l }} = {{ word }}();
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
{% if a_count % threads == 0 or not loop.last %}
        pool[a_to_{{ l }} + {{ buffer * stage_words }}u] = fetched_a_{{ l }};
{% else %}
        if (a_index_{{ l }} < {{ a_count }}u) {
            pool[a_to_{{ l }} + {{ buffer * stage_words }}u] = fetched_a_{{ l }};
        }
{% endif %}
{% endfor %}
{% for l in range(b_loads) %}
{% for w in range(weights) %}
{% if b_count % threads == 0 or not loop.last %}
        pool[b_to_{{ l }} + {{ buffer * stage_words + w * b_words }}u] = fetched_{{ w }}_{{ l }};
{% else %}
        if (b_index_{{ l }} < {{ b_count }}u) {
            pool[b_to_{{ l }} + {{ buffer * stage_words + w * b_words }}u] = fetched_{{ w }}_{{ l }};
        }
{% endif %}
{% endfor %}
{% endfor %}
{% endmacro %}

{% set rows_of_sums = subgroup_m // unit %}
{% set columns_of_sums = subgroup_n // unit %}

{% macro multiply(buffer) %}
{% for kk in range(tile_k // unit) %}
        {
{% for i in range(rows_of_sums) %}
            let a_{{ i }} = coopLoadT<coop_mat{{ unit }}x{{ unit }}<f16, A>>(&pool[from_a + {{ buffer * stage_words + i * unit * stride_a + kk * unit // vector }}u], {{ stride_a }}u);
{% endfor %}
{% for w in range(weights) %}
{% for j in range(columns_of_sums) %}
            {
                let b = coopLoadT<coop_mat{{ unit }}x{{ unit }}<f16, B>>(&pool[from_b + {{ buffer * stage_words + w * b_words + kk * unit * stride_b + j * unit // vector }}u], {{ stride_b }}u);
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
    let a_to_{{ l }} = a_index_{{ l }} / {{ a_row }}u * {{ stride_a }}u + a_index_{{ l }} % {{ a_row }}u;
    var fetched_a_{{ l }}: {{ word }};
{% endfor %}
{% for l in range(b_loads) %}
    let b_index_{{ l }} = thread + {{ l * threads }}u;
    let b_k_{{ l }} = first_step * {{ tile_k }}u + b_index_{{ l }} / {{ b_row }}u;
    let b_column_{{ l }} = tile_column * {{ b_row }}u + b_index_{{ l }} % {{ b_row }}u;
    let b_at_{{ l }} = b_k_{{ l }} * {{ n // vector }}u + b_column_{{ l }};
    let b_to_{{ l }} = {{ a_words }}u + b_index_{{ l }} / {{ b_row }}u * {{ stride_b }}u + b_index_{{ l }} % {{ b_row }}u;
{% for w in range(weights) %}
    var fetched_{{ w }}_{{ l }}: {{ word }};
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
    let from_b = {{ a_words }}u + subgroup_column * {{ subgroup_n // vector }}u;

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

    // The sums leave in strips of {{ strip }} matrices of each subgroup.
    let strip_at = subgroup * {{ strip_words }}u;
{% set width = epilogue.width %}
{% set strip_columns = strip * unit // width %}
{% set word_floats = vector // 2 %}
{% set words_of_item = width // word_floats %}
{% for i in range(rows_of_sums) %}
{% for s in range(columns_of_sums // strip) %}
{% for w in range(weights) %}
{% for j in range(strip) %}
    coopStoreT(sum_{{ w }}_{{ i }}_{{ s * strip + j }}, &pool[strip_at + {{ w * strip_words_of_weight + j * unit // word_floats }}u], {{ strip_stride }}u);
{% endfor %}
{% endfor %}
    workgroupBarrier();
    for (var item = lane; item < {{ unit * strip_columns }}u; item += {{ subgroup_size }}u) {
        let item_row = item / {{ strip_columns }}u;
        let item_column = item % {{ strip_columns }}u;
        let row = tile_row * {{ tile_m }}u + subgroup_row * {{ subgroup_m }}u + {{ i * unit }}u + item_row;
        let column = tile_column * {{ tile_n // width }}u + subgroup_column * {{ subgroup_n // width }}u + {{ s * strip_columns }}u + item_column;
        let source = strip_at + item_row * {{ strip_stride }}u + item_column * {{ words_of_item }}u;
{% set guards %}{% if ragged_m %}row < {{ m }}u && {% endif %}{% if ragged_n %}column < {{ columns }}u && {% endif %}{% endset %}
{% if guards %}
        if ({{ guards }}true) {
{% endif %}
{% for w in range(weights) %}
            let value_{{ w }} = {{ epilogue.real }}({% for p in range(words_of_item) %}pool[source + {{ w * strip_words_of_weight + p }}u]{{ ", " if not loop.last }}{% endfor %});
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
