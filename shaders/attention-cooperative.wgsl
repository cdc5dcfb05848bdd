// softmax(scale q k^T + mask) v for one batch, one query head and {{ tile_q }} query rows: {{ subgroups }} subgroups of {{ subgroup }} with {{ subgroup_q }} rows each,
// both products on matrices of 16 x 16, f16 with f32 accumulators.
//
// The elements of such a matrix have no known place, so scores go through workgroup memory, {{ chunk }} keys at a time, where {{ lanes }}
// invocations have a row, and weights come back the same way. Accumulators cannot be scaled row by row and seldom must be: weights are
// relative to a reference of the row, which starts as the maximum over the first tile of keys and follows the running maximum only when
// that is more than {{ headroom }} ahead. Then, and only then, accumulators go through workgroup memory too. Scores and references are logarithms
// to base 2 here, and weights 2^(score - reference + {{ boost }}), at most 2^{{ headroom + boost }}: the {{ boost }} keeps small ones out of f16's subnormal range.
//
// Every array of workgroup memory is a multiple of 16 bytes long. The rows of matrices must begin at such multiples, and a flag of 4 bytes
// before them, which a driver may choose to place there, made a driver's results wrong without any error.
{% set unit = [vector, 4] | min %}
{% set pieces = vector // unit %}
{% set per_row = head_dim // vector %}
{% set row_units = head_dim // unit %}
{% set tile_row = stride // unit %}
{% set loads = (tile_k * per_row + threads - 1) // threads %}
{% set ragged_loads = loads * threads != tile_k * per_row %}
{% set blocks = head_dim // 16 %}
{% set key_blocks = tile_k // 16 %}
{% set row_blocks = subgroup_q // 16 %}
{% set chunk_blocks = chunk // 16 %}
{% set chunks = tile_k // chunk %}
{% set weight_row = weight_stride // 4 %}
{% set score_row = score_stride // 4 %}
{# Vectors of four keys of a chunk that one invocation has. #}
{% set own = chunk // 4 // lanes %}
{# k and v are read as whole words: compilers take vectors of f16 that are asked for ahead apart at once, and wait for them there. #}
{% if vector == 8 %}
{% set load = "vec4<u32>" %}{% set words = [".x", ".y", ".z", ".w"] %}
{% elif vector == 4 %}
{% set load = "vec2<u32>" %}{% set words = [".x", ".y"] %}
{% elif vector == 2 %}
{% set load = "u32" %}{% set words = [""] %}
{% else %}
{% set load = "f16" %}{% set words = [] %}
{% endif %}
enable f16;
enable wgpu_cooperative_matrix;
// The branches around matrix operations depend on workgroup memory behind a barrier, or on the subgroup's number.
diagnostic(off, derivative_uniformity);

{% include "math.wgsl" %}

@group(0) @binding(0) var<storage, read> q: array<{{ storage }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ load }}>;
@group(0) @binding(2) var<storage, read> v: array<{{ load }}>;
@group(0) @binding(3) var<storage, read_write> result: array<{{ storage }}>;

// Keys, then values: {{ tile_k }} rows.
var<workgroup> tile: array<{{ storage }}, {{ tile_k * tile_row }}>;
// Of each subgroup: a chunk's scores, and accumulators on their way; a chunk's weights, and before all its queries.
var<workgroup> scores: array<vec4<f32>, {{ subgroups * subgroup_q * score_row }}>;
var<workgroup> weights: array<vec4<f16>, {{ subgroups * subgroup_q * weight_row }}>;
// Whether some row of the workgroup has a new reference, whether a tile that is partly masked has a value that is not finite; the others
// fill 16 bytes.
var<workgroup> flags: array<atomic<u32>, 4>;

{% if causal %}
{% if vector == 1 %}
fn is_wild(x: f16) -> bool {
    return (bitcast<u32>(f32(x)) & 0x7f800000u) == 0x7f800000u;
}
{% else %}
// Two f16 with 0 in place of what is not finite.
fn tamed(x: u32) -> u32 {
    let low = select(0xffffu, 0u, (x & 0x7c00u) == 0x7c00u);
    let high = select(0xffff0000u, 0u, (x & 0x7c000000u) == 0x7c000000u);
    return x & (low | high);
}
{% endif %}

// What is not finite of four values of the row that begins at load `row`, else 0.
fn wild_values(row: u32, four: u32) -> vec4<f32> {
{% if vector == 8 %}
    let pair = v[row + four / 2u];
    let half = select(pair.xy, pair.zw, vec2<bool>(four % 2u == 1u));
    let x = vec4<f32>(unpack2x16float(half.x), unpack2x16float(half.y));
{% elif vector == 4 %}
    let half = v[row + four];
    let x = vec4<f32>(unpack2x16float(half.x), unpack2x16float(half.y));
{% elif vector == 2 %}
    let x = vec4<f32>(unpack2x16float(v[row + four * 2u]), unpack2x16float(v[row + four * 2u + 1u]));
{% else %}
    let x = vec4<f32>(f32(v[row + four * 4u]), f32(v[row + four * 4u + 1u]), f32(v[row + four * 4u + 2u]), f32(v[row + four * 4u + 3u]));
{% endif %}
    return select(vec4<f32>(), x, (bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}
{% endif %}

{% macro declare(name) %}
{% for n in range(loads) %}
    var {{ name }}_{{ n }} = {{ load }}();
{% endfor %}
{% endmacro %}
{% macro fetch(name, buffer, first) %}
{% for n in range(loads) %}
        {
            let i = lane + {{ n * threads }}u;
            let row = {{ first }} + i / {{ per_row }}u;
{% set guards %}{% if ragged_loads %}i < {{ tile_k * per_row }}u && {% endif %}{% if ragged_k %}row < {{ seq }}u && {% endif %}{% endset %}
{% if guards %}
            {{ name }}_{{ n }} = {{ load }}();
            if {{ guards }}true {
{% else %}
            {
{% endif %}
                {{ name }}_{{ n }} = {{ buffer }}[kv_base + row * {{ kv_heads * head_dim // vector }}u + i % {{ per_row }}u];
            }
        }
{% endfor %}
{% endmacro %}
{% macro place(name) %}
{% for n in range(loads) %}
        {
            let i = lane + {{ n * threads }}u;
{% if ragged_loads %}
            if i < {{ tile_k * per_row }}u {
{% else %}
            {
{% endif %}
{% if vector == 1 %}
                tile[i / {{ per_row }}u * {{ tile_row }}u + i % {{ per_row }}u] = {{ name }}_{{ n }};
{% elif vector == 2 %}
                tile[i / {{ per_row }}u * {{ tile_row }}u + i % {{ per_row }}u] = vec2<f16>(unpack2x16float({{ name }}_{{ n }}));
{% else %}
{% for piece in range(pieces) %}
                tile[i / {{ per_row }}u * {{ tile_row }}u + i % {{ per_row }}u * {{ pieces }}u + {{ piece }}u] = vec4<f16>(vec2<f16>(unpack2x16float({{ name }}_{{ n }}{{ words[piece * 2] }})), vec2<f16>(unpack2x16float({{ name }}_{{ n }}{{ words[piece * 2 + 1] }})));
{% endfor %}
{% endif %}
            }
        }
{% endfor %}
{% endmacro %}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) place: u32) {
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
    let subgroup_row = first_row + subgroup * {{ subgroup_q }}u;
    let own_row = place / {{ lanes }}u;
    let part = place % {{ lanes }}u;
    let scores_at = subgroup * {{ subgroup_q * score_row }}u;
    let weights_at = subgroup * {{ subgroup_q * weight_row }}u;
    let own_scores = scores_at + own_row * {{ score_row }}u + part;
    let own_weights = weights_at + own_row * {{ weight_row }}u + part;

{% if prefetch %}
    let last_key = (visible_keys - 1u) / {{ tile_k }}u * {{ tile_k }}u;
{% endif %}
{{ declare("next_k") }}
{{ declare("next_v") }}
{% if prefetch %}
{{ fetch("next_k", "k", "0u") }}
{% endif %}
{# Queries pass through the subgroup's weights, as many columns at a time as there is room for. #}
{% for first in range(0, blocks, chunk_blocks) %}
{% set held = [chunk_blocks, blocks - first] | min %}
    for (var i = place; i < {{ subgroup_q * held * 4 }}u; i += {{ subgroup }}u) {
        let line = i / {{ held * 4 }}u;
        let four = i % {{ held * 4 }}u;
{% if ragged_q %}
        // Rows beyond the last repeat it and are not written.
        let query_row = min(subgroup_row + line, {{ seq - 1 }}u);
{% else %}
        let query_row = subgroup_row + line;
{% endif %}
        let at = q_base + query_row * {{ heads * row_units }}u + ({{ first * 16 }}u + four * 4u) / {{ unit }}u;
        weights[weights_at + line * {{ weight_row }}u + four] = vec4<f16>({% for n in range(4 // unit) %}q[at + {{ n }}u]{{ "" if loop.last else ", " }}{% endfor %});
    }
    workgroupBarrier();
{% for block in range(held) %}
{% for r in range(row_blocks) %}
    let query_{{ r }}_{{ first + block }} = coopLoadT<coop_mat16x16<f16, A>>(&weights[weights_at + {{ r * 16 * weight_row + block * 4 }}u], {{ weight_row }}u);
{% endfor %}
{% endfor %}
    workgroupBarrier();
{% endfor %}
{% for r in range(row_blocks) %}
{% for block in range(blocks) %}
    var out_{{ r }}_{{ block }} = coop_mat16x16<f32, C>();
{% endfor %}
{% endfor %}

    var reference = -3.4e38;
    var sum = vec4<f32>();
    // There is one layer of workgroups, but compilers do not know, and so leave the loop as it is. Written out eight times it no longer
    // fits into instruction caches: 980 instead of 310 us.
    for (var first_key = 0u; first_key < visible_keys; first_key += {{ tile_k }}u * count.z) {
{% if not prefetch %}
{{ fetch("next_k", "k", "first_key") }}
{% endif %}
{{ place("next_k") }}
        if lane == 0u {
            atomicStore(&flags[0], 0u);
{% if causal %}
            atomicStore(&flags[1], 0u);
{% endif %}
        }
        workgroupBarrier();
{% if prefetch %}
{{ fetch("next_v", "v", "first_key") }}
{% endif %}
{% for keys in range(key_blocks) %}
{% for r in range(row_blocks) %}
        var block_{{ r }}_{{ keys }} = coop_mat16x16<f32, C>();
{% endfor %}
{% endfor %}
{% for columns in range(blocks) %}
{% for keys in range(key_blocks) %}
        {
            let b = coopLoad<coop_mat16x16<f16, B>>(&tile[{{ keys * 16 * tile_row + columns * 16 // unit }}], {{ tile_row }}u);
{% for r in range(row_blocks) %}
            block_{{ r }}_{{ keys }} = coopMultiplyAdd(query_{{ r }}_{{ columns }}, b, block_{{ r }}_{{ keys }});
{% endfor %}
        }
{% endfor %}
{% endfor %}
{% for c in range(chunks) %}
{% for r in range(row_blocks) %}
{% for keys in range(chunk_blocks) %}
        coopStoreT(block_{{ r }}_{{ c * chunk_blocks + keys }}, &scores[scores_at + {{ r * 16 * score_row + keys * 4 }}u], {{ score_row }}u);
{% endfor %}
{% endfor %}
        workgroupBarrier();
{% for n in range(own) %}
        let s_{{ c }}_{{ n }} = {{ "-" if negative }}scores[own_scores + {{ n * lanes }}u];
{% endfor %}
{% if c + 1 < chunks %}
        workgroupBarrier();
{% endif %}
{% endfor %}

{% if not prefetch %}
{{ fetch("next_v", "v", "first_key") }}
{% endif %}
{% if prefetch %}
        // The last tile is asked for twice: that is less than a branch around loads costs.
        let after = min(first_key + {{ tile_k }}u, last_key);
{{ fetch("next_k", "k", "after") }}
{% endif %}
{% if causal %}
        // Some keys of the tile are later than some rows. Those have no part in them, not even as 0 times NaN, which a matrix product
        // cannot leave out: what is not finite is taken out of the tile and added to the rows that see it.
        let crossing = first_key + {{ tile_k - 1 }}u > first_row;
        if crossing {
            var found = false;
{% for n in range(loads) %}
{% if vector == 1 %}
            if is_wild(next_v_{{ n }}) {
                next_v_{{ n }} = 0.0h;
                found = true;
            }
{% else %}
{% for word in words %}
            {
                let tame = tamed(next_v_{{ n }}{{ word }});
                found |= tame != next_v_{{ n }}{{ word }};
                next_v_{{ n }}{{ word }} = tame;
            }
{% endfor %}
{% endif %}
{% endfor %}
            if found {
                atomicStore(&flags[1], 1u);
            }
        }
{% endif %}
{{ place("next_v") }}
{% if causal or ragged_k %}
        // Keys of the tile that the row sees: those before this one.
{% if causal %}
        let end = vec4<i32>(i32(min(subgroup_row + own_row + 1u, {{ seq }}u)) - i32(first_key));
{% else %}
        let end = vec4<i32>(i32({{ seq }}u - first_key));
{% endif %}
{% endif %}
{% macro seen(c, n) %}{% set at = (c * (chunk // 4) + n * lanes) * 4 %}vec4<i32>(i32(part * 4u)) + vec4<i32>({{ at }}, {{ at + 1 }}, {{ at + 2 }}, {{ at + 3 }}) < end{% endmacro %}
        var tops = vec4<f32>(-3.4e38);
{% macro maxima(masked) %}
{% for c in range(chunks) %}
{% for n in range(own) %}
            tops = {% if masked %}select(tops, max(tops, s_{{ c }}_{{ n }}), {{ seen(c, n) }}){% else %}max(tops, s_{{ c }}_{{ n }}){% endif %};
{% endfor %}
{% endfor %}
{% endmacro %}
{% if causal %}
        if crossing {
{{ maxima(true) }}
        } else {
{{ maxima(false) }}
        }
{% else %}
{{ maxima(ragged_k) }}
{% endif %}
        var top = max(max(tops.x, tops.y), max(tops.z, tops.w));
{% for step in steps %}
        top = max(top, subgroupShuffleXor(top, {{ step }}u));
{% endfor %}
        top = max(top * {{ scale }}, -3.4e38);
        var shrink = 1.0;
        if first_key == 0u {
            reference = top;
        } else if top > reference + {{ headroom }}.0 {
            shrink = exp2(reference - top);
            reference = top;
            sum *= shrink;
            atomicStore(&flags[0], 1u);
        }
        let shift = vec4<f32>({{ boost }}.0 - reference);
{% for c in range(chunks) %}
{% for n in range(own) %}
        var w_{{ c }}_{{ n }} = exp2(fma(s_{{ c }}_{{ n }}, vec4<f32>({{ scale }}), shift));
{% endfor %}
{% endfor %}
{% if causal or ragged_k %}
        {{ "if crossing " if causal }}{
{% for c in range(chunks) %}
{% for n in range(own) %}
            w_{{ c }}_{{ n }} = select(vec4<f32>(), w_{{ c }}_{{ n }}, {{ seen(c, n) }});
{% endfor %}
{% endfor %}
        }
{% endif %}
{% for c in range(chunks) %}
{% for n in range(own) %}
        sum += w_{{ c }}_{{ n }};
        weights[own_weights + {{ n * lanes }}u] = vec4<f16>(w_{{ c }}_{{ n }});
{% endfor %}
        workgroupBarrier();
{% for keys in range(chunk_blocks) %}
{% for r in range(row_blocks) %}
        let p_{{ r }}_{{ c * chunk_blocks + keys }} = coopLoadT<coop_mat16x16<f16, A>>(&weights[weights_at + {{ r * 16 * weight_row + keys * 4 }}u], {{ weight_row }}u);
{% endfor %}
{% endfor %}
{% if c + 1 < chunks %}
        workgroupBarrier();
{% endif %}
{% endfor %}

{% if causal %}
        let is_wild_tile = atomicLoad(&flags[1]) != 0u;
        if atomicLoad(&flags[0]) != 0u || is_wild_tile {
{% else %}
        if atomicLoad(&flags[0]) != 0u {
{% endif %}
{% for block in range(blocks) %}
{% for r in range(row_blocks) %}
            coopStoreT(out_{{ r }}_{{ block }}, &scores[scores_at + {{ r * 16 * score_row }}u], {{ score_row }}u);
{% endfor %}
            workgroupBarrier();
            for (var four = 0u; four < 4u; four += {{ lanes }}u) {
                let at = own_scores + four;
                var value = scores[at] * shrink;
{% if causal %}
                if is_wild_tile {
                    for (var key = 0u; i32(key) < min(end.x, {{ tile_k }}); key += count.z) {
                        value += wild_values(kv_base + (first_key + key) * {{ kv_heads * head_dim // vector }}u, {{ block * 4 }}u + four + part);
                    }
                }
{% endif %}
                scores[at] = value;
            }
            workgroupBarrier();
{% for r in range(row_blocks) %}
            out_{{ r }}_{{ block }} = coopLoadT<coop_mat16x16<f32, C>>(&scores[scores_at + {{ r * 16 * score_row }}u], {{ score_row }}u);
{% endfor %}
            workgroupBarrier();
{% endfor %}
        }
{% for keys in range(key_blocks) %}
{% for columns in range(blocks) %}
        {
            let b = coopLoadT<coop_mat16x16<f16, B>>(&tile[{{ keys * 16 * tile_row + columns * 16 // unit }}], {{ tile_row }}u);
{% for r in range(row_blocks) %}
            out_{{ r }}_{{ columns }} = coopMultiplyAdd(p_{{ r }}_{{ keys }}, b, out_{{ r }}_{{ columns }});
{% endfor %}
        }
{% endfor %}
{% endfor %}
        workgroupBarrier();
    }

    var total = (sum.x + sum.y) + (sum.z + sum.w);
{% for step in steps %}
    total += subgroupShuffleXor(total, {{ step }}u);
{% endfor %}
    let factor = quotient_1(1.0, total);
{# As many columns at a time as there is room for in the scores. #}
{% for first in range(0, blocks, chunk_blocks) %}
{% set held = [chunk_blocks, blocks - first] | min %}
{% for block in range(held) %}
{% for r in range(row_blocks) %}
    coopStoreT(out_{{ r }}_{{ first + block }}, &scores[scores_at + {{ r * 16 * score_row + block * 4 }}u], {{ score_row }}u);
{% endfor %}
{% endfor %}
    workgroupBarrier();
    for (var i = place; i < {{ subgroup_q * held * 4 }}u; i += {{ subgroup }}u) {
        let line = i / {{ held * 4 }}u;
        let four = i % {{ held * 4 }}u;
        let line_factor = subgroupShuffle(factor, line * {{ lanes }}u);
        let low = vec4<f16>(scores[scores_at + line * {{ score_row }}u + four] * line_factor);
        let to = q_base + (subgroup_row + line) * {{ heads * row_units }}u + ({{ first * 16 }}u + four * 4u) / {{ unit }}u;
{% if ragged_q %}
        if subgroup_row + line < {{ seq }}u {
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
{% if not loop.last %}
    workgroupBarrier();
{% endif %}
{% endfor %}
}
