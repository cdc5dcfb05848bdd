"""Times of contestants in interleaved rounds: one sample of each in every round, in an order that changes, so that what slows a
shared machine down for a while slows all of them."""

import random
import statistics
import time

# A sample runs its contestant until this much has passed, and at least once.
SAMPLE_S = 5e-3
# Between two contestants on several threads: some pools spin for up to 30 ms for more work (OpenBLAS, ONNX Runtime), which would be
# on the next one's cores.
PAUSE_S = 0.04


def interleaved(contestants, rounds, threads):
    """{name: seconds of one run in each round} of `contestants`, {name: run(repeats)}."""
    repeats = {name: _repeats(run) for name, run in contestants.items()}
    samples = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(rounds).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            run, count = contestants[name], repeats[name]
            if threads > 1:
                time.sleep(PAUSE_S)
            # Not timed: it wakes the threads and takes the caches from the contestant before.
            run(1)
            started = time.perf_counter()
            run(count)
            samples[name].append((time.perf_counter() - started) / count)
    return samples


def _repeats(run):
    """Runs that take a sample's time together, by the fastest of three."""
    run(1)
    fastest = min(_seconds(run) for _ in range(3))
    return max(1, round(SAMPLE_S / fastest))


def _seconds(run):
    started = time.perf_counter()
    run(1)
    return time.perf_counter() - started


def of_round(numerator, denominator):
    """Median of the ratios within the rounds."""
    return statistics.median(n / d for n, d in zip(numerator, denominator))
