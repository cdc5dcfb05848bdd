{# C = A W for few rows: each invocation has `vector` columns and every `slices`-th step of K, `unroll` rows of W in flight.
   Columns beyond the last are those of the last again, and are not stored. `weights` is 2 where a gate is computed beside it:
   then W 0 is the gate's. #}
{% if half %}
enable f16;

{% endif %}
{% set width = epilogue.width %}
{% set pieces = vector // width %}
{% set real = epilogue.real %}
@group(0) @binding(0) var<storage, read> a: array<{{ load_a }}>;
{% for w in range(weights) %}
@group(0) @binding({{ w + 1 }}) var<storage, read> w_{{ w }}: array<{{ load }}>;
{% endfor %}
{% if split_k > 1 %}
@group(0) @binding({{ weights + 1 }}) var<storage, read_write> partials: array<{{ real }}>;
{% else %}
{% set math_widths = [width] %}
{% include "math.wgsl" %}
{% include "epilogue.wgsl" %}
{% endif %}

{% set lanes = threads // slices %}
{% set row_words = n // vector %}
{% set columns = n // width %}
{% if slices > 1 %}
var<workgroup> sums: array<{{ real }}, {{ weights * m * pieces * threads }}>;
{% endif %}

{% macro piece(name, p) %}{% if vector == 8 %}vec4<f32>(unpack2x16float({{ name }}.{{ "xz"[p] }}), unpack2x16float({{ name }}.{{ "yw"[p] }})){% else %}{{ real }}({{ name }}){% endif %}{% endmacro %}

{% macro load_weights(j) %}
{% for w in range(weights) %}
            let row_{{ w }}_{{ j }} = w_{{ w }}[at + {{ j * row_words }}u];
{% endfor %}
{% endmacro %}

{% macro load_inputs(j) %}
{% for r in range(m) %}
            let a_{{ r }}_{{ j }} = a[at_a + {{ (r * k + j) // vector_a }}u];
{% endfor %}
{% endmacro %}

{% macro add(j) %}
{% set input = (j // vector_a) * vector_a %}
{% for w in range(weights) %}
{% for p in range(pieces) %}
            let weight_{{ w }}_{{ p }}_{{ j }} = {{ piece("row_" ~ w ~ "_" ~ j, p) }};
{% for r in range(m) %}
            sum_{{ w }}_{{ r }}_{{ p }} = fma({{ real }}({% if half %}f32({% endif %}a_{{ r }}_{{ input }}{% if vector_a > 1 %}[{{ j % vector_a }}]{% endif %}{% if half %}){% endif %}), weight_{{ w }}_{{ p }}_{{ j }}, sum_{{ w }}_{{ r }}_{{ p }});
{% endfor %}
{% endfor %}
{% endfor %}
{% endmacro %}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let lane = thread % {{ lanes }}u;
    let slice = thread / {{ lanes }}u;
    let word = {% if row_words % lanes != 0 %}min(group.x * {{ lanes }}u + lane, {{ row_words - 1 }}u){% else %}group.x * {{ lanes }}u + lane{% endif %};
{% set block = slices * unroll %}
{% if split_k > 1 %}
    let first = group.y * {{ part }}u;
    let last = min(first + {{ part }}u, {{ k }}u);
{% else %}
    let first = 0u;
    let last = {{ k }}u;
{% endif %}
{% for w in range(weights) %}
{% for r in range(m) %}
{% for p in range(pieces) %}
    var sum_{{ w }}_{{ r }}_{{ p }} = {{ real }}();
{% endfor %}
{% endfor %}
{% endfor %}

    var depth = first + slice * {{ unroll }}u;
    for (; depth + {{ unroll }}u <= last; depth += {{ block }}u) {
        let at = depth * {{ row_words }}u + word;
        let at_a = depth{% if vector_a > 1 %} / {{ vector_a }}u{% endif %};
{% for j in range(unroll) %}
{{ load_weights(j) }}
{% endfor %}
{% for j in range(0, unroll, vector_a) %}
{{ load_inputs(j) }}
{% endfor %}
{% for j in range(unroll) %}
{{ add(j) }}
{% endfor %}
    }
{% if k % unroll != 0 %}
    // One slice meets the end of K within its step.
    for (; depth < last; depth += 1u) {
        let at = depth * {{ row_words }}u + word;
{% for w in range(weights) %}
        let row_{{ w }} = w_{{ w }}[at];
{% for p in range(pieces) %}
        let weight_{{ w }}_{{ p }} = {{ piece("row_" ~ w, p) }};
{% for r in range(m) %}
        sum_{{ w }}_{{ r }}_{{ p }} = fma({{ real }}(f32(a[(depth + {{ r * k }}u){% if vector_a > 1 %} / {{ vector_a }}u][depth % {{ vector_a }}u]{% else %}]{% endif %})), weight_{{ w }}_{{ p }}, sum_{{ w }}_{{ r }}_{{ p }});
{% endfor %}
{% endfor %}
{% endfor %}
    }
{% endif %}

{% if slices > 1 %}
{% for w in range(weights) %}
{% for r in range(m) %}
{% for p in range(pieces) %}
    sums[{{ ((w * m + r) * pieces + p) * threads }}u + thread] = sum_{{ w }}_{{ r }}_{{ p }};
{% endfor %}
{% endfor %}
{% endfor %}
    workgroupBarrier();
    // {{ m * pieces }} rows of pieces with a sum for each lane.
    for (var item = thread; item < {{ m * pieces * lanes }}u; item += {{ threads }}u) {
        let item_row = item / {{ pieces * lanes }}u;
        let item_column = item % {{ pieces * lanes }}u;
        let source = (item_row * {{ pieces }}u + item_column % {{ pieces }}u) * {{ threads }}u + item_column / {{ pieces }}u;
        let column = group.x * {{ lanes * pieces }}u + item_column;
{% if row_words % lanes != 0 %}
        if (column < {{ columns }}u) {
{% endif %}
{% for w in range(weights) %}
            var total_{{ w }} = sums[source + {{ w * m * pieces * threads }}u];
{% for s in range(1, slices) %}
            total_{{ w }} = total_{{ w }} + sums[source + {{ w * m * pieces * threads + s * lanes }}u];
{% endfor %}
{% endfor %}
{% if split_k > 1 %}
{% for w in range(weights) %}
            partials[(group.y * {{ weights }}u + {{ w }}u) * {{ m * columns }}u + item_row * {{ columns }}u + column] = total_{{ w }};
{% endfor %}
{% else %}
            finish(item_row, column, {% for w in range(weights) %}total_{{ w }}{{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% if row_words % lanes != 0 %}
        }
{% endif %}
    }
{% else %}
{% if row_words % lanes != 0 %}
    if (group.x * {{ lanes }}u + lane < {{ row_words }}u) {
{% endif %}
{% for r in range(m) %}
{% for p in range(pieces) %}
{% if split_k > 1 %}
{% for w in range(weights) %}
        partials[(group.y * {{ weights }}u + {{ w }}u) * {{ m * columns }}u + {{ r * columns + p }}u + word * {{ pieces }}u] = sum_{{ w }}_{{ r }}_{{ p }};
{% endfor %}
{% else %}
        finish({{ r }}u, word * {{ pieces }}u + {{ p }}u, {% for w in range(weights) %}sum_{{ w }}_{{ r }}_{{ p }}{{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% endfor %}
{% endfor %}
{% if row_words % lanes != 0 %}
    }
{% endif %}
{% endif %}
}
