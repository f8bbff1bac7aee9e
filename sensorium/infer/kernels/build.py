"""The kernels in C: compiled by the compiler that is there when they are first needed, kept in the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from sensorium.hub.cache import cache_root

FOLDER = Path(__file__).parent
NATIVE = ("-march=native", "-mcpu=native", "")
"""How this CPU's own instructions are asked for: x86, ARM; and without, where a compiler knows neither."""
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wno-psabi")
"""Products are added in one rounding only where the source says so: else the compiler would choose in every loop anew,
and what a row gets would depend on how many there are."""
SECONDS = 120


class Unavailable(Exception):
    """There are no kernels on this machine; the message says why."""


def library() -> ctypes.CDLL:
    """The loaded library, built first where it has to be. Raises Unavailable."""
    found = _found()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@cache
def _found() -> ctypes.CDLL | str:
    try:
        return _load(_built())
    except Unavailable as error:
        return str(error)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the kernels built at {path} cannot be loaded: {error}") from error


def compiler() -> str:
    """The C compiler: what the variable CC says, else cc, gcc or clang. Raises Unavailable."""
    chosen = os.environ.get("CC")
    for name in [chosen] if chosen else ["cc", "gcc", "clang"]:
        path = shutil.which(name)
        if path:
            return path
    looked = f"CC says {chosen!r}, which is not there" if chosen else "none of cc, gcc and clang is there"
    raise Unavailable(f"the decode kernels need a C compiler, and {looked}: install gcc or clang")


def _built() -> Path:
    """Where the library lies that fits this source, compiler, CPU and torch."""
    if platform.system() == "Windows":
        raise Unavailable("the decode kernels are written for gcc and clang, which are not looked for on Windows")
    chosen = compiler()
    path = cache_root() / "kernels" / f"step-{_key(chosen)}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / path.name
            _compile(chosen, draft)
            draft.replace(path)  # at once, so that another process finds a whole library or none
    except OSError as error:
        raise Unavailable(f"the decode kernels cannot be built in {path.parent}: {error}") from error
    return path


def _key(chosen: str) -> str:
    digest = hashlib.sha256()
    for source in sorted((*FOLDER.glob("*.c"), *FOLDER.glob("*.h"))):
        digest.update(source.read_bytes())
    binary = Path(chosen).resolve().stat()
    facts = (FLAGS, NATIVE, str(Path(chosen).resolve()), binary.st_size, binary.st_mtime_ns, _cpu(), str(_openmp()))
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:20]


def _cpu() -> str:
    """What decides which instructions the CPU has."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    lines = info.read_text("utf-8", "replace").splitlines()
    return platform.machine() + "|".join(sorted({line for line in lines if line.partition("\t")[0].strip() in names}))


def _openmp() -> Path | None:
    """The OpenMP runtime that torch brought and loaded: with another one there would be two pools of threads."""
    folder = Path(torch.__file__).parent / "lib"
    found = [path for name in ("libgomp*.so*", "libomp*.dylib", "libiomp5.*") for path in sorted(folder.glob(name))]
    return found[0] if found else None


def _compile(chosen: str, path: Path) -> None:
    """Raises Unavailable with what the compiler said."""
    things, said = [], ""
    openmp = ("-Xpreprocessor", "-fopenmp") if platform.system() == "Darwin" else ("-fopenmp",)
    for source in sorted(FOLDER.glob("*.c")):
        things.append(str(path.with_name(f"{source.stem}.o")))
        for native in NATIVE:
            flags = [*FLAGS, *openmp, *([native] if native else [])]
            said = _run([chosen, *flags, "-c", str(source), "-o", things[-1]])
            if not said:
                break
        if said:
            break
    runtime = _openmp()
    # with -fopenmp the linker would add the compiler's own runtime beside torch's
    against = ["-fopenmp"] if runtime is None else [str(runtime), f"-Wl,-rpath,{runtime.parent}"]
    said = said or _run([chosen, "-shared", *things, "-o", str(path), *against, "-lm"])
    if said:
        raise Unavailable(f"{chosen} could not build the decode kernels:\n{said}")


def _run(command: list[str]) -> str:
    """What a failed command said; empty where it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"nothing came of {' '.join(command)} within {SECONDS} seconds"
    return "" if done.returncode == 0 else done.stderr[-2000:] or f"exit code {done.returncode}"
