"""``moerun generate``: the text, where it goes, what is said beside it, and every way to fail or to stop."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import moerun.hf
from moerun import _core
from moerun.cli import generate, main

PROMPT = "def add(first, second):"
ENDLESS = ["--max-new-tokens", "100000", "--ignore-eos"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr. One thread, as tests share the machine with others."""
    code = main(["generate", "--threads", "1", *map(str, arguments)])
    return code, *capsys.readouterr()


def start(*arguments, **options):
    command = [sys.executable, "-m", "moerun", "generate", "--threads", "1", *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, **options)


@pytest.fixture(scope="module")
def greedy_text(demo):
    """The continuation by transformers' own generate(), of 12 tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    model = moerun.hf.from_pretrained(demo)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_stdout_is_the_text_and_stderr_the_figures(capsys, demo, greedy_text):
    code, out, err = run(capsys, demo, PROMPT, "--max-new-tokens", 12)
    assert code == 0
    assert out == greedy_text + ("" if greedy_text.endswith("\n") else "\n")
    for part in ("prefill", "decode", "tokens/s", "peak memory", "11 tokens", "% in experts"):
        assert part in err


def test_echo_puts_the_prompt_first(capsys, demo, greedy_text):
    _, out, _ = run(capsys, demo, PROMPT, "--max-new-tokens", 12, "--echo")
    assert out.startswith(PROMPT + greedy_text)


def test_json_has_text_and_figures(capsys, demo, greedy_text):
    code, out, err = run(capsys, demo, PROMPT, "--max-new-tokens", 12, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["text"] == greedy_text
    assert report["new_tokens"] == 12
    assert report["threads"] == torch.get_num_threads() == 1
    assert 0 < report["prefill_experts_s"] <= report["prefill_s"]
    assert 0 < report["decode_experts_s"] <= report["decode_s"]
    assert report["prefill_tokens_per_s"] == pytest.approx(report["prompt_tokens"] / report["prefill_s"])
    assert report["decode_tokens_per_s"] == pytest.approx(11 / report["decode_s"])
    # Every token but the last goes through every layer, to 4 experts.
    processed = 4 * (report["prompt_tokens"] + 11)
    assert {layer: sum(tokens) for layer, tokens in report["expert_tokens_by_layer"].items()} == {
        str(layer): processed for layer in range(6)
    }


def test_threads_are_those_asked_for(capsys, demo, greedy_text):
    report = json.loads(run(capsys, demo, PROMPT, "--max-new-tokens", 12, "--json", "--threads", 2)[1])
    assert report["threads"] == torch.get_num_threads() == 2
    assert report["text"] == greedy_text


def test_without_a_number_all_usable_cores_work():
    assert generate.default_threads() == _core.cpu_info()["usable_cores"]


def test_stats_show_the_experts_of_every_layer(capsys, demo):
    code, _, err = run(capsys, demo, PROMPT, "--max-new-tokens", 3, "--stats")
    assert code == 0
    assert err.count(" of 32") == 6


def test_one_token_has_no_decode(capsys, demo):
    code, _, err = run(capsys, demo, PROMPT, "--max-new-tokens", 1)
    assert code == 0
    assert "decode" not in err


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dtype(capsys, demo, dtype):
    code, out, _ = run(capsys, demo, PROMPT, "--max-new-tokens", 3, "--dtype", dtype)
    assert code == 0
    assert out


def test_dense_format(capsys, demo, monkeypatch):
    models = []
    real = moerun.hf.from_pretrained
    monkeypatch.setattr(
        moerun.hf, "from_pretrained", lambda *a, **more: models.append(real(*a, **more)) or models[-1]
    )
    code, out, _ = run(capsys, demo, PROMPT, "--max-new-tokens", 3, "--dense", "int8")
    assert code == 0
    assert out
    assert models[0].model.layers[0].self_attn.q_proj.moerun_linear.value.format == "int8"


def test_prompt_from_stdin(capsys, demo, greedy_text, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert run(capsys, demo, "-", "--max-new-tokens", 12)[1].startswith(greedy_text)


def test_options_may_stand_anywhere(capsys, demo, greedy_text):
    code, out, _ = run(capsys, "--max-new-tokens", 12, demo, "--echo", PROMPT, "--stats")
    assert code == 0
    assert out.startswith(PROMPT + greedy_text)


def test_a_seed_makes_sampling_repeatable(capsys, demo):
    sample = [demo, PROMPT, "--max-new-tokens", 10, "--temperature", 1.2, "--top-p", 0.95, "--seed"]
    first, again, other = (run(capsys, *sample, seed)[1] for seed in (7, 7, 8))
    assert first == again != other


def test_sampling_overrides_what_the_checkpoint_says():
    assert generate.sampling(None, None)["do_sample"] is False
    assert generate.sampling(0.0, 0.9)["do_sample"] is False
    assert generate.sampling(0.7, None) == {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0}
    assert generate.sampling(None, 0.9) == {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}


def test_beyond_the_context_there_is_a_note(capsys, demo):
    _, _, err = run(capsys, demo, "x = 1\n" * 700, "--max-new-tokens", 1)
    assert "2048" in err


def test_chat_without_a_template(capsys, demo):
    code, out, err = run(capsys, demo, PROMPT, "--chat")
    assert (code, out) == (1, "")
    assert "no chat template" in err


def test_chat_goes_through_the_template(capsys, demo_copy):
    config = demo_copy / "tokenizer_config.json"
    fields = json.loads(config.read_text())
    fields["chat_template"] = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    config.write_text(json.dumps(fields))
    report = [
        json.loads(run(capsys, demo_copy, *arguments, "--max-new-tokens", 8, "--json")[1])
        for arguments in (["hello", "--chat"], ["# user: hello\n"])
    ]
    assert report[0]["prompt_tokens"] == report[1]["prompt_tokens"]
    assert report[0]["text"] == report[1]["text"]


@pytest.mark.parametrize("prompt", ["", "\udcff"])
def test_prompts_that_are_no_text(capsys, demo, prompt):
    code, out, err = run(capsys, demo, prompt)
    assert (code, out) == (1, "")
    assert "the command line" in err


def test_stdin_that_is_not_text(capsys, demo, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    code, _, err = run(capsys, demo, "-")
    assert code == 1
    assert "stdin" in err
    assert "UTF-8" in err


def test_a_checkpoint_without_a_tokenizer(capsys, demo_copy):
    for file in demo_copy.glob("tokenizer*"):
        file.unlink()
    code, out, err = run(capsys, demo_copy, PROMPT)
    assert (code, out) == (1, "")
    assert "tokenizer" in err
    assert err.count("\n") == 1


def test_a_damaged_checkpoint(capsys, demo_copy):
    with (demo_copy / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    code, out, err = run(capsys, demo_copy, PROMPT)
    assert (code, out) == (1, "")
    assert "model.safetensors" in err
    assert err.count("\n") == 1


def test_ctrl_c_stops_the_generation(demo):
    process = start(demo, PROMPT, *ENDLESS)
    assert process.stdout.read(1)  # the first text is out
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"interrupted" in err


def test_a_reader_that_goes_away_stops_the_generation(demo):
    process = start(demo, PROMPT, *ENDLESS)
    assert process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_a_terminal_without_these_characters_gets_others_instead(demo):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start(demo, "# é", "--echo", "--max-new-tokens", 1, env=ascii_only)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert out.startswith(b"# ?")
