"""Checks that python/moerun/_core/*.pyi say what the built module has; `--write` brings them up to date."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

STUBS = Path(__file__).parent.parent / "python" / "moerun" / "_core"


def generate() -> dict[str, str]:
    """The stubs of the module as built, one per submodule, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "moerun._core", "-o", folder]
        subprocess.run(command, check=True, capture_output=True, text=True)
        texts = {path.name: path.read_text() for path in (Path(folder) / "moerun" / "_core").glob("*.pyi")}
    # The generator's layout depends on which formatters it finds.
    return {name: ast.unparse(ast.parse(text)) + "\n" for name, text in texts.items()}


def main() -> int:
    built = generate()
    if "--write" in sys.argv:
        for path in STUBS.glob("*.pyi"):
            path.unlink()
        STUBS.mkdir(exist_ok=True)
        for name, text in built.items():
            (STUBS / name).write_text(text)
        return 0
    kept = {path.name: path.read_text() for path in STUBS.glob("*.pyi")}
    if kept == built:
        return 0
    for name in sorted(kept.keys() | built.keys()):
        old, new = kept.get(name, "").splitlines(True), built.get(name, "").splitlines(True)
        sys.stdout.writelines(difflib.unified_diff(old, new, str(STUBS / name), "as built", n=1))
    print("python/moerun/_core is out of date: run python tests/check_stubs.py --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
