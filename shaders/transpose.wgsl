{# out [columns, rows] = a [rows, columns], in tiles of 16 x 16 through workgroup memory, so that both sides go along rows. #}
{% if half %}
enable f16;

{% endif %}
@group(0) @binding(0) var<storage, read> a: array<{{ stored }}>;
@group(0) @binding(1) var<storage, read_write> out: array<{{ stored }}>;

// Rows are one longer than they need to be, against bank conflicts.
var<workgroup> tile: array<{{ stored }}, 272>;

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.y * 16u + id.y;
    let column = group.x * 16u + id.x;
    if (row < {{ rows }}u && column < {{ columns }}u) {
        tile[id.y * 17u + id.x] = a[row * {{ columns }}u + column];
    }
    workgroupBarrier();
    let out_row = group.x * 16u + id.y;
    let out_column = group.y * 16u + id.x;
    if (out_row < {{ columns }}u && out_column < {{ rows }}u) {
        out[out_row * {{ rows }}u + out_column] = tile[id.x * 17u + id.y];
    }
}
