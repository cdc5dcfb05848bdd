// The `transformer` dialect. What MLIR itself can hold of an op stands here: which operands, which attributes, which values
// must have the same type. Shape relations between operands are beyond IRDL: see shapes.rs.
//
// Two traps, both used on purpose below: a constraint named for two operands means that both have the SAME type, so a
// variable is shared exactly where the types must agree; and an op with optional operands carries
// `operandSegmentSizes = array<i32: ...>`. IRDL knows no optional attribute: a flag is a bool, no activation is "none".
irdl.dialect @transformer {
  // y = act(a w + bias) + residual.
  irdl.operation @matmul {
    %a = irdl.base "!builtin.tensor"
    %w = irdl.base "!builtin.tensor"
    %bias = irdl.base "!builtin.tensor"
    %y = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    %none = irdl.is "none"
    %gelu = irdl.is "gelu"
    %gelu_tanh = irdl.is "gelu-tanh"
    %silu = irdl.is "silu"
    %relu = irdl.is "relu"
    %activation = irdl.any_of(%none, %gelu, %gelu_tanh, %silu, %relu)
    %yes = irdl.is true
    %no = irdl.is false
    %tiled = irdl.any_of(%yes, %no)
    irdl.operands(a: %a, w: %w, bias: optional %bias, residual: optional %y)
    irdl.results(y: %y)
    irdl.attributes {"activation" = %activation, "stage" = %stage, "tiled" = %tiled}
  }

  // For each sequence and query head: y = softmax(scale q k^T + mask) v.
  irdl.operation @attention {
    %q = irdl.base "!builtin.tensor"
    %kv = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    %batch = irdl.base "#builtin.integer"
    %seq = irdl.base "#builtin.integer"
    %heads = irdl.base "#builtin.integer"
    %kv_heads = irdl.base "#builtin.integer"
    %head_dim = irdl.base "#builtin.integer"
    %scale = irdl.base "#builtin.float"
    %yes = irdl.is true
    %no = irdl.is false
    %causal = irdl.any_of(%yes, %no)
    %tiled = irdl.any_of(%yes, %no)
    irdl.operands(q: %q, k: %kv, v: %kv)
    irdl.results(y: %q)
    irdl.attributes {
      "batch" = %batch, "causal" = %causal, "head_dim" = %head_dim, "heads" = %heads, "kv_heads" = %kv_heads,
      "scale" = %scale, "seq" = %seq, "stage" = %stage, "tiled" = %tiled
    }
  }

  // y = (x - mean(x)) / sqrt(variance(x) + eps) * gain + bias, row by row.
  irdl.operation @layer_norm {
    %x = irdl.base "!builtin.tensor"
    %width = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    %eps = irdl.base "#builtin.float"
    %yes = irdl.is true
    %no = irdl.is false
    %vectorized = irdl.any_of(%yes, %no)
    irdl.operands(x: %x, gain: %width, bias: %width)
    irdl.results(y: %x)
    irdl.attributes {"eps" = %eps, "stage" = %stage, "vectorized" = %vectorized}
  }

  // y = x / sqrt(mean(x^2) + eps) * gain, row by row.
  irdl.operation @rms_norm {
    %x = irdl.base "!builtin.tensor"
    %gain = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    %eps = irdl.base "#builtin.float"
    %yes = irdl.is true
    %no = irdl.is false
    %vectorized = irdl.any_of(%yes, %no)
    irdl.operands(x: %x, gain: %gain)
    irdl.results(y: %x)
    irdl.attributes {"eps" = %eps, "stage" = %stage, "vectorized" = %vectorized}
  }

  // Rotary embedding: every pair (x_i, x_{i + head_dim/2}) of every head turns by the angle of the tables.
  irdl.operation @rope {
    %x = irdl.base "!builtin.tensor"
    %table = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    %batch = irdl.base "#builtin.integer"
    %seq = irdl.base "#builtin.integer"
    %heads = irdl.base "#builtin.integer"
    %head_dim = irdl.base "#builtin.integer"
    irdl.operands(x: %x, cos: %table, sin: %table)
    irdl.results(y: %x)
    irdl.attributes {"batch" = %batch, "head_dim" = %head_dim, "heads" = %heads, "seq" = %seq, "stage" = %stage}
  }

  irdl.operation @gelu {
    %x = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    irdl.operands(x: %x)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  irdl.operation @gelu_tanh {
    %x = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    irdl.operands(x: %x)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  irdl.operation @silu {
    %x = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    irdl.operands(x: %x)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  irdl.operation @relu {
    %x = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    irdl.operands(x: %x)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  irdl.operation @add {
    %x = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    irdl.operands(a: %x, b: %x)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  irdl.operation @mul {
    %x = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    irdl.operands(a: %x, b: %x)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  // y = factor x.
  irdl.operation @scale {
    %x = irdl.base "!builtin.tensor"
    %scalar = irdl.is tensor<f32>
    %stage = irdl.base "#builtin.string"
    irdl.operands(x: %x, factor: %scalar)
    irdl.results(y: %x)
    irdl.attributes {"stage" = %stage}
  }

  // The value is kept in f64 until code generation rounds it, so that folding adds no rounding of its own.
  irdl.operation @constant {
    %scalar = irdl.is tensor<f32>
    %value = irdl.base "#builtin.float"
    irdl.results(y: %scalar)
    irdl.attributes {"value" = %value}
  }

  // y = 1 / sqrt(x).
  irdl.operation @rsqrt {
    %scalar = irdl.is tensor<f32>
    irdl.operands(x: %scalar)
    irdl.results(y: %scalar)
  }

  // y = h w_down + b_down + residual, where h = act(x w_up + b_up), or with a gate h = act(x w_gate + b_gate) * (x w_up + b_up).
  irdl.operation @mlp {
    %x = irdl.base "!builtin.tensor"
    %up = irdl.base "!builtin.tensor"
    %up_bias = irdl.base "!builtin.tensor"
    %down = irdl.base "!builtin.tensor"
    %down_bias = irdl.base "!builtin.tensor"
    %stage = irdl.base "#builtin.string"
    %gelu = irdl.is "gelu"
    %gelu_tanh = irdl.is "gelu-tanh"
    %silu = irdl.is "silu"
    %relu = irdl.is "relu"
    %activation = irdl.any_of(%gelu, %gelu_tanh, %silu, %relu)
    %yes = irdl.is true
    %no = irdl.is false
    %tiled = irdl.any_of(%yes, %no)
    irdl.operands(
      x: %x, w_gate: optional %up, b_gate: optional %up_bias, w_up: %up, b_up: optional %up_bias,
      w_down: %down, b_down: optional %down_bias, residual: optional %x
    )
    irdl.results(y: %x)
    irdl.attributes {"activation" = %activation, "stage" = %stage, "tiled" = %tiled}
  }
}
