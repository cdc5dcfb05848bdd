// weights v of one batch and one query head for {{ tile_q }} query rows: each of {{ threads }} invocations has {{ owned }} elements of the result; the
// weights of {{ tile_k }} keys at a time are in workgroup memory.
{% if dtype == "f16" %}
enable f16;
{% endif %}

@group(0) @binding(0) var<storage, read> weights: array<f32>;
@group(0) @binding(1) var<storage, read> v: array<{{ dtype }}>;
@group(0) @binding(2) var<storage, read_write> result: array<{{ dtype }}>;

var<workgroup> tile: array<f32, {{ tile_q * tile_k }}>;

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let batch = group.x / {{ heads }}u;
    let head = group.x % {{ heads }}u;
    let first_row = group.y * {{ tile_q }}u;
    let base = (batch * {{ heads }}u + head) * {{ seq * seq }}u;
    let kv_base = (batch * {{ seq * kv_heads }}u + head / {{ heads // kv_heads }}u) * {{ head_dim }}u;
{% for n in range(owned) %}
    let row_{{ n }} = (lane + {{ n * threads }}u) / {{ head_dim }}u;
    let column_{{ n }} = (lane + {{ n * threads }}u) % {{ head_dim }}u;
    var sum_{{ n }} = 0.0;
{% endfor %}
{% if causal %}
    let visible_keys = min(first_row + {{ tile_q }}u, {{ seq }}u);
{% else %}
    let visible_keys = {{ seq }}u;
{% endif %}
    for (var first_key = 0u; first_key < visible_keys; first_key += {{ tile_k }}u) {
        for (var i = lane; i < {{ tile_q * tile_k }}u; i += {{ threads }}u) {
            let row = first_row + i / {{ tile_k }}u;
            let key = first_key + i % {{ tile_k }}u;
            var loaded = 0.0;
            if row < {{ seq }}u && key {{ "<= row" if causal else ("< %du" | format(seq)) }} {
                loaded = weights[base + row * {{ seq }}u + key];
            }
            tile[i] = loaded;
        }
        workgroupBarrier();
        for (var j = 0u; j < min({{ tile_k }}u, visible_keys - first_key); j += 1u) {
            let start = kv_base + (first_key + j) * {{ kv_heads * head_dim }}u;
{% for n in range(owned) %}
{% if causal %}
            // A later token has no part in this row, not even 0 times NaN.
            if first_key + j <= first_row + row_{{ n }} && row_{{ n }} < {{ tile_q }}u {
{% else %}
            if row_{{ n }} < {{ tile_q }}u {
{% endif %}
                sum_{{ n }} = fma(tile[row_{{ n }} * {{ tile_k }}u + j], f32(v[start + column_{{ n }}]), sum_{{ n }});
            }
{% endfor %}
        }
        workgroupBarrier();
    }
{% for n in range(owned) %}
    if row_{{ n }} < {{ tile_q }}u && first_row + row_{{ n }} < {{ seq }}u {
        result[(batch * {{ seq }}u + first_row + row_{{ n }}) * {{ heads * head_dim }}u + head * {{ head_dim }}u + column_{{ n }}] = {{ dtype }}(sum_{{ n }});
    }
{% endfor %}
}
