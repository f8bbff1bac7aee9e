"""Memory that is taken when it is written to."""

import sys
from pathlib import Path

import pytest
import torch

from sensorium.infer.room import give_back, grown, zeros


def held():
    """Bytes that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_only_what_is_written_is_held():
    before = held()
    store = zeros((16, 1024, 1024), torch.float32, "cpu")  # 64 MiB
    store[3, :64] = 1
    assert held() - before < store.nbytes / 8
    assert store.sum() == 64 * 1024
    assert not store[4].any()


def test_what_slots_hold_stays_when_they_grow():
    store = torch.arange(24.0).view(2, 3, 4)
    made = grown(store, 5, [2, 0])
    assert made.shape == (2, 5, 4)
    assert torch.equal(made[0, :2], store[0, :2])
    assert not made[0, 2:].any()
    assert not made[1].any()


def test_no_memory_is_a_tensor_too():
    assert zeros((0, 4), torch.float32, "cpu").shape == (0, 4)
    give_back()
