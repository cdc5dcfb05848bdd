// softmax(scale q k^T + mask) v for one batch, one query head and {{ tile_q }} query rows: {{ subgroups }} subgroups of {{ subgroup }} with 16 rows each,
// both products on matrices of 16 x 16, f16 with f32 accumulators.
//
// The elements of such a matrix have no known place, so scores go through workgroup memory, where {{ lanes }} invocations have a row, and
// accumulators cannot be scaled row by row. They seldom must: weights are relative to a reference of the row, which starts as the
// maximum over the first tile of keys and follows the running maximum only when that is more than {{ headroom }} ahead. Then, and only
// then, accumulators go through workgroup memory too. Weights are exp(score - reference) times {{ 2 ** boost }}, at most e^{{ headroom }} times {{ 2 ** boost }} < 65504:
// the factor keeps small ones out of f16's subnormal range.
enable f16;
enable wgpu_cooperative_matrix;
// The branches around matrix operations depend on workgroup memory behind a barrier, or on the subgroup's number.
diagnostic(off, derivative_uniformity);

{% include "math.wgsl" %}

{% set unit = [vector, 4] | min %}
{% set pieces = vector // unit %}
{% set per_row = head_dim // vector %}
{% set row_units = head_dim // unit %}
{% set tile_row = stride // unit %}
{% set loads = (tile_k * per_row + threads - 1) // threads %}
{% set ragged_loads = loads * threads != tile_k * per_row %}
{% set blocks = head_dim // 16 %}
{% set key_blocks = tile_k // 16 %}
{% set weight_row = weight_stride // 4 %}
{# Vectors of four keys that one invocation has. #}
{% set own = tile_k // 4 // lanes %}

{% if pieces == 2 %}
// 16 bytes that are loaded at once: WGSL has no vectors of eight.
struct Eight {
    @align(16) low: vec4<f16>,
    high: vec4<f16>,
}
{% set load = "Eight" %}
{% set parts = [".low", ".high"] %}
{% else %}
{% set load = storage %}
{% set parts = [""] %}
{% endif %}

@group(0) @binding(0) var<storage, read> q: array<{{ storage }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ load }}>;
@group(0) @binding(2) var<storage, read> v: array<{{ load }}>;
@group(0) @binding(3) var<storage, read_write> result: array<{{ storage }}>;

// Keys, then values: {{ tile_k }} rows.
var<workgroup> tile: array<{{ storage }}, {{ tile_k * tile_row }}>;
// Of each subgroup: its scores, and accumulators on their way; its weights, and before all its queries.
var<workgroup> scores: array<f32, {{ subgroups * 16 * score_stride }}>;
// Four neighbours, which compilers load at once.
fn four_scores(at: u32) -> vec4<f32> {
    return vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
}

var<workgroup> weights: array<vec4<f16>, {{ subgroups * 16 * weight_row }}>;
// Whether some row of the workgroup has a new reference, and whether a tile that is partly masked has a value that is not finite.
var<workgroup> moved: atomic<u32>;
{% if causal %}
var<workgroup> wild: atomic<u32>;

fn is_wild(x: {{ storage }}) -> bool {
{% if unit == 1 %}
    return (bitcast<u32>(f32(x)) & 0x7f800000u) == 0x7f800000u;
{% else %}
    return any((bitcast<vec{{ unit }}<u32>>(vec{{ unit }}<f32>(x)) & vec{{ unit }}<u32>(0x7f800000u)) == vec{{ unit }}<u32>(0x7f800000u));
{% endif %}
}

fn value_at(row: u32, column: u32) -> f32 {
{% if unit == 1 %}
    return f32(tile[row * {{ tile_row }}u + column]);
{% else %}
    return f32(tile[row * {{ tile_row }}u + column / {{ unit }}u][column % {{ unit }}u]);
{% endif %}
}
{% endif %}

// {{ 2 ** boost }} exp(x) for x up to {{ headroom }}, 0 below -87; NaN stays NaN. As exp of math.wgsl; the sum with 1.5 2^23 rounds to an integer, which
// is then in the last bits.
fn weight(x: vec4<f32>) -> vec4<f32> {
    let shifted = fma(max(x, vec4<f32>(-87.0)), vec4<f32>(1.44269504), vec4<f32>(12582912.0));
    // The same number, taken apart and put together: compilers fold a sum and its difference into nothing.
    let whole = bitcast<vec4<f32>>((bitcast<vec4<u32>>(shifted) & vec4<u32>(0x7fffffu)) | vec4<u32>(0x4b000000u));
    let n = whole - vec4<f32>(12582912.0);
    let r = fma(n, vec4<f32>(2.12194440e-4), fma(n, vec4<f32>(-0.693359375), x));
    var tail = fma(r, vec4<f32>(1.9875691e-4), vec4<f32>(1.3981999e-3));
    tail = fma(tail, r, vec4<f32>(8.3334519e-3));
    tail = fma(tail, r, vec4<f32>(4.1665796e-2));
    tail = fma(tail, r, vec4<f32>(1.6666665e-1));
    tail = fma(tail, r, vec4<f32>(0.5));
    let mantissa = fma(tail, r * r, r + vec4<f32>(1.0));
    let power = bitcast<vec4<f32>>((bitcast<vec4<u32>>(shifted) << vec4<u32>(23u)) + vec4<u32>({{ 127 + boost }}u << 23u));
    return select(mantissa * power, vec4<f32>(), x < vec4<f32>(-87.0));
}

{% macro fetch(buffer, rows, base, first, limit, pitch, ragged) %}
{% for n in range(loads) %}
        var held_{{ n }} = {{ load }}();
        {
            let i = lane + {{ n * threads }}u;
            let row = {{ first }} + i / {{ per_row }}u;
{% if ragged_loads and ragged %}
            if i < {{ rows * per_row }}u && row < {{ limit }} {
{% elif ragged_loads %}
            if i < {{ rows * per_row }}u {
{% elif ragged %}
            if row < {{ limit }} {
{% else %}
            {
{% endif %}
                held_{{ n }} = {{ buffer }}[{{ base }} + row * {{ pitch // vector }}u + i % {{ per_row }}u];
            }
        }
{% endfor %}
{% endmacro %}
{% macro place() %}
{% for n in range(loads) %}
        {
            let i = lane + {{ n * threads }}u;
{% if ragged_loads %}
            if i < {{ tile_k * per_row }}u {
{% else %}
            {
{% endif %}
{% for piece in range(pieces) %}
                tile[i / {{ per_row }}u * {{ tile_row }}u + i % {{ per_row }}u * {{ pieces }}u + {{ piece }}u] = held_{{ n }}{{ parts[piece] }};
{% endfor %}
            }
        }
{% endfor %}
{% endmacro %}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) place: u32) {
    let lane = subgroup * {{ subgroup }}u + place;
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
    let q_base = (batch * {{ seq * heads }}u + head) * {{ row_units }}u;
    let kv_base = (batch * {{ seq * kv_heads }}u + head / {{ heads // kv_heads }}u) * {{ per_row }}u;
    // {{ lanes }} invocations have a row of the subgroup's 16, and every {{ lanes }}-th vector of it.
    let own_row = place / {{ lanes }}u;
    let part = place % {{ lanes }}u;
    let row = first_row + subgroup * 16u + own_row;
    let scores_at = subgroup * {{ 16 * score_stride }}u;
    let weights_at = subgroup * {{ 16 * weight_row }}u;

{# Queries pass through the subgroup's weights, as many columns at a time as there is room for. #}
{% for first in range(0, blocks, key_blocks) %}
{% set held = [key_blocks, blocks - first] | min %}
    for (var i = place; i < {{ 16 * held * 4 }}u; i += {{ subgroup }}u) {
        let line = i / {{ held * 4 }}u;
        let four = i % {{ held * 4 }}u;
{% if ragged_q %}
        // Rows beyond the last repeat it and are not written.
        let query_row = min(first_row + subgroup * 16u + line, {{ seq - 1 }}u);
{% else %}
        let query_row = first_row + subgroup * 16u + line;
{% endif %}
        let at = q_base + query_row * {{ heads * row_units }}u + ({{ first * 16 }}u + four * 4u) / {{ unit }}u;
        weights[weights_at + line * {{ weight_row }}u + four] = vec4<f16>({% for n in range(4 // unit) %}q[at + {{ n }}u]{{ "" if loop.last else ", " }}{% endfor %});
    }
    workgroupBarrier();
{% for block in range(held) %}
    let query_{{ first + block }} = coopLoadT<coop_mat16x16<f16, A>>(&weights[weights_at + {{ block * 4 }}u], {{ weight_row }}u);
{% endfor %}
    workgroupBarrier();
{% endfor %}
{% for block in range(blocks) %}
    var out_{{ block }} = coop_mat16x16<f32, C>();
{% endfor %}

    var reference = -3.4e38;
    var sum = vec4<f32>();
    for (var first_key = 0u; first_key < visible_keys; first_key += {{ tile_k }}u) {
        {
{{ fetch("k", tile_k, "kv_base", "first_key", "%du" | format(seq), kv_heads * head_dim, ragged_k) }}
{{ place() }}
        }
        if lane == 0u {
            atomicStore(&moved, 0u);
{% if causal %}
            atomicStore(&wild, 0u);
{% endif %}
        }
        workgroupBarrier();

{% if prefetch %}
{{ fetch("v", tile_k, "kv_base", "first_key", "%du" | format(seq), kv_heads * head_dim, ragged_k) }}
{% endif %}
{% for keys in range(key_blocks) %}
        {
            var block = coop_mat16x16<f32, C>();
{% for columns in range(blocks) %}
            block = coopMultiplyAdd(query_{{ columns }}, coopLoad<coop_mat16x16<f16, B>>(&tile[{{ keys * 16 * tile_row + columns * 16 // unit }}], {{ tile_row }}u), block);
{% endfor %}
            coopStoreT(block, &scores[scores_at + {{ keys * 16 }}u], {{ score_stride }}u);
        }
{% endfor %}
        workgroupBarrier();

{% if not prefetch %}
{{ fetch("v", tile_k, "kv_base", "first_key", "%du" | format(seq), kv_heads * head_dim, ragged_k) }}
{% endif %}
{{ place() }}
{% if causal %}
        let crossing = first_key + {{ tile_k - 1 }}u > first_row;
        if crossing {
            var found = false;
{% for n in range(loads) %}
{% for piece in range(pieces) %}
            found |= is_wild(held_{{ n }}{{ parts[piece] }});
{% endfor %}
{% endfor %}
            if found {
                atomicStore(&wild, 1u);
            }
        }
{% endif %}
{% if causal or ragged_k %}
        // Keys of the tile that the row sees: those before this one.
{% if causal %}
        let end = vec4<i32>(i32(min(row + 1u, {{ seq }}u)) - i32(first_key));
{% else %}
        let end = vec4<i32>(i32({{ seq }}u - first_key));
{% endif %}
{% endif %}
        var tops = vec4<f32>(-3.4e38);
{% for n in range(own) %}
        let s_{{ n }} = four_scores(scores_at + own_row * {{ score_stride }}u + ({{ n * lanes }}u + part) * 4u) * {{ scale }};
{% if causal or ragged_k %}
        let seen_{{ n }} = vec4<i32>(i32(part * 4u)) + vec4<i32>({{ n * lanes * 4 }}, {{ n * lanes * 4 + 1 }}, {{ n * lanes * 4 + 2 }}, {{ n * lanes * 4 + 3 }}) < end;
        tops = select(tops, max(tops, s_{{ n }}), seen_{{ n }});
{% else %}
        tops = max(tops, s_{{ n }});
{% endif %}
{% endfor %}
        var top = max(max(tops.x, tops.y), max(tops.z, tops.w));
{% for step in steps %}
        top = max(top, subgroupShuffleXor(top, {{ step }}u));
{% endfor %}
        var shrink = 1.0;
        if first_key == 0u {
            reference = top;
        } else if top > reference + {{ headroom }}.0 {
            shrink = exp_1(reference - top);
            reference = top;
            sum *= shrink;
            atomicStore(&moved, 1u);
        }
{% for n in range(own) %}
        {
{% if causal or ragged_k %}
            let p = vec4<f16>(select(vec4<f32>(), weight(s_{{ n }} - reference), seen_{{ n }}));
{% else %}
            let p = vec4<f16>(weight(s_{{ n }} - reference));
{% endif %}
            // The sum is of what is multiplied: their roundings cancel where values are alike.
            sum += vec4<f32>(p);
            weights[weights_at + own_row * {{ weight_row }}u + {{ n * lanes }}u + part] = p;
        }
{% endfor %}
        workgroupBarrier();

{% if causal %}
        let is_wild_tile = atomicLoad(&wild) != 0u;
        if atomicLoad(&moved) != 0u || is_wild_tile {
{% else %}
        if atomicLoad(&moved) != 0u {
{% endif %}
{% for block in range(blocks) %}
            coopStoreT(out_{{ block }}, &scores[scores_at], {{ score_stride }}u);
            workgroupBarrier();
            for (var four = part; four < 4u; four += {{ lanes }}u) {
                let at = scores_at + own_row * {{ score_stride }}u + four * 4u;
                var value = four_scores(at) * shrink;
{% if causal %}
                if is_wild_tile {
                    // A later token has no part in an earlier row, not even 0 times NaN, which a matrix product cannot leave out.
                    for (var key = 0u; i32(key) < min(end.x, {{ tile_k }}); key += 1u) {
                        let p = f32(weights[weights_at + own_row * {{ weight_row }}u + key / 4u][key % 4u]);
                        let column = {{ block * 16 }}u + four * 4u;
                        value += p * vec4<f32>(value_at(key, column), value_at(key, column + 1u), value_at(key, column + 2u), value_at(key, column + 3u));
                    }
                }
{% endif %}
                scores[at] = value.x;
                scores[at + 1u] = value.y;
                scores[at + 2u] = value.z;
                scores[at + 3u] = value.w;
            }
            workgroupBarrier();
            out_{{ block }} = coopLoadT<coop_mat16x16<f32, C>>(&scores[scores_at], {{ score_stride }}u);
            workgroupBarrier();
{% endfor %}
        }
{% if causal %}
        if !is_wild_tile {
{% else %}
        {
{% endif %}
{% for keys in range(key_blocks) %}
            {
                let p = coopLoadT<coop_mat16x16<f16, A>>(&weights[weights_at + {{ keys * 4 }}u], {{ weight_row }}u);
{% for columns in range(blocks) %}
                out_{{ columns }} = coopMultiplyAdd(p, coopLoadT<coop_mat16x16<f16, B>>(&tile[{{ keys * 16 * tile_row + columns * 16 // unit }}], {{ tile_row }}u), out_{{ columns }});
{% endfor %}
            }
{% endfor %}
        }
        workgroupBarrier();
    }

    var total = (sum.x + sum.y) + (sum.z + sum.w);
{% for step in steps %}
    total += subgroupShuffleXor(total, {{ step }}u);
{% endfor %}
    let factor = quotient_1(1.0, total);
{# As many columns at a time as there is room for in the scores. #}
{% for first in range(0, blocks, key_blocks) %}
{% set held = [key_blocks, blocks - first] | min %}
{% for block in range(held) %}
    coopStoreT(out_{{ first + block }}, &scores[scores_at + {{ block * 16 }}u], {{ score_stride }}u);
{% endfor %}
    workgroupBarrier();
    for (var i = place; i < {{ 16 * held * 16 // 4 }}u; i += {{ subgroup }}u) {
        let line = i / {{ held * 16 // 4 }}u;
        let column = i % {{ held * 16 // 4 }}u * 4u;
        let line_factor = subgroupShuffle(factor, line * {{ lanes }}u);
        let at = scores_at + line * {{ score_stride }}u + column;
        let low = vec4<f16>(four_scores(at) * line_factor);
        let to = q_base + (first_row + subgroup * 16u + line) * {{ heads * row_units }}u + ({{ first * 16 }}u + column) / {{ unit }}u;
{% if ragged_q %}
        if first_row + subgroup * 16u + line < {{ seq }}u {
{% else %}
        {
{% endif %}
{% if unit == 4 %}
            result[to] = low;
{% elif unit == 2 %}
            result[to] = low.xy;
            result[to + 1u] = low.zw;
{% else %}
            result[to] = low.x;
            result[to + 1u] = low.y;
            result[to + 2u] = low.z;
            result[to + 3u] = low.w;
{% endif %}
        }
    }
    workgroupBarrier();
{% endfor %}
}
