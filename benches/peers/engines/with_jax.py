"""JAX, and IREE on what JAX exports.

JAX gets the weights as arguments, because it packs none ahead. IREE gets them as constants: its compiler then packs them, and
with them as arguments a block of 128 rows took 1.7 times as long.
"""

import jax
import jax.numpy as jnp
import numpy as np

from native import Contestant


def build(block, tensors, threads):
    function, arguments = computation(block, tensors)
    compiled = jax.jit(function).lower(*arguments).compile()
    arguments = [jax.device_put(it) for it in arguments]
    last = [None]

    def run(repeats):
        for _ in range(repeats):
            last[0] = compiled(*arguments).block_until_ready()

    return {"JAX": Contestant(run, lambda: np.asarray(last[0]))}


def build_iree(block, tensors, threads):
    import iree.compiler as compiler
    import iree.runtime as runtime

    function, (x, *weights) = computation(block, tensors)
    text = jax.jit(lambda x: function(x, *weights)).lower(x).as_text("stablehlo")
    options = [
        "--iree-llvmcpu-target-cpu=host",
        # Its own limit of 32 KiB of stack refuses layer norms that it fused.
        "--iree-llvmcpu-stack-allocation-limit=1048576",
        # Faster than -O2 and -O3, which refuse some of the norms in this form.
        "--iree-opt-data-tiling=true",
        "--iree-llvmcpu-enable-ukernels=all",
    ]
    binary = compiler.compile_str(text, target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=options)
    runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = runtime.Config("local-task" if threads > 1 else "local-sync")
    main = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, binary), config)["main"]
    x = runtime.asdevicearray(config.device, x)
    last = [None]

    def run(repeats):
        for _ in range(repeats):
            last[0] = main(x)

    return {"IREE": Contestant(run, lambda: np.array(last[0].to_host()), (config, x))}


def computation(block, tensors):
    """The block as a function of its operands, and these."""
    if block.product:
        return jnp.matmul, [tensors["x"], tensors["w"]]
    names = list(tensors)
    return lambda *values: transformer(block, dict(zip(names, values))), list(tensors.values())


def transformer(block, t):
    x, spec = t["x"], block.spec
    y = x + attention(block, t, norm(block, t, "norm1", x))
    z = norm(block, t, "norm2", y)
    hidden = linear(t, "mlp.w_up", "mlp.b_up", z)
    if block.gated:
        hidden = activation(spec["activation"], linear(t, "mlp.w_gate", "mlp.b_gate", z)) * hidden
    else:
        hidden = activation(spec["activation"], hidden)
    return y + linear(t, "mlp.w_down", "mlp.b_down", hidden)


def linear(t, weight, bias, x):
    y = x @ t[weight]
    return y + t[bias] if bias in t else y


def norm(block, t, name, x):
    if block.layer_norm:
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + block.spec["norm-eps"]) * t[f"{name}.gain"]
    return x + t[f"{name}.bias"] if block.layer_norm else x


def activation(name, x):
    match name:
        case "gelu" | "gelu-tanh":
            return jax.nn.gelu(x, approximate=name == "gelu-tanh")
        case "silu":
            return jax.nn.silu(x)
    raise ValueError(f"no activation `{name}` here")


def attention(block, t, x):
    seq, heads, head = block.spec["seq"], block.spec["heads"], block.head

    def project(letter, count):
        return linear(t, f"attn.w{letter}", f"attn.b{letter}", x).reshape(seq, count, head)

    q, k, v = project("q", heads), project("k", block.kv_heads), project("v", block.kv_heads)
    if block.rope:
        q, k = rotate(t, q), rotate(t, k)
    y = jax.nn.dot_product_attention(q, k, v, is_causal=block.spec["causal"])
    return linear(t, "attn.wo", "attn.bo", y.reshape(seq, heads * head))


def rotate(t, x):
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = t["rope.cos"][:, None], t["rope.sin"][:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
