"""The Rust library of this folder through ctypes: other crates' products, a CBLAS, kforge's kernels, the machine's ceilings."""

import ctypes
import itertools
import json
import subprocess
import weakref

import numpy as np

POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t


class Failed(Exception):
    """What the library says of the call."""


class Library:
    """The library at `path`, for contestants on `threads` threads."""

    def __init__(self, path, threads):
        self.threads = threads
        self.code = ctypes.CDLL(str(path))
        self.code.peers_error.restype = ctypes.c_char_p
        for name in ("product_new", "kernel_new", "machine_new"):
            getattr(self.code, name).restype = POINTER
        self.code.machine_compute.restype = self.code.machine_read.restype = ctypes.c_uint64

    def made(self, handle):
        """`handle`, unless it is null."""
        if not handle:
            raise Failed(self.code.peers_error().decode())
        return POINTER(handle)

    def check(self, status):
        if status != 0:
            raise Failed(self.code.peers_error().decode())

    def product(self, engine, shape, a, b, library=""):
        """A contestant: A B by this engine, both operands packed in every call."""
        handle = self.made(self.code.product_new(engine.encode(), str(library).encode(), SIZE(self.threads)))
        c = aligned((shape[0], shape[1]))
        sizes = [SIZE(it) for it in shape]
        arguments = [handle, *sizes, *(POINTER(it.ctypes.data) for it in (a, b, c))]
        # The arrays are kept by the function that uses their addresses.

        def run(repeats):
            self.check(self.code.product_run(*arguments, SIZE(repeats)))

        return Contestant(run, lambda: c, (a, b))

    def machine(self, memory):
        return Machine(self, self.made(self.code.machine_new(SIZE(self.threads), SIZE(memory))))


class Contestant:
    """Something to be timed: `run(repeats)`, and the result of the last run. `kept` is what these use by address."""

    def __init__(self, run, result, kept=()):
        self.run, self.result, self._kept = run, result, kept


def in_turn(contestants):
    """One contestant that runs these in turn, the first of them first: with weights of their own, none finds them in a cache."""
    if len(contestants) == 1:
        return contestants[0]
    turn = itertools.cycle(contestants)

    def run(repeats):
        for _ in range(repeats):
            next(turn).run(1)

    return Contestant(run, contestants[0].result, contestants)


class Machine:
    """The ceilings: operations and bytes of a sample."""

    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def compute(self, steps):
        return self.library.code.machine_compute(self.handle, ctypes.c_uint64(steps))

    def read(self):
        return self.library.code.machine_read(self.handle)


class Kernel:
    """A kernel of kforge from its folder in `.kforge-cache/out`, with these operands; `linked` is where its library goes."""

    def __init__(self, library, folder, tensors, linked, threads):
        self.library = library
        description = json.loads((folder / "kernel.json").read_text())
        self.output = next(it for it in description["graph"]["tensors"] if it["role"] == "output")
        subprocess.run(["cc", "-shared", "-o", linked, folder / "kernel.o"], check=True)
        texts = [str(it).encode() for it in (linked, folder / "kernel.json")]
        self.handle = library.made(library.code.kernel_new(*texts, SIZE(threads)))
        weakref.finalize(self, library.code.kernel_free, self.handle)
        for tensor in description["graph"]["tensors"]:
            if tensor["role"] in ("input", "weight"):
                self._write(tensor, tensors[tensor["name"]])
        self.run(prepare=True, run=False)

    def _write(self, tensor, values):
        values = np.ascontiguousarray(stored(values.reshape(tensor["shape"]), tensor["dtype"]))
        name, data = tensor["name"].encode(), POINTER(values.ctypes.data)
        self.library.check(self.library.code.kernel_write(self.handle, name, data, SIZE(values.nbytes)))

    def run(self, repeats=1, prepare=False, run=True):
        self.library.check(self.library.code.kernel_run(self.handle, int(prepare), int(run), SIZE(repeats)))

    def result(self):
        values = stored(np.empty(self.output["shape"], np.float32), self.output["dtype"])
        name, data = self.output["name"].encode(), POINTER(values.ctypes.data)
        self.library.check(self.library.code.kernel_read(self.handle, name, data, SIZE(values.nbytes)))
        return loaded(values, self.output["dtype"])

    def contestant(self):
        """The block; its weights are packed."""
        return Contestant(self.run, self.result)


def aligned(shape):
    """An array of f32 that starts on a cache line."""
    size = int(np.prod(shape))
    raw = np.zeros(size + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + size].reshape(shape)


def aligned_copy(values):
    copy = aligned(values.shape)
    copy[...] = values
    return copy


def stored(values, dtype):
    """f32 as a tensor of this type has it in memory, rounded to nearest even."""
    match dtype:
        case "f32":
            return values
        case "f16":
            return values.astype(np.float16)
        case "bf16":
            bits = values.view(np.uint32)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    raise Failed(f"the harness does not know the type `{dtype}`")


def loaded(values, dtype):
    """The reverse of `stored`."""
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else values.astype(np.float32)
