"""A process that compiles kernels, and the function that hands work to several of them.

Compiling in children keeps Triton out of the caller's process, takes all cores, and is safe in scripts
without an `if __name__ == "__main__"`, which multiprocessing would run again. The parent pickles jobs to a
child's standard input; the child answers with one pickle (index, Binary or message) per job.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from moerun.errors import KernelError
from moerun.kernels.compile import Binary, Job, compile_job

MAX_WORKERS = 8  # heuristic: a layer has about a dozen kernels
_COMMAND = "from moerun.kernels.worker import main; main()"


def compile_all(
    jobs: Sequence[Job], on_done: Callable[[], object], workers: int | None = None
) -> list[Binary]:
    """Compiles jobs in `workers` processes (by default as many as cores), calling on_done() after each.

    Raises
    ------
    KernelError
        A kernel does not compile, or a process ended early; the message says which and quotes it.
    """
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    workers = min(workers, len(jobs))
    if workers == 0:
        return []
    results: dict[int, Binary] = {}
    with (
        tempfile.TemporaryDirectory(prefix="moerun-kernels-") as scratch,
        ThreadPoolExecutor(workers) as pool,
    ):

        def share(first: int) -> None:
            for index, binary in _in_child(list(enumerate(jobs))[first::workers], scratch):
                results[index] = binary
                on_done()

        for future in [pool.submit(share, first) for first in range(workers)]:
            future.result()
    return [results[index] for index in range(len(jobs))]


def _in_child(numbered: list[tuple[int, Job]], scratch: str) -> Iterator[tuple[int, Binary]]:
    environment = {**os.environ, "TRITON_CACHE_DIR": scratch, "TRITON_DISABLE_LINE_INFO": "1"}
    environment.pop("TRITON_INTERPRET", None)
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            pickle.dump(numbered, child.stdin)
            child.stdin.close()
            for _ in numbered:
                index, answer = pickle.load(child.stdout)
                if isinstance(answer, str):
                    raise KernelError(answer)
                yield index, answer
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            child.wait()
            complaints.seek(0)
            tail = complaints.read()[-2000:].decode(errors="replace")
            raise KernelError(
                f"a process that compiles GPU kernels ended with status {child.returncode}:\n{tail}"
            ) from error
        finally:
            child.kill()


def main() -> None:
    """The child: reads jobs, answers each."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compilers print must not come between the answers
    for index, job in pickle.load(sys.stdin.buffer):
        try:
            answer: Binary | str = compile_job(job)
        except KernelError as error:
            answer = str(error)
        pickle.dump((index, answer), answers)
        answers.flush()
