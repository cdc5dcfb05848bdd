{# Adds up the parts of K that the workgroups of a split product left in `partials` [parts, weights, m, n], in their order, and
   finishes them. #}
{% if half %}
enable f16;

{% endif %}
@group(0) @binding(0) var<storage, read> partials: array<{{ epilogue.real }}>;
{% set math_widths = [epilogue.width] %}
{% include "math.wgsl" %}
{% include "epilogue.wgsl" %}

{% set columns = n // epilogue.width %}
@compute @workgroup_size({{ threads }})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    let row = id.y;
    if (column >= {{ columns }}u) {
        return;
    }
    let at = row * {{ columns }}u + column;
{% for w in range(weights) %}
    var sum_{{ w }} = partials[{{ w * m * columns }}u + at];
{% for part in range(1, split_k) %}
    sum_{{ w }} = sum_{{ w }} + partials[{{ (part * weights + w) * m * columns }}u + at];
{% endfor %}
{% endfor %}
    finish(row, column, {% for w in range(weights) %}sum_{{ w }}{{ ", " if not loop.last }}{% endfor %});
}
