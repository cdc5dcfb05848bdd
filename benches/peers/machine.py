"""What the figures were measured on, and which of OpenBLAS's kernels is the fastest on it."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from importlib import metadata

# Of this machine's instruction sets only these decide which code peers run.
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "avx_vnni")
# Each with what it needs: without that OpenBLAS falls back silently, and what is tried is another one.
CORE_TYPES = {
    "HASWELL": "avx2",
    "ZEN": "avx2",
    "SKYLAKEX": "avx512f",
    "COOPERLAKE": "avx512_bf16",
    "SAPPHIRERAPIDS": "amx_bf16",
}
PEERS = ("openvino", "onnxruntime", "jax", "iree-base-compiler", "numpy")


@dataclasses.dataclass(frozen=True)
class Facts:
    cpu: str
    flags: list
    l2: int
    l3: int
    cores: int
    versions: dict
    load: list

    @classmethod
    def read(cls, tool):
        text = pathlib.Path("/proc/cpuinfo").read_text()

        def field(name):
            found = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
            return found[1].strip() if found else "?"

        present = field("flags").split()
        cpu = f"{field('model name')} (family {field('cpu family')} model {field('model')})"
        versions = {name: metadata.version(name) for name in PEERS}
        for package, name in (("libopenblas0-pthread", "OpenBLAS"), ("libblis4-pthread", "BLIS")):
            command = ["dpkg-query", "-W", "-f", "${Version}", package]
            versions[name] = subprocess.run(command, capture_output=True, text=True).stdout
        versions["kforge"] = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.split()[-1]
        cores = len(os.sched_getaffinity(0))
        flags = [it for it in FLAGS if it in present]
        return cls(cpu, flags, cache(2), cache(3), cores, versions, [os.getloadavg()[0]])

    def finished(self):
        """With the load after the measurement."""
        return dataclasses.replace(self, load=[*self.load, os.getloadavg()[0]])

    def json(self):
        return dataclasses.asdict(self)

    def text(self):
        mib = 1 << 20
        return (
            f"{self.cpu}, {self.cores} CPUs, L2 {self.l2 / mib:g} MiB, L3 {self.l3 / mib:g} MiB; {' '.join(self.flags)}\n"
            f"load {self.load[0]:.1f} before, {self.load[-1]:.1f} after (the measurement's own included)\n"
            + ", ".join(f"{name} {version}" for name, version in self.versions.items())
        )


def cache(level):
    """Bytes of the first CPU's cache of this level."""
    for index in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == str(level):
            return int((index / "size").read_text().strip().removesuffix("K")) * 1024
    # Virtual machines may hide it.
    return 1 << 20 if level == 2 else 32 << 20


def best_core_type(flags, library, openblas):
    """The core type with which this OpenBLAS multiplies fastest, because it picks a slower one itself on CPUs that it does not
    know. Each is tried in a process of its own: one that the CPU cannot run ends that process, and a wrong one is passed over."""
    seconds = {}
    for name in (it for it, needs in CORE_TYPES.items() if needs in flags):
        environment = os.environ | {"OPENBLAS_CORETYPE": name, "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("OPENBLAS_L2_SIZE", None)
        command = [sys.executable, __file__, library, openblas]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            seconds[name] = float(done.stdout)
    if not seconds:
        sys.exit(f"bench-peers: {openblas} multiplies right with no core type")
    return min(seconds, key=seconds.get)


def probe(library, openblas):
    """Prints the seconds of the fastest of seven products of 768x768x768; fails when it is wrong."""
    import native
    import sampling
    from blocks import Block, error, operands, reference

    block = Block("probe", {"kind": "matmul", "m": 768, "n": 768, "k": 768})
    tensors = operands(block)
    a, b = map(native.aligned_copy, tensors.values())
    it = native.Library(library, 1).product("cblas", block.product, a, b, openblas)
    samples = sampling.interleaved({"it": it.run}, 7, 1)["it"]
    if error(reference(block, tensors), it.result()) > 1e-5:
        sys.exit("wrong")
    print(min(samples))


if __name__ == "__main__":
    probe(*sys.argv[1:])
