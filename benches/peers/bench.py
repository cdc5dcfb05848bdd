"""kforge beside other engines on this machine's CPU: one table, and the aims with what they came to.

Started by script/bench-peers, which installs the peers and builds kforge's blocks first."""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import blocks
import machine
import table

HERE = pathlib.Path(__file__).parent
# Fewer tell nothing on a shared machine; a quick run is for trying things out.
ROUNDS, QUICK_ROUNDS = 21, 5


def main():
    args = arguments()
    present = machine.Facts.read(args.tool)
    allowed = sorted(os.sched_getaffinity(0))
    if max(args.threads) > len(allowed):
        sys.exit(f"bench-peers: {max(args.threads)} threads were asked for, and there are {len(allowed)} CPUs")
    selected = [it for it in blocks.load(args.project) if not args.only or any(map(it.matches, args.only))]
    if not selected:
        sys.exit(f"bench-peers: no block matches {' or '.join(args.only)}")
    products = any(it.product for it in selected)
    core_type = machine.best_core_type(present.flags, args.library, args.openblas) if products else None
    with tempfile.TemporaryDirectory() as scratch:
        task = {
            "project": str(args.project),
            "library": str(args.library),
            "blocks": [it.name for it in selected],
            "dtypes": ["f32", "bf16"],
            "rounds": QUICK_ROUNDS if args.quick else ROUNDS,
            "l3": present.l3,
            "scratch": scratch,
            "out": f"{scratch}/records",
            "kernels": kernels(args),
            "products": {
                f"OpenBLAS ({core_type})": ("cblas", str(args.openblas)),
                "BLIS": ("cblas", str(args.blis)),
                "faer": ("faer", ""),
                "gemm": ("gemm", ""),
                "matrixmultiply": ("matrixmultiply", ""),
            },
        }
        pathlib.Path(task["out"]).touch()
        whole = [measure(task | {"threads": it}, allowed[-it:], core_type) for it in args.threads]
        records = [json.loads(it) for it in pathlib.Path(task["out"]).read_text().splitlines()]
    facts = present.finished()
    print(facts.text(), f"{task['rounds']} interleaved rounds, medians", sep="\n", end="\n\n")
    print(table.blocks(records), table.aims(records), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps({"version": 1, "facts": facts.json(), "records": records}))
    sys.exit(0 if all(whole) else 1)


def arguments():
    parser = argparse.ArgumentParser(prog="script/bench-peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="PATTERN", help="only blocks like `matmul-*`, `*-s128`")
    parser.add_argument("--threads", type=counts, default=[1, 2], metavar="N,N", help="how many (default: 1,2)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every sample into FILE as well")
    # From the script, not from people.
    for name in ("project", "tool", "library", "openblas", "blis"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="append", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


def counts(text):
    values = [int(it) for it in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def kernels(args):
    """The folders of kernels that verification accepted, by `DTYPE BLOCK THREADS`; `--report DTYPE=FILE=PROJECT` has them."""
    found = {}
    for argument in args.report:
        dtype, report, project = argument.split("=")
        text = pathlib.Path(report).read_text()
        for it in json.loads(text)["blocks"] if text else []:
            audit = it.get("audit")
            if audit and audit["ruling"] == "accepted" and it["state"] == "recorded":
                folder = pathlib.Path(project) / ".kforge-cache/out" / f"{it['block']}@{it['target']}"
                found[f"{dtype} {it['block']} {audit['threads']}"] = str(folder)
    return found


def measure(task, cpus, core_type):
    """Runs measure.py on these CPUs, with every peer told to use all of them; whether it came to its end."""
    count = str(len(cpus))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    for name in ("OMP", "OPENBLAS", "BLIS", "RAYON", "MATMUL"):
        environment[f"{name}_NUM_THREADS"] = count
    if core_type:
        environment["OPENBLAS_CORETYPE"] = core_type
    environment |= {"JAX_PLATFORMS": "cpu", "OPENVINO_TELEMETRY": "0"}
    command = [sys.executable, HERE / "measure.py"]
    done = subprocess.run(command, input=json.dumps(task), text=True, env=environment, preexec_fn=lambda: settle(cpus))
    if done.returncode != 0:
        print(f"bench-peers: measuring on {count} thread(s) ended early ({done.returncode})", file=sys.stderr)
    return done.returncode == 0


def settle(cpus):
    """In the process that is to measure: these CPUs only, and the niceness that this script was started with.

    Linux may weigh whole sessions against each other, and a niceness then counts only within its own: on two cores with
    twelve compilers of other sessions, `nice -n -10` alone left a third of the peak. So this is a session of its own,
    with that weight.
    """
    os.sched_setaffinity(0, cpus)
    os.setsid()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/autogroup").write_text(str(os.nice(0)))


if __name__ == "__main__":
    main()
