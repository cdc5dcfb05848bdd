"""Times the blocks of this folder in PyTorch: a block as a CUDA graph's replay, a product as cuBLAS runs it.

Reads the specifications from kforge's own reports (`kforge report --json`, one file as the argument) so that both sides compute the same
thing, and writes {"BLOCK": nanoseconds} as JSON to standard output.
"""

import json
import sys

import torch
import torch.nn.functional as F

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
SAMPLES, REPLAYS = 30, 20


def block(spec, dtype):
    """A function that runs the block once, on tensors of its own."""

    def tensor(*shape):
        return torch.randn(*shape, device="cuda", dtype=dtype) / max(1, shape[0]) ** 0.5

    if spec["kind"] == "matmul":
        a, w = tensor(spec["m"], spec["k"]), tensor(spec["k"], spec["n"])
        return lambda: a @ w
    rows, attention, mlp = spec["rows"], spec["attention"], spec["mlp"]
    tokens, d, heads = rows["batch"] * rows["seq"], attention["d-model"], attention["heads"]
    head, ff = attention["head-dim"], mlp["d-ff"]
    x = tensor(tokens, d)
    gain1, bias1, gain2, bias2 = (tensor(d) for _ in range(4))
    # One product for queries, keys and values, as the usual implementations have it.
    qkv, qkv_bias = tensor(3 * heads * head, d), tensor(3 * heads * head)
    out, out_bias = tensor(d, heads * head), tensor(d)
    up, up_bias, down, down_bias = tensor(ff, d), tensor(ff), tensor(d, ff), tensor(d)

    def run():
        y = F.layer_norm(x, (d,), gain1, bias1)
        y = F.linear(y, qkv, qkv_bias).view(rows["batch"], rows["seq"], 3, heads, head)
        q, k, v = y.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=attention["causal"])
        y = F.linear(y.transpose(1, 2).reshape(tokens, d), out, out_bias) + x
        z = F.layer_norm(y, (d,), gain2, bias2)
        return F.linear(F.gelu(F.linear(z, up, up_bias), approximate="tanh"), down, down_bias) + y

    return run


def nanoseconds(run):
    """Median time of one run within a CUDA graph that is replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(SAMPLES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e6 / REPLAYS)
    return sorted(times)[len(times) // 2]


with open(sys.argv[1]) as file:
    reports = [it["report"] for it in json.load(file)["blocks"] if it.get("report")]
dtypes = {"f32": torch.float32, "f16": torch.float16}
with torch.inference_mode():
    print(json.dumps({it["block"]: nanoseconds(block(it["spec"], dtypes[it["spec"]["dtype"]])) for it in reports}))
