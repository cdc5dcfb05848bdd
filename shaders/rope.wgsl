// Rotary embedding: the halves of every head turn by the angles of the token's position, {{ vector }} pairs at a time.
{% if dtype == "f16" %}
enable f16;
{% endif %}

@group(0) @binding(0) var<storage, read> x: array<{{ storage }}>;
@group(0) @binding(1) var<storage, read> cosines: array<{{ real }}>;
@group(0) @binding(2) var<storage, read> sines: array<{{ real }}>;
@group(0) @binding(3) var<storage, read_write> result: array<{{ storage }}>;

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * {{ grid_x }}u + group.x) * {{ threads * unroll }}u + lane;
{% for step in range(unroll) %}
    let at_{{ step }} = first + {{ step * threads }}u;
{% if ragged %}
    if at_{{ step }} < {{ count }}u {
{% else %}
    {
{% endif %}
        let pair = at_{{ step }} % {{ half }}u;
        let head = at_{{ step }} / {{ half }}u;
        let table = head / {{ heads }}u % {{ seq }}u * {{ half }}u + pair;
        let low = head * {{ 2 * half }}u + pair;
        let a = {{ real }}(x[low]);
        let b = {{ real }}(x[low + {{ half }}u]);
        let cosine = cosines[table];
        let sine = sines[table];
        result[low] = {{ storage }}(a * cosine - b * sine);
        result[low + {{ half }}u] = {{ storage }}(b * cosine + a * sine);
    }
{% endfor %}
}
