"""Measured limits: what comes back is complete and consistent. How large it is, the benches show."""

import pytest

from expert_layers import ISAS_WITH_BF16_DOT, ISAS_WITH_INT8_DOT, ISAS_WITH_NIBBLE_TILES
from moerun import _core, machine

MIB = 1 << 20


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set_has_limits(isa, threads):
    limits = _core.measure_limits(threads, buffer_bytes=8 * MIB, isa=isa, seconds=0.01, repeats=3)
    assert (limits["threads"], limits["buffer_bytes"]) == (threads, 8 * MIB)
    assert "fp32" in limits["dot_gflop_per_s"]
    for figure in [limits["read_gb_per_s"], *limits["dot_gflop_per_s"].values()]:
        assert 0 < figure["median"] <= figure["best"]
        assert figure["spread_percent"] >= 0
        assert figure["repeats"] == 3


@pytest.mark.parametrize("isa", _core.available_isas())
def test_bf16_and_int8_are_measured_where_they_are_multiplied(isa):
    measured = _core.measure_limits(1, buffer_bytes=MIB, isa=isa, seconds=0.003, repeats=1)["dot_gflop_per_s"]
    assert ("bf16" in measured) == (isa in ISAS_WITH_BF16_DOT)
    assert ("int8" in measured) == (isa in ISAS_WITH_INT8_DOT)


@pytest.mark.parametrize("isa", _core.available_isas())
def test_a_format_has_the_peak_of_what_its_kernels_multiply(isa):
    meter = _core.LimitMeter(1, MIB, isa)
    expected = dict.fromkeys(_core.WeightFormat.__members__, "bf16" if isa in ISAS_WITH_BF16_DOT else "fp32")
    expected |= dict.fromkeys(("fp32", "fp16"), "fp32")
    if isa in ISAS_WITH_INT8_DOT:
        expected |= dict.fromkeys(("int8", "int8_g128"), "int8")
    if isa in ISAS_WITH_NIBBLE_TILES:
        expected |= {name: "int8" for name in expected if name.startswith("int4") or name == "mxfp4"}
    assert {f: meter.dot_type(t).name for f, t in _core.WeightFormat.__members__.items()} == expected
    for name, dot_type in _core.DotType.__members__.items():
        if dot_type in meter.dot_types:
            assert meter.dot(dot_type, seconds=0.001) > 0
        else:
            with pytest.raises(ValueError, match=f"{isa} kernels do not multiply {name}"):
                meter.dot(dot_type, seconds=0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"isa": "sse9"}, "sse9.*this machine has: .*ref"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"repeats": 0}, "repeats"),
        ({"buffer_bytes": 100}, "buffer_bytes is 100.*1 MiB"),
        ({"threads": 0}, "threads"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.measure_limits(**{"threads": 1, "buffer_bytes": MIB, "seconds": 0.001, **arguments})


def test_the_buffer_is_chosen_for_this_machine():
    limits = machine.measure_limits(threads=1, seconds=0.01, repeats=1)
    l3_bytes, free = _core.cpu_info()["l3_bytes"], machine.memory().available_bytes
    assert limits["buffer_bytes"] >= min(4 * l3_bytes, free // 8)


def test_cpu_info_is_sane():
    cpu = _core.cpu_info()
    assert cpu["usable_cores"] >= 1
    assert 0 < cpu["l1d_bytes"] <= cpu["l2_bytes"]
    assert _core.available_isas()[-1] == "ref"
    assert _core.choose_isa() in _core.available_isas()


def test_moerun_isa_forces_a_row(monkeypatch):
    monkeypatch.setenv("MOERUN_ISA", "ref")
    assert _core.choose_isa() == "ref"
    monkeypatch.setenv("MOERUN_ISA", "sse9")
    with pytest.raises(ValueError, match=r"sse9.*MOERUN_ISA"):
        _core.choose_isa()
