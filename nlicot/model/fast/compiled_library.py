"""Shared libraries that are compiled on the user's machine, once, into the cache."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from nlicot.data.checksums import build_cache
from nlicot.model.base_model import cache_folder

LIMIT_S = 120


def compiled_library(
    name: str,
    source: Path,
    commands: Callable[[Path], Sequence[Sequence[str]]],
    *,
    compiler: str,
    headers: str = "",
) -> ctypes.CDLL:
    """Compile a library, or take it from the cache, and load it.

    Args:
        name: of the folder in the cache, and of the library.
        source: the file that is compiled.
        commands: returns the compiler's arguments, one list per call, that make a library of that path.
        compiler: the program to call.
        headers: version of the headers that the source includes, for which another library is made.

    Raises:
        OSError: the compiler or its library cannot be run; the message is the reason.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    # Flags such as -march=native mean something else on another processor that shares the cache.
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    flags = next((line for line in processor.splitlines() if line.startswith(("flags", "Features"))), "")
    library = f"{name}.so"
    stamp = repr((source.read_bytes(), headers, compiler, version, flags, commands(Path(library))))
    folder = cache_folder() / "kernels" / f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"

    def build(fresh: Path) -> None:
        for arguments in commands(fresh / library):
            done = subprocess.run(
                [compiler, *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                reason = next((line for line in said if "error" in line), said[0])
                raise OSError(f"{compiler}: {reason}")

    try:
        build_cache(folder, build)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{compiler}: did not end within {LIMIT_S} s") from error
    return ctypes.CDLL(str(folder / library))
