"""Checks that python/moerun/_core.pyi says what the built module has; `--write` brings it up to date."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).parent.parent / "python" / "moerun" / "_core.pyi"


def generate() -> str:
    """The stub of the module as built."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "moerun._core", "-o", folder]
        subprocess.run(command, check=True, capture_output=True, text=True)
        text = (Path(folder) / "moerun" / "_core.pyi").read_text()
    return ast.unparse(ast.parse(text)) + "\n"  # the generator's layout depends on which formatters it finds


def main() -> int:
    built = generate()
    if "--write" in sys.argv:
        STUB.write_text(built)
        return 0
    kept = STUB.read_text() if STUB.exists() else ""
    if kept == built:
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(kept.splitlines(True), built.splitlines(True), str(STUB), "as built", n=1)
    )
    print("python/moerun/_core.pyi is out of date: run python tests/check_stubs.py --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
