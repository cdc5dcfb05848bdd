"""ONNX Runtime: weights are initializers, which it packs when a session starts.

Attention comes in two forms, written out and as the operators that its own model optimiser puts in place of that
(`MultiHeadAttention`, and `GroupQueryAttention`, which turns queries and keys itself).
"""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from native import Contestant


def build(block, tensors, threads):
    if block.product:
        graph = Graph()
        graph.node("MatMul", ["x", graph.constant(tensors["w"])], "y")
        return {"ONNX Runtime": contestant(graph, tensors["x"], block.output, threads)}
    forms = {"ONNX Runtime": True, "ONNX Runtime, attention written out": False}
    x, y = tensors["x"], block.output
    return {name: contestant(model(block, tensors, fused), x, y, threads) for name, fused in forms.items()}


def contestant(graph, x, shape, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    model = graph.model(x.shape, shape)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, y = session.io_binding(), np.empty(shape, np.float32)
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, shape, y.ctypes.data)

    def run(repeats):
        for _ in range(repeats):
            session.run_with_iobinding(binding)

    return Contestant(run, lambda: y, (session, x))


class Graph:
    """Nodes and initializers of a model under construction; values are named by numbers."""

    def __init__(self):
        self.nodes, self.initializers = [], []

    def constant(self, values):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind, inputs, output=None, domain="", **attributes):
        output = output or f"v{len(self.nodes)}"
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return output

    def model(self, x, y):
        info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
        graph = helper.make_graph(self.nodes, "block", info[:1], info[1:], self.initializers)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def model(block, tensors, fused):
    g, spec = Graph(), block.spec
    y = g.node("Add", ["x", attention(g, block, tensors, norm(g, block, tensors, "norm1", "x"), fused)])
    z = norm(g, block, tensors, "norm2", y)
    hidden = linear(g, tensors, "mlp.w_up", "mlp.b_up", z)
    if block.gated:
        gate = activation(g, spec["activation"], linear(g, tensors, "mlp.w_gate", "mlp.b_gate", z))
        hidden = g.node("Mul", [gate, hidden])
    else:
        hidden = activation(g, spec["activation"], hidden)
    g.node("Add", [y, linear(g, tensors, "mlp.w_down", "mlp.b_down", hidden)], "y")
    return g


def linear(g, tensors, weight, bias, x):
    y = g.node("MatMul", [x, g.constant(tensors[weight])])
    return g.node("Add", [y, g.constant(tensors[bias])]) if bias in tensors else y


def norm(g, block, tensors, name, x):
    gain, eps = g.constant(tensors[f"{name}.gain"]), block.spec["norm-eps"]
    if block.layer_norm:
        return g.node("LayerNormalization", [x, gain, g.constant(tensors[f"{name}.bias"])], epsilon=eps)
    return g.node("SimplifiedLayerNormalization", [x, gain], epsilon=eps, axis=-1)


def activation(g, name, x):
    match name:
        case "gelu":
            return g.node("Gelu", [x], approximate="none")
        case "gelu-tanh":
            return g.node("Gelu", [x], approximate="tanh")
        case "silu":
            return g.node("Mul", [x, g.node("Sigmoid", [x])])
    raise ValueError(f"no activation `{name}` here")


def attention(g, block, tensors, x, fused):
    q, k, v = (linear(g, tensors, f"attn.w{it}", f"attn.b{it}", x) for it in "qkv")
    y = (operator if fused else written_out)(g, block, tensors, q, k, v)
    return linear(g, tensors, "attn.wo", "attn.bo", y)


def operator(g, block, tensors, q, k, v):
    spec, microsoft = block.spec, "com.microsoft"
    seq, heads, head = spec["seq"], spec["heads"], block.head

    def shaped(y, *shape):
        return g.node("Reshape", [y, g.constant(np.array(shape, np.int64))])

    q, k, v = (shaped(it, 1, seq, -1) for it in (q, k, v))
    if block.rope or block.kv_heads != heads:
        past = g.constant(np.zeros((1, block.kv_heads, 0, head), np.float32))
        lengths = [g.constant(np.array([seq - 1], np.int32)), g.constant(np.array(seq, np.int32))]
        tables = [g.constant(tensors[f"rope.{it}"]) for it in ("cos", "sin")] if block.rope else []
        attributes = {"num_heads": heads, "kv_num_heads": block.kv_heads, "do_rotary": int(bool(block.rope))}
        outputs = ["grouped", "present-key", "present-value"]
        y = g.node("GroupQueryAttention", [q, k, v, past, past, *lengths, *tables], outputs, microsoft, **attributes)[0]
    else:
        attributes = {"num_heads": heads, "unidirectional": int(spec["causal"])}
        y = g.node("MultiHeadAttention", [q, k, v], None, microsoft, **attributes)
    return shaped(y, seq, heads * head)


def written_out(g, block, tensors, q, k, v):
    spec, head = block.spec, block.head
    seq, heads, kv_heads = spec["seq"], spec["heads"], block.kv_heads

    def shaped(y, *shape):
        return g.node("Reshape", [y, g.constant(np.array(shape, np.int64))])

    def split(y, count):
        return g.node("Transpose", [shaped(y, seq, count, head)], perm=[1, 0, 2])

    q, k, v = split(q, heads), split(k, kv_heads), split(v, kv_heads)
    if block.rope:
        q, k = rotate(g, tensors, q), rotate(g, tensors, k)
    if kv_heads != heads:
        target = g.constant(np.array([kv_heads, heads // kv_heads, seq, head], np.int64))

        def repeated(y):
            return shaped(g.node("Expand", [shaped(y, kv_heads, 1, seq, head), target]), heads, seq, head)

        k, v = repeated(k), repeated(v)
    scores = g.node("MatMul", [q, g.node("Transpose", [k], perm=[0, 2, 1])])
    scores = g.node("Mul", [scores, g.constant(np.float32(head**-0.5))])
    if spec["causal"]:
        mask = np.where(np.tri(seq, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
        scores = g.node("Add", [scores, g.constant(mask)])
    y = g.node("MatMul", [g.node("Softmax", [scores], axis=-1), v])
    return shaped(g.node("Transpose", [y], perm=[1, 0, 2]), seq, heads * head)


def rotate(g, tensors, x):
    first, second = g.node("Split", [x], [f"{x}-first", f"{x}-second"], axis=-1, num_outputs=2)
    turned = g.node("Concat", [g.node("Neg", [second]), first], axis=-1)
    cos, sin = (g.constant(np.tile(tensors[f"rope.{it}"], 2)) for it in ("cos", "sin"))
    return g.node("Add", [g.node("Mul", [x, cos]), g.node("Mul", [turned, sin])])
