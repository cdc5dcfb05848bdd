"""Prints the table of script/bench-gpu from the folder that it collected: report.json and, with a peer, torch.json."""

import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
blocks = [it["report"] for it in json.loads((folder / "report.json").read_text())["blocks"] if it.get("report")]
peer = json.loads((folder / "torch.json").read_text()) if (folder / "torch.json").exists() else {}


def time(ns):
    return f"{ns / 1e3:.1f} us" if ns < 1e6 else f"{ns / 1e6:.3f} ms"


rows = [("block", "dtype", "time", "TFLOP/s", "of peak", "PyTorch", "ours / PyTorch")]
for it in blocks:
    ours, flops = it["measured"]["timing"]["median-ns"], it["measured"]["flops"]
    peak = it["device"]["ceilings"]["gflops"]
    theirs = peer.get(it["block"])
    rows.append((
        it["block"],
        it["spec"]["dtype"],
        time(ours),
        f"{flops / ours / 1e3:.1f}",
        f"{flops / ours / peak:.0%}",
        time(theirs) if theirs else "-",
        f"{ours / theirs:.2f}" if theirs else "-",
    ))
widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
if blocks:
    device, ceilings = blocks[0]["device"], blocks[0]["device"]["ceilings"]
    facts = device.get("gpu", {})
    print(f"{facts.get('name', 'CPU')} ({facts.get('kind', '')}), {facts.get('driver', '')} {facts.get('driver-version', '')};", end=" ")
    print(f"reads memory at {ceilings['gigabytes-per-s']:.0f} GB/s")
for row in rows:
    print("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))))
