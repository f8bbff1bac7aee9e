"""Tests run in several processes, a file in each at a time; together these have as many threads as there are cores."""

import gc
import os

gc.disable()  # what is imported stays: looking through it again and again takes a tenth of the suite's time

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if WORKERS > 1:  # before torch is imported, which reads it once
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))


def pytest_xdist_auto_num_workers(config):
    """More processes than this wait for each other: the longest file decides."""
    return min(os.cpu_count() or 1, 8)


def pytest_collection_finish(session):
    gc.enable()
    gc.collect()
    gc.freeze()
