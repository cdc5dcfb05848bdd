"""The blocks of the project: what its manifests say, operands of them, and their results in f64.

A specification is the table of the manifest with one `seq`. Tensors have the names and shapes that kernel.json gives them: `x`,
`attn.wq` [d-model, heads * head-dim], `mlp.w_up` [d-model, d-ff], and so on; a product is `x` times `w`.
"""

import dataclasses
import fnmatch
import pathlib
import tomllib

import numpy as np
from scipy.special import erf


@dataclasses.dataclass(frozen=True)
class Block:
    """One instance of a block: its name in the project's reports, and its specification."""

    name: str
    spec: dict

    @property
    def product(self):
        """(m, n, k) of a plain matrix product, and None for other blocks."""
        return tuple(self.spec[it] for it in "mnk") if self.spec["kind"] == "matmul" else None

    @property
    def given(self):
        """The name of the same product whose B is an input, which its call packs."""
        return f"{self.name}-input"

    def matches(self, pattern):
        return fnmatch.fnmatchcase(self.name, pattern)

    @property
    def rows(self):
        return self.spec.get("m") or self.spec["seq"]

    @property
    def output(self):
        """Shape of the result."""
        return (self.spec["m"], self.spec["n"]) if self.product else (self.spec["seq"], self.spec["d-model"])

    @property
    def flops(self):
        """2 for each multiply-add of a matrix product; causal attention counts the visible keys only."""
        if self.product:
            m, n, k = self.product
            return 2 * m * n * k
        seq, d, ff = self.spec["seq"], self.spec["d-model"], self.spec["d-ff"]
        pairs = seq * (seq + 1) // 2 if self.spec["causal"] else seq * seq
        kv = self.head * self.kv_heads
        products = seq * d * (2 * d + 2 * kv) + (3 if self.gated else 2) * seq * d * ff
        return 2 * products + 4 * pairs * d

    @property
    def head(self):
        return self.spec["d-model"] // self.spec["heads"]

    @property
    def kv_heads(self):
        return self.spec.get("kv-heads", self.spec["heads"])

    @property
    def gated(self):
        return self.spec.get("gated", False)

    @property
    def rope(self):
        """Base of the rotary embedding, or 0."""
        return self.spec.get("rope-theta", 0)

    @property
    def layer_norm(self):
        """Layer norms; else they are RMS norms."""
        return self.spec["norm"] == "layer-norm"


def load(project):
    """Every block of the project's manifests, in their order: products first, as the table has them.

    A product whose B is an input is no row of its own: it is measured with the one whose B is a weight.
    """
    blocks = []
    for path in sorted(pathlib.Path(project).glob("workloads/*.toml"), reverse=True):
        for name, spec in tomllib.loads(path.read_text())["block"].items():
            if spec.get("b") == "input":
                continue
            seqs = spec.get("seq")
            if seqs is None:
                blocks.append(Block(name, spec))
            else:
                blocks += [Block(f"{name}-s{seq}", {**spec, "seq": seq}) for seq in seqs]
    return blocks


def operands(block, seed=0):
    """Inputs and weights in f32, by name; drawn so that every value of the block is about 1."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    if block.product:
        m, n, k = block.product
        return {"x": normal(m, k), "w": normal(k, n, scale=k**-0.5)}
    spec, d, kv, ff = block.spec, block.spec["d-model"], block.head * block.kv_heads, block.spec["d-ff"]
    tensors = {"x": normal(spec["seq"], d)}
    for norm in ("norm1", "norm2"):
        tensors[f"{norm}.gain"] = 1 + normal(d, scale=0.1)
        if block.layer_norm:
            tensors[f"{norm}.bias"] = normal(d, scale=0.1)
    sizes = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d)}
    for letter, (inputs, outputs) in sizes.items():
        tensors[f"attn.w{letter}"] = normal(inputs, outputs, scale=inputs**-0.5)
        if spec["bias"] or (letter != "o" and spec.get("qkv-bias")):
            tensors[f"attn.b{letter}"] = normal(outputs, scale=0.1)
    sizes = {"gate": (d, ff)} if block.gated else {}
    sizes |= {"up": (d, ff), "down": (ff, d)}
    for part, (inputs, outputs) in sizes.items():
        tensors[f"mlp.w_{part}"] = normal(inputs, outputs, scale=inputs**-0.5)
        if spec["bias"]:
            tensors[f"mlp.b_{part}"] = normal(outputs, scale=0.1)
    if block.rope:
        frequencies = float(block.rope) ** (-np.arange(0, block.head, 2) / block.head)
        angles = np.arange(spec["seq"])[:, None] * frequencies
        tensors["rope.cos"] = np.cos(angles).astype(np.float32)
        tensors["rope.sin"] = np.sin(angles).astype(np.float32)
    return tensors


def weight_bytes(tensors):
    """Bytes of everything but the input."""
    return sum(it.nbytes for name, it in tensors.items() if name != "x")


def reference(block, tensors):
    """The block in f64, written from its meaning."""
    t = {name: it.astype(np.float64) for name, it in tensors.items()}
    if block.product:
        return t["x"] @ t["w"]
    x, spec = t["x"], block.spec
    y = x + _attention(block, t, _norm(block, t, "norm1", x))
    z = _norm(block, t, "norm2", y)
    hidden = _linear(t, "mlp.w_up", "mlp.b_up", z)
    if block.gated:
        hidden *= _activation(spec["activation"], _linear(t, "mlp.w_gate", "mlp.b_gate", z))
    else:
        hidden = _activation(spec["activation"], hidden)
    return y + _linear(t, "mlp.w_down", "mlp.b_down", hidden)


def error(wanted, got):
    """Largest error of any element, as a share of the largest result."""
    return float(np.max(np.abs(got.reshape(wanted.shape).astype(np.float64) - wanted)) / np.max(np.abs(wanted)))


def _linear(t, weight, bias, x):
    return x @ t[weight] + t.get(bias, 0.0)


def _norm(block, t, name, x):
    eps = block.spec["norm-eps"]
    if block.layer_norm:
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * t[f"{name}.gain"] + t.get(f"{name}.bias", 0.0)


def _activation(name, x):
    match name:
        case "gelu":
            return 0.5 * x * (1 + erf(x / np.sqrt(2)))
        case "gelu-tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        case "silu":
            return x / (1 + np.exp(-x))
    raise ValueError(f"no peer has the activation `{name}` here")


def _attention(block, t, x):
    seq, heads, head = block.spec["seq"], block.spec["heads"], block.head

    def project(letter, count):
        y = _linear(t, f"attn.w{letter}", f"attn.b{letter}", x)
        return y.reshape(seq, count, head).transpose(1, 0, 2)

    q, k, v = project("q", heads), project("k", block.kv_heads), project("v", block.kv_heads)
    if block.rope:
        q, k = _rotate(t, q), _rotate(t, k)
    k, v = (np.repeat(it, heads // block.kv_heads, axis=0) for it in (k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(head)
    if block.spec["causal"]:
        scores = np.where(np.tri(seq, dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    y = scores / scores.sum(-1, keepdims=True) @ v
    return _linear(t, "attn.wo", "attn.bo", y.transpose(1, 0, 2).reshape(seq, heads * head))


def _rotate(t, x):
    first, second = np.split(x, 2, axis=-1)
    cos, sin = t["rope.cos"], t["rope.sin"]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
