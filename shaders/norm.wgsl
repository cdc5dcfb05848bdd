// {{ "Layer" if centred else "RMS" }} norm of rows of {{ columns }}: {{ width }} invocations share a row, {{ rows_of_group }} rows a workgroup.
{% if dtype == "f16" %}
enable f16;
{% endif %}

{% include "math.wgsl" %}

{% set binding = 2 %}
@group(0) @binding(0) var<storage, read> x: array<{{ storage }}>;
@group(0) @binding(1) var<storage, read> gain: array<{{ storage }}>;
{% if centred %}
@group(0) @binding(2) var<storage, read> bias: array<{{ storage }}>;
{% set binding = 3 %}
{% endif %}
@group(0) @binding({{ binding }}) var<storage, read_write> result: array<{{ storage }}>;

{% if width > 1 %}
{% if subgroups %}
// The sum of each subgroup; there are at most as many as invocations.
{% endif %}
var<workgroup> partial: array<f32, {{ slots }}>;
{% endif %}

{% if width == 1 %}
fn row_sum(value: f32) -> f32 {
    return value;
}
{% elif subgroups %}
// The sum over a row's invocations, which are whole subgroups: the same bits in all of them.
fn row_sum(value: f32, row: u32, subgroup: u32, subgroup_size: u32, lane: u32) -> f32 {
    let own = subgroupAdd(value);
    if subgroup_size >= {{ width }}u {
        return own;
    }
    let count = {{ width }}u / subgroup_size;
    // The last sum may still be read.
    workgroupBarrier();
    if lane == 0u {
        partial[subgroup] = own;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < count; i += 1u) {
        sum += partial[row * count + i];
    }
    return sum;
}
{% else %}
// The sum over a row's invocations: a tree in workgroup memory.
fn row_sum(value: f32, row: u32, place: u32) -> f32 {
    let own = row * {{ width }}u + place;
    // The last sum may still be read.
    workgroupBarrier();
    partial[own] = value;
    workgroupBarrier();
    for (var half = {{ width // 2 }}u; half > 0u; half /= 2u) {
        if place < half {
            partial[own] += partial[own + half];
        }
        workgroupBarrier();
    }
    return partial[row * {{ width }}u];
}
{% endif %}
{% set arguments = ", row_of_group, subgroup, subgroup_size, lane_of_subgroup" if subgroups else ", row_of_group, place" %}
{% if width == 1 %}{% set arguments = "" %}{% endif %}

fn total(value: {{ real }}) -> f32 {
    return {% if vector == 1 %}value{% elif vector == 2 %}value.x + value.y{% else %}(value.x + value.y) + (value.z + value.w){% endif %};
}

@compute @workgroup_size({{ width * rows_of_group }})
{% if subgroups %}
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) subgroup_size: u32, @builtin(subgroup_invocation_id) lane_of_subgroup: u32) {
    let lane = subgroup * subgroup_size + lane_of_subgroup;
{% else %}
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
{% endif %}
    let row_of_group = lane / {{ width }}u;
    let place = lane % {{ width }}u;
    let row = (group.y * {{ grid_x }}u + group.x) * {{ rows_of_group }}u + row_of_group;
{% if ragged_rows %}
    // Rows beyond the last repeat it and are not written.
    let first = min(row, {{ rows - 1 }}u) * {{ vectors }}u;
{% else %}
    let first = row * {{ vectors }}u;
{% endif %}

{% if kept %}
{# The row stays in registers. #}
    var sum = 0.0;
{% for c in range(chunks) %}
    let at_{{ c }} = place + {{ c * width }}u;
{% if ragged and loop.last %}
    var x_{{ c }} = {{ real }}();
    if at_{{ c }} < {{ vectors }}u {
        x_{{ c }} = {{ real }}(x[first + at_{{ c }}]);
    }
{% else %}
    let x_{{ c }} = {{ real }}(x[first + at_{{ c }}]);
{% endif %}
{% endfor %}
{% if centred %}
{% for c in range(chunks) %}
    sum += total(x_{{ c }});
{% endfor %}
    let mean = quotient_1(row_sum(sum{{ arguments }}), {{ columns }}.0);
    sum = 0.0;
{% endif %}
{% for c in range(chunks) %}
{% if centred and ragged and loop.last %}
    let d_{{ c }} = select({{ real }}(), x_{{ c }} - mean, at_{{ c }} < {{ vectors }}u);
{% else %}
    let d_{{ c }} = x_{{ c }}{{ " - mean" if centred else "" }};
{% endif %}
    sum += total(d_{{ c }} * d_{{ c }});
{% endfor %}
{% else %}
{# The row is read again for every pass. #}
    var sum = 0.0;
{% if centred %}
    for (var at = place; at < {{ vectors }}u; at += {{ width }}u) {
        sum += total({{ real }}(x[first + at]));
    }
    let mean = quotient_1(row_sum(sum{{ arguments }}), {{ columns }}.0);
    sum = 0.0;
{% endif %}
    for (var at = place; at < {{ vectors }}u; at += {{ width }}u) {
        let d = {{ real }}(x[first + at]){{ " - mean" if centred else "" }};
        sum += total(d * d);
    }
{% endif %}
    let variance = quotient_1(row_sum(sum{{ arguments }}), {{ columns }}.0);
    let factor = inverse_root_1(variance + {{ eps }});

{% if ragged_rows %}
    if row < {{ rows }}u {
{% else %}
    {
{% endif %}
{% if kept %}
{% for c in range(chunks) %}
{% if ragged and loop.last %}
        if at_{{ c }} < {{ vectors }}u {
{% else %}
        {
{% endif %}
            let scaled = d_{{ c }} * factor * {{ real }}(gain[at_{{ c }}]);
            result[first + at_{{ c }}] = {{ storage }}(scaled{% if centred %} + {{ real }}(bias[at_{{ c }}]){% endif %});
        }
{% endfor %}
{% else %}
        for (var at = place; at < {{ vectors }}u; at += {{ width }}u) {
            let d = {{ real }}(x[first + at]){{ " - mean" if centred else "" }};
            let scaled = d * factor * {{ real }}(gain[at]);
            result[first + at] = {{ storage }}(scaled{% if centred %} + {{ real }}(bias[at]){% endif %});
        }
{% endif %}
    }
}
