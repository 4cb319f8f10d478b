"""llama.cpp and ik_llama.cpp by their `llama-bench`: one call loads a GGUF file, warms up and measures.

The file is mapped, so it comes from the page cache. llama_models.py puts the calls beside ours.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench import generate
from bench.checkpoint import CACHE
from bench.peers.gguf_file import write_gguf

# llama.cpp's counterparts of our formats, by the name that llama-quantize knows; bf16 is what is written.
FORMATS = {"bf16": "", "int8": "Q8_0", "int4_g32": "Q4_0"}


@dataclass(frozen=True)
class Speed:
    """What one turn of an implementation measured, seconds per token."""

    prefill_s: float
    decode_s: float
    commit: str = ""


@dataclass(frozen=True)
class LlamaBench:
    """One way to run a GGUF file: a folder with llama-bench in it, and options for it."""

    name: str
    folder: Path
    options: tuple[str, ...] = ()

    def run(self, file: Path, threads: int) -> Speed:
        """One turn.

        Raises
        ------
        RuntimeError
            llama-bench failed; the message is the end of what it said.
        """
        sizes = ("-p", str(generate.PROMPT_TOKENS), "-n", str(generate.NEW_TOKENS))
        command = [self.folder / "llama-bench", "-m", file, *sizes, "-t", str(threads), "-r", "1"]
        done = subprocess.run([*command, "-o", "json", *self.options], capture_output=True, text=True)
        if done.returncode:
            end = "\n".join(done.stderr.splitlines()[-8:])
            raise RuntimeError(f"{self.name}: llama-bench ended with status {done.returncode}:\n{end}")
        # ik_llama.cpp also prints lines that are not JSON.
        text = done.stdout[done.stdout.index("[\n") : done.stdout.rindex("]") + 1]
        prefill, decode = sorted(json.loads(text), key=lambda test: test["n_gen"])
        return Speed(1 / prefill["avg_ts"], 1 / decode["avg_ts"], prefill["build_commit"])


def llama_cpp(folder: Path) -> list[LlamaBench]:
    return [LlamaBench("llama.cpp", folder)]


def ik_llama_cpp(folder: Path) -> list[LlamaBench]:
    """As the file is, and with weights repacked into interleaved rows while loading."""
    return [
        LlamaBench("ik_llama.cpp", folder),
        LlamaBench("ik_llama.cpp -rtr 1", folder, ("-rtr", "1")),
    ]


def gguf_file(checkpoint: Path, weight_format: str, folder: Path) -> Path:
    """The checkpoint as a GGUF file in a format, made once; llama-quantize quantises it."""
    base = CACHE / f"{checkpoint.name}.bf16.gguf"
    if not base.exists():
        write_gguf(checkpoint, base)
    kind = FORMATS[weight_format]
    if not kind:
        return base
    file = CACHE / f"{checkpoint.name}.{kind}.gguf"
    if not file.exists():
        partial = file.with_suffix(".partial")
        subprocess.run([folder / "llama-quantize", base, partial, kind], check=True, capture_output=True)
        partial.rename(file)
    return file
