"""The table of script/bench-peers, and its last lines: the aims, what they came to, and whether they hold."""

import statistics

from sampling import of_round

OPERATIONS = 1e9
# Beyond this a result is wrong and its time means nothing. A block in bf16 is 2e-2 off.
WRONG = {"f32": 1e-4, "bf16": 1e-1}


def median(record, name):
    """Seconds."""
    return statistics.median(record["samples"][name])


def peers(record, kinds=("in-call", "ahead")):
    """The names of the peers with right results."""
    right = WRONG[record["dtype"]]
    return [name for name, it in record["contestants"].items() if it["kind"] in kinds and it["error"] < right]


def ratio(record, peer, ours):
    """How many times as fast `ours` is as `peer`: by medians, and the median of the ratios within the rounds."""
    samples = record["samples"]
    return median(record, peer) / median(record, ours), of_round(samples[peer], samples[ours])


def best(record, ours, kinds=("in-call", "ahead")):
    """The fastest peer and `ratio` to it; None where either is missing."""
    names = peers(record, kinds)
    if ours not in record["contestants"] or not names:
        return None
    name = min(names, key=lambda it: median(record, it))
    return name, *ratio(record, name, ours)


def blocks(records):
    """Every contestant of every block. `kforge is` how many times as fast as it."""
    rows = [
        ("block", "thr", "contestant", "time", "GFLOP/s", "of peak", "kforge is", "by round", "with packing", "error")
    ]
    notes = {}
    for record in records:
        title = f"{record['block']} {record['dtype']}"
        for reason in record["absent"]:
            notes.setdefault(reason, {})[title] = None
        if not record["contestants"]:
            rows.append((title, str(record["threads"]), "not available", *["-"] * 7))
            continue
        peak = record["operations"] / median(record, "peak")
        rows.append((title, str(record["threads"]), "FMA peak", "", f"{peak / OPERATIONS:.1f}", *[""] * 5))
        gigabytes = record["memory-bytes"] / median(record, "memory") / 1e9
        rows.append(("", "", f"memory: {gigabytes:.1f} GB/s", *[""] * 7))
        for name in sorted(record["contestants"], key=lambda it: median(record, it)):
            rows.append(row(record, name, peak))
    lines = columns(rows, {0, 2})
    lines += [""] if notes else []
    lines += [f"{reason} ({', '.join(titles)})" for reason, titles in notes.items()]
    return "\n".join(lines)


def columns(rows, left):
    """Lines of these cells under each other; the columns in `left` begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells):
        pairs = zip(cells, widths, strict=True)
        return "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(pairs)).rstrip()

    return list(map(line, rows))


def row(record, name, peak):
    seconds, it = median(record, name), record["contestants"][name]
    flops = record["flops"] / seconds
    cells = ["", ""]
    if it["kind"] != "ours":
        if "kforge" in record["contestants"]:
            cells = [f"{value:.3f}" for value in ratio(record, name, "kforge")]
        included = "kforge, packing included"
        included = f"{ratio(record, name, included)[0]:.3f}" if included in record["contestants"] else ""
    else:
        included = ""
    error = f"{it['error']:.1e}" + ("" if it["error"] < WRONG[record["dtype"]] else " WRONG")
    speed = f"{flops / OPERATIONS:.1f}", f"{flops / peak:.0%}"
    return ("", "", name, duration(seconds), *speed, *cells, included, error)


def duration(seconds):
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def aims(records):
    """One line for each aim: what was asked, the figure by medians and by rounds, and whether both hold."""
    lines = [("aim", "at least", "by medians", "by round", "holds")]
    for threads in sorted({it["threads"] for it in records}):
        own = [it for it in records if it["threads"] == threads]
        lines += products(own, threads) + whole(own, threads)
    lines += [it for record in records for it in scaling(record)]
    return "\n".join(columns(lines, set(range(5))))


def line(text, least, figures):
    if figures is None:
        return (text, f"{least:.2f}", "not available", "", "no")
    by_medians, by_round = figures
    return (text, f"{least:.2f}", f"{by_medians:.3f}", f"{by_round:.3f}", "yes" if min(figures) >= least else "no")


def products(records, threads):
    square = [it for it in records if it["spec"]["kind"] == "matmul" and not ragged(it["spec"])]
    lines = []
    for text, least, ours, kinds in (
        ("packing included, the best that packs in its call", 1.05, "kforge, packing included", ("in-call",)),
        ("weights packed ahead, the best of all", 1.10, "kforge", ("in-call", "ahead")),
    ):
        found = [best(it, ours, kinds) for it in square]
        if found:
            mean = None if None in found else [statistics.geometric_mean(it[i] for it in found) for i in (1, 2)]
            lines.append(line(f"{len(found)} products, {threads} thread(s): {text}", least, mean))
    for record in records:
        if record["spec"]["kind"] == "matmul" and ragged(record["spec"]):
            peer = next((it for it in peers(record) if it.startswith("OpenBLAS")), None)
            ours = "kforge, packing included"
            figures = ratio(record, peer, ours) if peer and ours in record["contestants"] else None
            lines.append(line(f"{record['block']}, {threads} thread(s): OpenBLAS, packing included", 1.10, figures))
    return lines


def ragged(spec):
    """The shapes whose sides are no multiples of tiles."""
    return any(spec[it] % 64 for it in "mnk")


def whole(records, threads):
    lines = []
    for record in records:
        if record["spec"]["kind"] == "matmul":
            continue
        name = f"{record['block']} {record['dtype']}, {threads} thread(s)"
        found = best(record, "kforge")
        bf16, one = record["dtype"] != "f32", record["spec"]["seq"] == 1
        least = 1.10 if bf16 else 1.05 if one else 1.08
        peer = found[0] if found else "OpenVINO" if bf16 else "the best"
        lines.append(line(f"{name}: {peer}", least, found and found[1:]))
        if one and "kforge" in record["contestants"]:
            lines.append(line(f"{name}: share of the memory bandwidth", 0.90, bandwidth(record)))
    return lines


def bandwidth(record):
    """Bytes of the weights in the time of a run, as a share of what reading memory reached."""
    scale = record["weight-bytes"] / record["memory-bytes"]
    by_medians, by_round = ratio(record, "memory", "kforge")
    return scale * by_medians, scale * by_round


def scaling(record):
    """Two threads and one, in the same rounds. Blocks of one row wait for memory and are left out."""
    names, rows = ("kforge, 1 thread", "kforge"), record["spec"].get("m") or record["spec"]["seq"]
    if record["threads"] == 2 and rows > 1 and all(it in record["contestants"] for it in names):
        text = f"{record['block']} {record['dtype']}: two threads over one"
        yield line(text, 1.85, ratio(record, *names))
