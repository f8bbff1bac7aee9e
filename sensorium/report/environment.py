"""Where numbers were measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import sensorium


def environment() -> dict[str, str]:
    """Versions and machine of this process. Never imports torch; threads are torch's when it is loaded."""
    torch = sys.modules.get("torch")
    facts = {"sensorium": sensorium.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tokenizers"):
        facts[package] = importlib.metadata.version(package)
    facts["system"] = f"{platform.system()} {platform.release()}"
    facts["cpu"] = _cpu()
    facts["cores"] = str(os.cpu_count())
    if torch is not None:
        facts["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE) if listing.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
