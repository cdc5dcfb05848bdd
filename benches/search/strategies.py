"""Search strategies side by side: the best that each finds of some operations, against trials and seconds.

Every search begins with an empty store. The figure is the winner's time as a share of that of the heuristic's schedule, measured anew in
the same rounds. `to 2 %` is the number of trials after which a strategy's best was within 2 % of the best that any of them found in its
races.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

STRATEGIES = ["grid", "random", "evolutionary", "model"]
PROJECT = os.path.dirname(os.path.abspath(__file__))
# More than any restricted grid has: what ends it is that nothing is left.
EVERYTHING = 1_000_000
SEEDS = [1, 2, 3]
MINUTE, LONG = "60s", "600s"


@contextlib.contextmanager
def copied():
    """The project without what was found in it before."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "project")
        shutil.copytree(PROJECT, root, ignore=shutil.ignore_patterns(".kforge-cache"))
        yield root


def tune(tool, root, block, *options):
    """What a search says of the block."""
    command = [tool, "-C", root, "tune", block, "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}")
    return json.loads(done.stdout)["blocks"][0]["search"]


def search(tool, block, strategy, trials, seed):
    """What one search says of the block's only operation."""
    with copied() as root:
        options = ["--strategy", strategy, "--trials", str(trials), "--seed", str(seed)]
        return tune(tool, root, block, *options)["operations"][0]


def within(best_after, limit):
    """The first trial after which the best is at most `limit`, counted from 1."""
    return next((index + 1 for index, best in enumerate(best_after) if best <= limit), None)


def table(tool, blocks, trials, seed):
    print(f"{'operation':<12}{'strategy':<14}{'trials':>7}{'refused':>9}{'best':>8}{'winner':>8}{'to 2 %':>8}{'seconds':>9}")
    for block in blocks:
        found = {it: search(tool, block, it, trials, seed) for it in STRATEGIES}
        best = min(it["best-after"][-1] for it in found.values())
        for strategy, it in found.items():
            reached = within(it["best-after"], best * 1.02)
            print(
                f"{block:<12}{strategy:<14}{it['trials']:>7}{it['refused']:>9}{it['best-after'][-1]:>8.3f}"
                f"{it['winner']['relative']:>8.3f}{reached or '-':>8}{it['seconds']:>9.1f}",
                flush=True,
            )


def exhaustive(tool):
    """An evolutionary search with a tenth of the trials of a grid, of which every point is tried."""
    print(f"{'128x768x3072':<24}{'trials':>7}{'refused':>9}{'winner':>8}{'of grid':>9}{'seconds':>9}")
    grid = None
    # Grids that leave the heuristic's schedule out, or have it, say the same: it is the first trial.
    for strategy, seed in [("grid", 1), *(("evolutionary", it) for it in SEEDS)]:
        trials = grid["trials"] // 10 if grid else EVERYTHING
        it = search(tool, "deep-restricted", strategy, trials, seed)
        grid = grid or it
        share = grid["winner"]["relative"] / it["winner"]["relative"]
        name = strategy if strategy == "grid" else f"{strategy}, seed {seed}"
        print(
            f"{name:<24}{it['trials']:>7}{it['refused']:>9}{it['winner']['relative']:>8.3f}{share:>9.3f}{it['seconds']:>9.1f}",
            flush=True,
        )


def whole(tool):
    """The plan of a block that a minute finds from nothing, and what nine more make of it."""
    print(f"{'GPT-2 small, 128':<24}{'trials':>7}{'block':>8}{'ms':>8}")
    with copied() as root:
        for time in (MINUTE, LONG):
            it = tune(tool, root, "gpt2-small", "--strategy", "evolutionary", "--trials", "5000", "--time", time)
            trials, ns = sum(op["trials"] for op in it["operations"]), it["block-ns"] or float("nan")
            print(f"{time:<24}{trials:>7}{it['relative']:>8.3f}{ns / 1e6:>8.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["projection", "deep", "decode", "ragged", "norm"], metavar="BLOCK")
    parser.add_argument("--exhaustive", action="store_true", help=exhaustive.__doc__)
    parser.add_argument("--whole", action="store_true", help=whole.__doc__)
    arguments = parser.parse_args()
    if arguments.exhaustive:
        exhaustive(arguments.tool)
    if arguments.whole:
        whole(arguments.tool)
    if not (arguments.exhaustive or arguments.whole):
        table(arguments.tool, arguments.only, arguments.trials, arguments.seed)


if __name__ == "__main__":
    main()
