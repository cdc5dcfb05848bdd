"""Measures blocks on one number of threads: started by bench.py with the environment that makes every peer use as many.

Reads what to do as JSON from standard input, and writes one JSON object a line to the file that it names, one for each block and type.
"""

import functools
import json
import math
import os
import pathlib
import sys

import blocks
import native
import sampling
from engines import with_jax, with_onnxruntime, with_openvino

# Of a sample of the FMA peak: 2 ms with vectors of 256 bits at 100 GFLOP/s. The worker's samples are 128 times as short, and on two
# threads waking these took longer than that.
PEAK_STEPS = 1 << 20
# Memory to read in a sample of the bandwidth: more than a cache, and so are the weights that one-row blocks go through.
SMALLEST_MEMORY = 256 << 20
PACKS_IN_CALL, PACKS_AHEAD, OURS = "in-call", "ahead", "ours"


class Bench:
    """What is the same for every block."""

    def __init__(self, task):
        self.task, self.threads = task, task["threads"]
        self.library = native.Library(task["library"], self.threads)
        self.memory = max(SMALLEST_MEMORY, 4 * task["l3"])
        self.machine = self.library.machine(self.memory)
        self.absent = []

    def measure(self, block, dtype):
        """The record of one block: without samples where neither kforge nor a peer has it."""
        self.absent = []
        contestants, kinds = {}, {}
        # One row reads every weight once and has nothing else to do: in a model the weights of the other layers have
        # been through the caches before it comes to these again.
        one = blocks.weight_bytes(blocks.operands(block))
        copies = math.ceil(4 * self.task["l3"] / one) if block.rows == 1 else 1
        every = [blocks.operands(block, seed) for seed in range(copies)]
        for kind, builder in self.builders(block, dtype):
            made = self.made(builder, every)
            contestants |= made
            kinds |= dict.fromkeys(made, kind)
        record = {"block": block.name, "dtype": dtype, "threads": self.threads, "spec": block.spec}
        record["absent"] = self.absent
        if not contestants:
            return record | {"contestants": {}}
        runs = {name: it.run for name, it in contestants.items()}
        runs["peak"] = lambda repeats: [self.machine.compute(PEAK_STEPS) for _ in range(repeats)]
        runs["memory"] = lambda repeats: [self.machine.read() for _ in range(repeats)]
        samples = sampling.interleaved(runs, self.task["rounds"], self.threads)
        wanted = blocks.reference(block, every[0])
        # What the timed runs left.
        errors = {name: blocks.error(wanted, it.result()) for name, it in contestants.items()}
        return record | {
            "flops": block.flops,
            "weight-bytes": one * (1 if dtype == "f32" else 0.5),
            "copies": copies,
            "operations": self.machine.compute(PEAK_STEPS),
            "memory-bytes": self.machine.read(),
            "samples": samples,
            "contestants": {name: {"kind": kinds[name], "error": errors[name]} for name in contestants},
        }

    def builders(self, block, dtype):
        """(kind, function that builds contestants by name from operands), for whatever may have this block."""
        kernel = self.task["kernels"].get(f"{dtype} {block.name} {self.threads}")
        single = self.task["kernels"].get(f"{dtype} {block.name} 1")
        yield OURS, lambda t: self.ours("kforge", kernel, t, self.threads)
        if block.product:
            given = self.task["kernels"].get(f"{dtype} {block.given} {self.threads}")
            yield OURS, lambda t: self.ours("kforge, packing included", given, t, self.threads)
        if self.threads > 1:
            yield OURS, lambda t: self.ours("kforge, 1 thread", single, t, 1)
        if dtype != "f32":
            yield PACKS_AHEAD, lambda t: with_openvino.build(block, t, self.threads, dtype)
            return
        yield PACKS_AHEAD, lambda t: with_openvino.build(block, t, self.threads)
        yield PACKS_AHEAD, lambda t: with_onnxruntime.build(block, t, self.threads)
        if block.product:
            for name, (engine, path) in self.task["products"].items():
                yield PACKS_IN_CALL, functools.partial(self.product, block.product, name, engine, path)
        else:
            yield PACKS_IN_CALL, lambda t: with_jax.build(block, t, self.threads)
            yield PACKS_AHEAD, lambda t: with_jax.build_iree(block, t, self.threads)

    def product(self, shape, name, engine, path, tensors):
        x, w = map(native.aligned_copy, tensors.values())
        return {name: self.library.product(engine, shape, x, w, path)}

    def ours(self, name, folder, tensors, threads):
        if folder is None:
            raise native.Failed(f"{name} does not build it, or its verification did not accept it")
        folder = pathlib.Path(folder)
        linked = pathlib.Path(self.task["scratch"]) / f"{folder.name}-{folder.stat().st_ino}.so"
        return {name: native.Kernel(self.library, folder, tensors, linked, threads).contestant()}

    def made(self, builder, every):
        """What `builder` makes of every copy of the operands, taking turns; nothing, with a reason kept, when it cannot."""
        try:
            copies = [builder(tensors) for tensors in every]
        except Exception as error:  # whatever a peer raises, the others go on
            text = str(error).strip().splitlines() or [""]
            self.absent.append(f"{type(error).__name__}: {text[0]}")
            return {}
        return {name: native.in_turn([it[name] for it in copies]) for name in copies[0]}


def main():
    task = json.load(sys.stdin)
    wanted = set(task["blocks"])
    bench = Bench(task)
    with open(task["out"], "a") as out:
        for block in blocks.load(task["project"]):
            for dtype in task["dtypes"]:
                if block.name not in wanted or (block.product and dtype != "f32"):
                    continue
                print(f"bench-peers: {block.name} {dtype}, {bench.threads} thread(s)", file=sys.stderr, flush=True)
                record = bench.measure(block, dtype) | {"load": os.getloadavg()[0]}
                out.write(json.dumps(record) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
