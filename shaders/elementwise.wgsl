// {{ what }} over {{ count * vector }} elements, {{ vector }} at a time: neighbouring invocations read neighbouring vectors, {{ unroll }} times.
{% if dtype == "f16" %}
enable f16;
{% endif %}

{% include "math.wgsl" %}

{% set inputs = ["a", "b"] if binary else ["a"] %}
{% for input in inputs %}
@group(0) @binding({{ loop.index0 }}) var<storage, read> {{ input }}: array<{{ storage }}>;
{% endfor %}
@group(0) @binding({{ inputs | length }}) var<storage, read_write> result: array<{{ storage }}>;

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * {{ grid_x }}u + group.x) * {{ threads * unroll }}u + lane;
{% if what == "scale" %}
    let factor = {{ factor }};
{% endif %}
{% for step in range(unroll) %}
    let at_{{ step }} = first + {{ step * threads }}u;
{% if ragged %}
    if at_{{ step }} < {{ count }}u {
{% else %}
    {
{% endif %}
        let x = {{ real }}(a[at_{{ step }}]);
{% if what == "add" %}
        let y = x + {{ real }}(b[at_{{ step }}]);
{% elif what == "mul" %}
        let y = x * {{ real }}(b[at_{{ step }}]);
{% elif what == "scale" %}
        let y = x * factor;
{% else %}
        let y = {{ what }}_{{ vector }}(x);
{% endif %}
        result[at_{{ step }}] = {{ storage }}(y);
    }
{% endfor %}
}
