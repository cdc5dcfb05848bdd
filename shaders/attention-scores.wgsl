// scale q k^T of one batch and one query head: {{ tile_q }} query rows by {{ tile_k }} keys, f32. {{ threads }} invocations as {{ ty }} x {{ tx }}, each with
// {{ rows }} rows and {{ keys }} keys; slices of {{ depth }} columns in workgroup memory.
{% if dtype == "f16" %}
enable f16;
{% endif %}

@group(0) @binding(0) var<storage, read> q: array<{{ dtype }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ dtype }}>;
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;

var<workgroup> queries: array<f32, {{ tile_q * (depth + 1) }}>;
var<workgroup> tile: array<f32, {{ tile_k * (depth + 1) }}>;

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let batch = group.z / {{ heads }}u;
    let head = group.z % {{ heads }}u;
    let first_row = group.y * {{ tile_q }}u;
    let first_key = group.x * {{ tile_k }}u;
{% if causal %}
    // No row of this tile sees any of its keys, and nobody reads the scores.
    if first_key > first_row + {{ tile_q - 1 }}u {
        return;
    }
{% endif %}
    let tx = lane % {{ tx }}u;
    let ty = lane / {{ tx }}u;
    let q_base = (batch * {{ seq * heads }}u + head) * {{ head_dim }}u;
    let kv_base = (batch * {{ seq * kv_heads }}u + head / {{ heads // kv_heads }}u) * {{ head_dim }}u;
{% for i in range(rows) %}
{% for j in range(keys) %}
    var s_{{ i }}_{{ j }} = 0.0;
{% endfor %}
{% endfor %}
    for (var first = 0u; first < {{ head_dim }}u; first += {{ depth }}u) {
        for (var i = lane; i < {{ tile_q * depth }}u; i += {{ threads }}u) {
            let row = first_row + i / {{ depth }}u;
            let column = first + i % {{ depth }}u;
            var loaded = 0.0;
            if row < {{ seq }}u && column < {{ head_dim }}u {
                loaded = f32(q[q_base + row * {{ heads * head_dim }}u + column]);
            }
            queries[i / {{ depth }}u * {{ depth + 1 }}u + i % {{ depth }}u] = loaded;
        }
        for (var i = lane; i < {{ tile_k * depth }}u; i += {{ threads }}u) {
            let key = first_key + i / {{ depth }}u;
            let column = first + i % {{ depth }}u;
            var loaded = 0.0;
            if key < {{ seq }}u && column < {{ head_dim }}u {
                loaded = f32(k[kv_base + key * {{ kv_heads * head_dim }}u + column]);
            }
            tile[i / {{ depth }}u * {{ depth + 1 }}u + i % {{ depth }}u] = loaded;
        }
        workgroupBarrier();
        for (var d = 0u; d < {{ depth }}u; d += 1u) {
{% for j in range(keys) %}
            let key_{{ j }} = tile[(tx + {{ j * tx }}u) * {{ depth + 1 }}u + d];
{% endfor %}
{% for i in range(rows) %}
            let query_{{ i }} = queries[(ty + {{ i * ty }}u) * {{ depth + 1 }}u + d];
{% for j in range(keys) %}
            s_{{ i }}_{{ j }} = fma(query_{{ i }}, key_{{ j }}, s_{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
        }
        workgroupBarrier();
    }
    let out = (batch * {{ heads }}u + head) * {{ seq * seq }}u;
{% for i in range(rows) %}
{% for j in range(keys) %}
    {
        let row = first_row + ty + {{ i * ty }}u;
        let key = first_key + tx + {{ j * tx }}u;
        if row < {{ seq }}u && key < {{ seq }}u {
            scores[out + row * {{ seq }}u + key] = s_{{ i }}_{{ j }} * {{ scale }};
        }
    }
{% endfor %}
{% endfor %}
}
