"""OpenVINO, from its own operations: weights are constants, which its CPU plugin packs when a model is compiled.

A block comes in two forms, attention as one operation and written out, because which one is faster depends on shape and CPU.
"""

import numpy as np
import openvino as ov
from openvino import opset15 as op

from native import Contestant

CORE = ov.Core()


class Unsupported(Exception):
    """The plugin runs the model in another type than it was asked for."""


def build(block, tensors, threads, dtype="f32"):
    if block.product:
        x = op.parameter([*tensors["x"].shape], np.float32)
        product = ov.Model([op.matmul(x, op.constant(tensors["w"]), False, False)], [x])
        return {"OpenVINO": contestant(product, tensors["x"], threads, dtype)}
    forms = {"OpenVINO": True, "OpenVINO, attention written out": False}
    x = tensors["x"]
    return {name: contestant(model(block, tensors, fused), x, threads, dtype) for name, fused in forms.items()}


def contestant(graph, x, threads, dtype):
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": dtype,
        # Whoever runs this sets its affinity.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = CORE.compile_model(graph, "CPU", options)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != dtype:
        raise Unsupported(f"OpenVINO runs it in {used} on this CPU, not in {dtype}")
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def run(repeats):
        for _ in range(repeats):
            request.infer()

    return Contestant(run, lambda: np.array(request.get_output_tensor().data), (compiled, x))


def model(block, tensors, fused):
    spec = block.spec
    x = op.parameter([*tensors["x"].shape], np.float32)
    y = op.add(x, attention(block, tensors, norm(block, tensors, "norm1", x), fused))
    z = norm(block, tensors, "norm2", y)
    hidden = linear(tensors, "mlp.w_up", "mlp.b_up", z)
    if block.gated:
        hidden = op.multiply(activation(spec["activation"], linear(tensors, "mlp.w_gate", "mlp.b_gate", z)), hidden)
    else:
        hidden = activation(spec["activation"], hidden)
    return ov.Model([op.add(y, linear(tensors, "mlp.w_down", "mlp.b_down", hidden))], [x])


def linear(tensors, weight, bias, x):
    y = op.matmul(x, op.constant(tensors[weight]), False, False)
    return op.add(y, op.constant(tensors[bias])) if bias in tensors else y


def norm(block, tensors, name, x):
    eps, axes = block.spec["norm-eps"], op.constant(np.array([-1], np.int64))
    if block.layer_norm:
        y = op.mvn(x, axes, True, eps, "inside_sqrt")
        y = op.multiply(y, op.constant(tensors[f"{name}.gain"]))
        return op.add(y, op.constant(tensors[f"{name}.bias"]))
    mean = op.reduce_mean(op.power(x, op.constant(np.float32(2))), axes, True)
    root = op.sqrt(op.add(mean, op.constant(np.float32(eps))))
    y = op.multiply(x, op.divide(op.constant(np.float32(1)), root))
    return op.multiply(y, op.constant(tensors[f"{name}.gain"]))


def activation(name, x):
    match name:
        case "gelu":
            return op.gelu(x, "erf")
        case "gelu-tanh":
            return op.gelu(x, "tanh")
        case "silu":
            return op.swish(x)
    raise ValueError(f"no activation `{name}` here")


def attention(block, tensors, x, fused):
    spec, head = block.spec, block.head
    seq, heads, kv_heads = spec["seq"], spec["heads"], block.kv_heads

    def shaped(y, *shape):
        return op.reshape(y, op.constant(np.array(shape, np.int64)), False)

    def project(letter, count):
        y = linear(tensors, f"attn.w{letter}", f"attn.b{letter}", x)
        return op.transpose(shaped(y, 1, seq, count, head), op.constant(np.array([0, 2, 1, 3], np.int64)))

    q, k, v = project("q", heads), project("k", kv_heads), project("v", kv_heads)
    if block.rope:
        q, k = rotate(tensors, q), rotate(tensors, k)
    if kv_heads != heads:
        group = heads // kv_heads

        def repeated(y):
            target = op.constant(np.array([1, kv_heads, group, seq, head], np.int64))
            return shaped(op.broadcast(shaped(y, 1, kv_heads, 1, seq, head), target), 1, heads, seq, head)

        k, v = repeated(k), repeated(v)
    if fused:
        y = op.scaled_dot_product_attention(q, k, v, causal=spec["causal"])
    else:
        scores = op.multiply(op.matmul(q, k, False, True), op.constant(np.float32(head**-0.5)))
        if spec["causal"]:
            mask = np.where(np.tri(seq, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
            scores = op.add(scores, op.constant(mask[None, None]))
        y = op.matmul(op.softmax(scores, -1), v, False, False)
    y = op.transpose(y, op.constant(np.array([0, 2, 1, 3], np.int64)))
    return linear(tensors, "attn.wo", "attn.bo", shaped(y, seq, heads * head))


def rotate(tensors, x):
    half, axis = x.get_output_shape(0)[-1] // 2, op.constant(np.array(-1, np.int64))
    first, second = op.variadic_split(x, axis, op.constant(np.array([half, half], np.int64))).outputs()
    turned = op.concat([op.multiply(second, op.constant(np.float32(-1))), first], -1)
    cos, sin = (op.constant(np.tile(tensors[f"rope.{it}"], 2)[None, None]) for it in ("cos", "sin"))
    return op.add(op.multiply(x, cos), op.multiply(turned, sin))
