{# Functions of f32 vectors of each width in `math_widths`, a list of 1, 2 or 4: `exp_4(x: vec4<f32>)`, `quotient_4`, `erf_4`, ...

   The builtins may be off by more than 2 units in the last place (Vulkan allows 3 + 2 |x| for exp, 2.5 for a division, 2 for an
   inverse square root, and an absolute error of 5e-4 for tanh), and compilers may assume that there is no NaN. So these are
   polynomials and corrected quotients with the coefficients of the generated CPU code, whose error bounds hold here too, and NaN is
   told by its bits. #}
{% for width in math_widths %}
{% if width == 1 %}
{% set real = "f32" %}{% set word = "u32" %}{% set whole = "i32" %}{% set truth = "bool" %}
{% else %}
{% set real = "vec" ~ width ~ "<f32>" %}{% set word = "vec" ~ width ~ "<u32>" %}{% set whole = "vec" ~ width ~ "<i32>" %}
{% set truth = "vec" ~ width ~ "<bool>" %}
{% endif %}
fn is_nan_{{ width }}(x: {{ real }}) -> {{ truth }} {
    return (bitcast<{{ word }}>(x) & {{ word }}(0x7fffffffu)) > {{ word }}(0x7f800000u);
}

// exp(x). Below -87.33, where the result leaves the normal range, it is 0; above 88.37 it is exp(88.37); NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), exp(r) by the degree-6 polynomial of Cephes' expf
// (S. L. Moshier), scaled by 2^n through the exponent bits. Error below 2 units in the last place.
fn exp_{{ width }}(x: {{ real }}) -> {{ real }} {
    let clamped = clamp(x, {{ real }}(-87.33654), {{ real }}(88.37626));
    let n = round(clamped * {{ real }}(1.44269504));
    // The choice in the middle also keeps compilers from adding the two parts of ln 2 up again, as Mesa's would: 34 units, not 1.
    let high = select(fma(n, {{ real }}(-0.693359375), clamped), x, is_nan_{{ width }}(x));
    let r = fma(n, {{ real }}(2.12194440e-4), high);
    var tail = fma(r, {{ real }}(1.9875691e-4), {{ real }}(1.3981999e-3));
    tail = fma(tail, r, {{ real }}(8.3334519e-3));
    tail = fma(tail, r, {{ real }}(4.1665796e-2));
    tail = fma(tail, r, {{ real }}(1.6666665e-1));
    tail = fma(tail, r, {{ real }}(0.5));
    let mantissa = fma(tail, r * r, r + {{ real }}(1.0));
    let power = bitcast<{{ real }}>(({{ whole }}(n) + {{ whole }}(127)) << {{ word }}(23u));
    return select(mantissa * power, {{ real }}(0.0), x < {{ real }}(-87.33654));
}

// a / b to about half a unit in the last place, for |b| within 2^-126 .. 2^126: one Newton step on the device's own quotient. The choice
// keeps compilers from seeing that the step subtracts from a what was made of a: NVIDIA's left it out where b is a constant.
fn quotient_{{ width }}(a: {{ real }}, b: {{ real }}) -> {{ real }} {
    let inverse = {{ real }}(1.0) / b;
    let first = select(a * inverse, a, is_nan_{{ width }}(a));
    let corrected = fma(fma(-first, b, a), inverse, first);
    // The step would make NaN of an infinite quotient.
    return select(corrected, first, abs(first) > {{ real }}(1e38));
}

// x^(-1/2) to about 1 unit in the last place, for x > 0: one Newton step on the device's own.
fn inverse_root_{{ width }}(x: {{ real }}) -> {{ real }} {
    let first = inverseSqrt(x);
    let corrected = fma({{ real }}(0.5) * first, fma(-(x * first), first, {{ real }}(1.0)), first);
    // Infinity and 0 have no step.
    return select(corrected, first, (first == {{ real }}(0.0)) | (first > {{ real }}(1e30)));
}

// erf(x) by the rational minimax approximation x P(x^2) / Q(x^2) that Eigen and XLA use, up to where erf is 1 to half an ulp.
// NaN may become anything within -1 .. 1.
fn erf_{{ width }}(x: {{ real }}) -> {{ real }} {
    let t = clamp(x, {{ real }}(-3.8325758), {{ real }}(3.8325758));
    let s = t * t;
    var p = fma(s, {{ real }}(-2.7261423e-10), {{ real }}(2.7706814e-8));
    p = fma(p, s, {{ real }}(-2.101024e-6));
    p = fma(p, s, {{ real }}(-5.6925065e-5));
    p = fma(p, s, {{ real }}(-7.349906e-4));
    p = fma(p, s, {{ real }}(-2.9546e-3));
    p = fma(p, s, {{ real }}(-1.6096033e-2));
    var q = fma(s, {{ real }}(-1.4566072e-5), {{ real }}(-2.1337406e-4));
    q = fma(q, s, {{ real }}(-1.682827e-3));
    q = fma(q, s, {{ real }}(-7.373329e-3));
    q = fma(q, s, {{ real }}(-1.4264739e-2));
    return quotient_{{ width }}(t * p, q);
}

// x / (1 + exp(-t)). The exponential is kept within the range of divisors: beyond it the result is less than 1.7e-38 |x|.
fn times_sigmoid_{{ width }}(x: {{ real }}, minus_t: {{ real }}) -> {{ real }} {
    let e = exp_{{ width }}(select(minus_t, {{ real }}(87.0), minus_t > {{ real }}(87.0)));
    return select(quotient_{{ width }}(x, e + {{ real }}(1.0)), x, is_nan_{{ width }}(x));
}

fn relu_{{ width }}(x: {{ real }}) -> {{ real }} {
    return select(max(x, {{ real }}(0.0)), x, is_nan_{{ width }}(x));
}

fn silu_{{ width }}(x: {{ real }}) -> {{ real }} {
    return times_sigmoid_{{ width }}(x, -x);
}

// 0.5 (1 + tanh z) = sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3): one exponential, no cancellation for x < 0.
fn gelu_tanh_{{ width }}(x: {{ real }}) -> {{ real }} {
    let slope = fma(x * x, {{ real }}(-0.07135481627), {{ real }}(-1.595769122));
    return times_sigmoid_{{ width }}(x, x * slope);
}

fn gelu_{{ width }}(x: {{ real }}) -> {{ real }} {
    let half = x * {{ real }}(0.5);
    return fma(half, erf_{{ width }}(x * {{ real }}(0.70710678118)), half);
}

{% endfor %}
