{# What happens to a product's sums before they are stored: `finish(row, column, value)` for `epilogue.width` elements of a row,
   `column` counted in vectors of that many. With `epilogue.gate` the sums of the gate come first. Expects math.wgsl for the same
   width. Bindings from `epilogue.first` on: bias, bias of the gate, factor, residual, out, as far as they are there. #}
{% set e = epilogue %}
{% set next = namespace(at=e.first) %}
{% if e.bias %}
@group(0) @binding({{ next.at }}) var<storage, read> bias: array<{{ e.stored }}>;
{% set next.at = next.at + 1 %}
{% if e.gate %}
@group(0) @binding({{ next.at }}) var<storage, read> bias_gate: array<{{ e.stored }}>;
{% set next.at = next.at + 1 %}
{% endif %}
{% endif %}
{% if e.factor %}
@group(0) @binding({{ next.at }}) var<storage, read> factor: array<{{ e.real }}>;
{% set next.at = next.at + 1 %}
{% endif %}
{% if e.residual %}
@group(0) @binding({{ next.at }}) var<storage, read> residual: array<{{ e.stored }}>;
{% set next.at = next.at + 1 %}
{% endif %}
@group(0) @binding({{ next.at }}) var<storage, read_write> out: array<{{ e.out }}>;

fn finish(row: u32, column: u32, {% if e.gate %}gate: {{ e.real }}, {% endif %}value: {{ e.real }}) {
    let at = row * {{ e.columns }}u + column;
    var y = value;
{% if e.bias %}
    y = y + {{ e.real }}(bias[column]);
{% endif %}
{% if e.gate %}
    var g = gate;
{% if e.bias %}
    g = g + {{ e.real }}(bias_gate[column]);
{% endif %}
    y = {{ e.activation }}_{{ e.width }}(g) * y;
{% elif e.activation %}
    y = {{ e.activation }}_{{ e.width }}(y);
{% endif %}
{% if e.factor %}
    y = y * factor[at];
{% endif %}
{% if e.residual %}
    y = y + {{ e.real }}(residual[at]);
{% endif %}
    out[at] = {{ e.out }}(y);
}
