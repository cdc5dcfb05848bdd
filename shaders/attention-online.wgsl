// softmax(scale q k^T + mask) v for one batch, one query head and {{ tile_q }} query rows, online: after each tile of keys, every row
// has its running maximum, its sum, and its weighted values, all relative to that maximum.
//
// {{ threads }} invocations as {{ ty }} x {{ tx }}: each has {{ rows }} rows, of the scores {{ keys }} keys, of the result {{ columns }} vectors of
// four columns. One tile of workgroup memory holds keys first and values after.
{% if dtype == "f16" %}
enable f16;
{% endif %}

{% include "math.wgsl" %}

@group(0) @binding(0) var<storage, read> q: array<{{ storage }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ storage }}>;
@group(0) @binding(2) var<storage, read> v: array<{{ storage }}>;
@group(0) @binding(3) var<storage, read_write> result: array<{{ storage }}>;

{% if share_q %}
var<workgroup> queries: array<vec4<f32>, {{ tile_q * stride }}>;
{% endif %}
var<workgroup> tile: array<vec4<f32>, {{ tile_k * stride }}>;
// Weights of the tile: {{ tile_q }} rows of {{ weight_stride }} vectors of four keys.
var<workgroup> weights: array<vec4<f32>, {{ tile_q * weight_stride }}>;
// What the {{ tx }} invocations of a row have each found.
var<workgroup> partial: array<f32, {{ tile_q * tx }}>;

{% for buffer in ["q", "k", "v"] %}
// Columns 4 group .. 4 group + 3 of the row that begins at element `first`; 0 beyond the head's width.
fn load_{{ buffer }}(first: u32, group: u32) -> vec4<f32> {
{% if vector == 4 %}
    return vec4<f32>({{ buffer }}[first / 4u + group]);
{% else %}
    var loaded = vec4<f32>();
{% for part in range(0, 4, vector) %}
{% if head_dim % 4 != 0 and part > 0 %}
    if group * 4u + {{ part }}u < {{ head_dim }}u {
{% else %}
    {
{% endif %}
{% if vector == 2 %}
        let pair = vec2<f32>({{ buffer }}[first / 2u + group * 2u + {{ part // 2 }}u]);
        loaded[{{ part }}] = pair.x;
        loaded[{{ part + 1 }}] = pair.y;
{% else %}
        loaded[{{ part }}] = f32({{ buffer }}[first + group * 4u + {{ part }}u]);
{% endif %}
    }
{% endfor %}
    return loaded;
{% endif %}
}
{% endfor %}

fn store_result(first: u32, group: u32, value: vec4<f32>) {
{% if vector == 4 %}
    result[first / 4u + group] = {{ storage }}(value);
{% else %}
{% for part in range(0, 4, vector) %}
{% if head_dim % 4 != 0 and part > 0 %}
    if group * 4u + {{ part }}u < {{ head_dim }}u {
{% else %}
    {
{% endif %}
{% if vector == 2 %}
        result[first / 2u + group * 2u + {{ part // 2 }}u] = {{ storage }}(vec2<f32>(value[{{ part }}], value[{{ part + 1 }}]));
{% else %}
        result[first + group * 4u + {{ part }}u] = {{ storage }}(value[{{ part }}]);
{% endif %}
    }
{% endfor %}
{% endif %}
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let batch = group.x / {{ heads }}u;
    let head = group.x % {{ heads }}u;
{% if causal %}
    // The last rows see the most keys: they start first.
    let first_row = ({{ tiles_q - 1 }}u - group.y) * {{ tile_q }}u;
    let visible_keys = min(first_row + {{ tile_q }}u, {{ seq }}u);
{% else %}
    let first_row = group.y * {{ tile_q }}u;
    let visible_keys = {{ seq }}u;
{% endif %}
    let tx = lane % {{ tx }}u;
    let ty = lane / {{ tx }}u;
    let row_of = ty * {{ rows }}u;
    let q_base = (batch * {{ seq }}u * {{ heads }}u + head) * {{ head_dim }}u;
    let kv_base = (batch * {{ seq * kv_heads }}u + head / {{ heads // kv_heads }}u) * {{ head_dim }}u;

{% if share_q %}
    for (var i = lane; i < {{ tile_q * groups }}u; i += {{ threads }}u) {
        let row = {{ "min(" if ragged_q }}first_row + i / {{ groups }}u{{ ", %du)" | format(seq - 1) if ragged_q }};
        queries[i / {{ groups }}u * {{ stride }}u + i % {{ groups }}u] = load_q(q_base + row * {{ heads * head_dim }}u, i % {{ groups }}u);
    }
{% endif %}
{% for i in range(rows) %}
    let row_{{ i }} = first_row + row_of + {{ i }}u;
{% if not share_q %}
    // Rows beyond the last repeat it and are not written.
    let q_{{ i }} = q_base + {{ "min(" if ragged_q }}row_{{ i }}{{ ", %du)" | format(seq - 1) if ragged_q }} * {{ heads * head_dim }}u;
{% endif %}
    var max_{{ i }} = -3.4e38;
    var sum_{{ i }} = 0.0;
{% for c in range(columns) %}
    var out_{{ i }}_{{ c }} = vec4<f32>();
{% endfor %}
{% endfor %}

    for (var first_key = 0u; first_key < visible_keys; first_key += {{ tile_k }}u) {
        for (var i = lane; i < {{ tile_k * groups }}u; i += {{ threads }}u) {
            let key = first_key + i / {{ groups }}u;
{% if ragged_k %}
            var loaded = vec4<f32>();
            if key < {{ seq }}u {
                loaded = load_k(kv_base + key * {{ kv_heads * head_dim }}u, i % {{ groups }}u);
            }
{% else %}
            let loaded = load_k(kv_base + key * {{ kv_heads * head_dim }}u, i % {{ groups }}u);
{% endif %}
            tile[i / {{ groups }}u * {{ stride }}u + i % {{ groups }}u] = loaded;
        }
        workgroupBarrier();

        // Keys tx, tx + {{ tx }}, ...: neighbours read neighbouring rows of the tile, whose odd stride keeps them apart.
{% for i in range(rows) %}
{% for j in range(keys) %}
        var s_{{ i }}_{{ j }} = 0.0;
{% endfor %}
{% endfor %}
        for (var d = 0u; d < {{ groups }}u; d += 1u) {
{% for j in range(keys) %}
            let key_{{ j }} = tile[(tx + {{ j * tx }}u) * {{ stride }}u + d];
{% endfor %}
{% for i in range(rows) %}
{% if share_q %}
            let query_{{ i }} = queries[(row_of + {{ i }}u) * {{ stride }}u + d];
{% else %}
            let query_{{ i }} = load_q(q_{{ i }}, d);
{% endif %}
{% for j in range(keys) %}
            s_{{ i }}_{{ j }} = fma(query_{{ i }}.x, key_{{ j }}.x, s_{{ i }}_{{ j }});
            s_{{ i }}_{{ j }} = fma(query_{{ i }}.y, key_{{ j }}.y, s_{{ i }}_{{ j }});
            s_{{ i }}_{{ j }} = fma(query_{{ i }}.z, key_{{ j }}.z, s_{{ i }}_{{ j }});
            s_{{ i }}_{{ j }} = fma(query_{{ i }}.w, key_{{ j }}.w, s_{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
        }
{% for j in range(keys) %}
        let at_{{ j }} = first_key + tx + {{ j * tx }}u;
{% endfor %}
{% for i in range(rows) %}
        var top_{{ i }} = -3.4e38;
{% for j in range(keys) %}
        s_{{ i }}_{{ j }} *= {{ scale }};
{% if masked %}
        let seen_{{ i }}_{{ j }} = {{ ("at_%d <= row_%d" | format(j, i)) if causal }}{{ " && " if causal and ragged_k }}{{ ("at_%d < %du" | format(j, seq)) if ragged_k }};
        top_{{ i }} = select(top_{{ i }}, max(top_{{ i }}, s_{{ i }}_{{ j }}), seen_{{ i }}_{{ j }});
{% else %}
        top_{{ i }} = max(top_{{ i }}, s_{{ i }}_{{ j }});
{% endif %}
{% endfor %}
        partial[(row_of + {{ i }}u) * {{ tx }}u + tx] = top_{{ i }};
{% endfor %}
        workgroupBarrier();

        for (var i = lane; i < {{ tile_k * groups }}u; i += {{ threads }}u) {
            let key = first_key + i / {{ groups }}u;
{% if ragged_k %}
            // Weights of keys beyond the last are 0, and so must these be: 0 times NaN is NaN.
            var loaded = vec4<f32>();
            if key < {{ seq }}u {
                loaded = load_v(kv_base + key * {{ kv_heads * head_dim }}u, i % {{ groups }}u);
            }
{% else %}
            let loaded = load_v(kv_base + key * {{ kv_heads * head_dim }}u, i % {{ groups }}u);
{% endif %}
            tile[i / {{ groups }}u * {{ stride }}u + i % {{ groups }}u] = loaded;
        }
{% for i in range(rows) %}
        {
            var top = max_{{ i }};
            for (var other = 0u; other < {{ tx }}u; other += 1u) {
                top = max(top, partial[(row_of + {{ i }}u) * {{ tx }}u + other]);
            }
            let shrink = exp_1(max_{{ i }} - top);
            max_{{ i }} = top;
            sum_{{ i }} *= shrink;
{% for c in range(columns) %}
            out_{{ i }}_{{ c }} *= shrink;
{% endfor %}
{% for j in range(keys) %}
{% if masked %}
            let weight_{{ j }} = select(0.0, exp_1(s_{{ i }}_{{ j }} - top), seen_{{ i }}_{{ j }});
{% else %}
            let weight_{{ j }} = exp_1(s_{{ i }}_{{ j }} - top);
{% endif %}
            sum_{{ i }} += weight_{{ j }};
            let column_{{ j }} = tx + {{ j * tx }}u;
            weights[(row_of + {{ i }}u) * {{ weight_stride }}u + column_{{ j }} / 4u][column_{{ j }} % 4u] = weight_{{ j }};
{% endfor %}
        }
{% endfor %}
        workgroupBarrier();

{% for masked_loop in ([true, false] if causal else [false]) %}
{% if masked_loop %}
        // Some keys are later than some rows. Their weights are 0, but what is multiplied might be NaN: it is left out.
        if first_key + {{ tile_k - 1 }}u > first_row {
{% else %}
        {{ "else " if causal }}{
{% endif %}
            for (var four = 0u; four < {{ tile_k // 4 }}u; four += 1u) {
{% for i in range(rows) %}
                let weight_{{ i }} = weights[(row_of + {{ i }}u) * {{ weight_stride }}u + four];
{% endfor %}
{% for part in range(4) %}
                {
{% if masked_loop %}
                    let key = first_key + four * 4u + {{ part }}u;
{% endif %}
{% for c in range(columns) %}
                    let value_{{ c }} = tile[(four * 4u + {{ part }}u) * {{ stride }}u + {{ ("min(tx + %du, %du)" | format(c * tx, groups - 1)) if ragged_columns else ("tx + %du" | format(c * tx)) }}];
{% endfor %}
{% for i in range(rows) %}
{% for c in range(columns) %}
{% if masked_loop %}
                    out_{{ i }}_{{ c }} = select(out_{{ i }}_{{ c }}, fma(vec4<f32>(weight_{{ i }}[{{ part }}]), value_{{ c }}, out_{{ i }}_{{ c }}), key <= row_{{ i }});
{% else %}
                    out_{{ i }}_{{ c }} = fma(vec4<f32>(weight_{{ i }}[{{ part }}]), value_{{ c }}, out_{{ i }}_{{ c }});
{% endif %}
{% endfor %}
{% endfor %}
                }
{% endfor %}
            }
        }
{% endfor %}
        workgroupBarrier();
    }

{% for i in range(rows) %}
    partial[(row_of + {{ i }}u) * {{ tx }}u + tx] = sum_{{ i }};
{% endfor %}
    workgroupBarrier();
{% for i in range(rows) %}
{% if ragged_q %}
    if row_{{ i }} < {{ seq }}u {
{% else %}
    {
{% endif %}
        var sum = 0.0;
        for (var other = 0u; other < {{ tx }}u; other += 1u) {
            sum += partial[(row_of + {{ i }}u) * {{ tx }}u + other];
        }
        let factor = quotient_1(1.0, sum);
        let first = q_base + row_{{ i }} * {{ heads * head_dim }}u;
{% for c in range(columns) %}
{% if ragged_columns %}
        if tx + {{ c * tx }}u < {{ groups }}u {
            store_result(first, tx + {{ c * tx }}u, out_{{ i }}_{{ c }} * factor);
        }
{% else %}
        store_result(first, tx + {{ c * tx }}u, out_{{ i }}_{{ c }} * factor);
{% endif %}
{% endfor %}
    }
{% endfor %}
}
