"""How the command ends: exit codes, and messages of one line where a user can put something right."""

import os
import subprocess
import sys

import pytest

import moerun
from moerun.cli import errors, main


def moerun_process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "moerun", *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"moerun {moerun.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["info", "--help"], ["doctor", "--help"]]
)
def test_help(capsys, arguments):
    assert main(arguments) == 0
    assert "usage: moerun" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["info"], "required: CKPT"),
        (["generate", "ckpt"], "required: PROMPT"),
        (
            ["generate", "ckpt", "p", "--threads", "0"],
            "--threads: must be a whole number of at least 1, got '0'",
        ),
        (["generate", "ckpt", "p", "--threads", "two"], "--threads: must be a whole number of at least 1"),
        (["generate", "ckpt", "p", "--max-new-tokens", "-1"], "--max-new-tokens"),
        (["generate", "ckpt", "p", "--dtype", "int3"], "--dtype: invalid choice: 'int3'"),
        (["generate", "ckpt", "p", "--temperature", "-1"], "--temperature: must be a number of at least 0"),
        (["generate", "ckpt", "p", "--temperature", "nan"], "--temperature"),
        (["generate", "ckpt", "p", "--temperature", "hot"], "--temperature: must be a number, got 'hot'"),
        (["generate", "ckpt", "p", "--top-p", "0"], "--top-p: must be more than 0 and at most 1"),
        (["generate", "ckpt", "p", "--seed", "-1"], "--seed: must be a whole number of at least 0"),
        (["doctor", "ckpt"], "unrecognized arguments: ckpt"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize("error", [ValueError("too\n  long"), OSError("gone"), moerun.CheckpointError("bad")])
def test_what_a_user_can_put_right_is_one_line(capsys, error):
    def fail():
        raise error

    assert errors.run_guarded(fail, debug=False) == 1
    message = " ".join(str(error).split())
    assert capsys.readouterr().err == f"moerun: error: {message}\n"


def test_debug_shows_where(capsys):
    def fail():
        raise ValueError("here")

    assert errors.run_guarded(fail, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden():
    def fail():
        raise AssertionError("a bug")

    with pytest.raises(AssertionError):
        errors.run_guarded(fail, debug=False)


def test_interrupted_ends_with_130(capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert errors.run_guarded(interrupt, debug=False) == 130
    assert "interrupted" in capsys.readouterr().err


def test_error_without_a_message_names_its_type():
    assert errors.one_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    "command", [["generate", "no/such/folder/here", "p"], ["info", "no/such/folder/here"]]
)
def test_a_folder_that_does_not_exist(command):
    done = moerun_process(*command)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("moerun: error: ")
    assert "no/such/folder/here" in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_from_the_environment(tmp_path):
    done = moerun_process("info", str(tmp_path), env={**os.environ, "MOERUN_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_quick_commands_import_neither_torch_nor_transformers(tmp_path):
    code = (
        "import sys; from moerun.cli import main; "
        f"main(['--help']); main(['info', {str(tmp_path)!r}]); "
        "print([m for m in ('torch', 'transformers', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
