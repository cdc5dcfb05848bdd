// Products of 16x16 matrices that never leave the registers: sixteen independent sums for each subgroup.
enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read> source: array<f16>;
@group(0) @binding(1) var<storage, read_write> sink: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    let left = coopLoadT<coop_mat16x16<f16, A>>(&source[0], 16u);
    let right = coopLoadT<coop_mat16x16<f16, B>>(&source[256], 16u);
{%- for sum in range(16) %}
    var sum_{{ sum }} = coop_mat16x16<f32, C>();
{%- endfor %}
    for (var step = 0u; step < 128u; step++) {
{%- for sum in range(16) %}
        sum_{{ sum }} = coopMultiplyAdd(left, right, sum_{{ sum }});
{%- endfor %}
    }
    // Never true; the compiler does not know.
    if (source[0] > 1000.0h) {
{%- for sum in range(16) %}
        coopStoreT(sum_{{ sum }}, &sink[{{ sum * 256 }}], 16u);
{%- endfor %}
    }
}
