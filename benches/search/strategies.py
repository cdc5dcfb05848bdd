"""Search strategies side by side: the best that each finds of some operations, against trials and seconds.

Every search begins with an empty store. The figure is the winner's time as a share of that of the heuristic's schedule, measured anew in
the same rounds. `to 2 %` is the number of trials after which a strategy's best was within 2 % of the best that any of them found in its
races.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

STRATEGIES = ["grid", "random", "evolutionary", "model"]


def search(tool, project, block, strategy, trials, seed):
    """What one search says of its only operation."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "project")
        shutil.copytree(project, root, ignore=shutil.ignore_patterns(".kforge-cache"))
        command = [tool, "-C", root, "tune", block, "--json", "--strategy", strategy]
        command += ["--trials", str(trials), "--seed", str(seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}")
        return json.loads(done.stdout)["blocks"][0]["search"]["operations"][0]


def within(best_after, limit):
    """The first trial after which the best is at most `limit`, counted from 1."""
    return next((index + 1 for index, best in enumerate(best_after) if best <= limit), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["projection", "wide", "decode", "ragged", "norm"], metavar="BLOCK")
    arguments = parser.parse_args()
    project = os.path.dirname(os.path.abspath(__file__))
    print(f"{'operation':<12}{'strategy':<14}{'trials':>7}{'refused':>9}{'best':>8}{'winner':>8}{'to 2 %':>8}{'seconds':>9}")
    for block in arguments.only:
        found = {}
        for strategy in STRATEGIES:
            found[strategy] = search(arguments.tool, project, block, strategy, arguments.trials, arguments.seed)
        best = min(it["best-after"][-1] for it in found.values())
        for strategy, it in found.items():
            reached = within(it["best-after"], best * 1.02)
            print(
                f"{block:<12}{strategy:<14}{it['trials']:>7}{it['refused']:>9}{it['best-after'][-1]:>8.3f}"
                f"{it['winner']['relative']:>8.3f}{reached or '-':>8}{it['seconds']:>9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
