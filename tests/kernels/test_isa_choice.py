"""MOERUN_ISA and EngineConfig.isa force a row of the kernel table; one that is not there is an error."""

from __future__ import annotations

import pytest

import expert_layers
import moerun
from child_process import check_python, run_python
from expert_layers import ALL_ISAS

PRINT_ISA = "import moerun; print(moerun.Engine(cpu_threads=1).stats()['isa'])"


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_the_environment_forces_a_row(isa: str) -> None:
    expert_layers.engine_for(isa).close()
    assert check_python(PRINT_ISA, MOERUN_ISA=isa) == f"{isa}\n"


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_the_option_forces_a_row_whatever_the_environment_says(isa: str) -> None:
    expert_layers.engine_for(isa).close()
    program = f"import moerun; print(moerun.Engine(isa={isa!r}, cpu_threads=1).stats()['isa'])"
    assert check_python(program, MOERUN_ISA="ref") == f"{isa}\n"


def available() -> list[str]:
    """Rows that this machine has, from the error that lists them."""
    with pytest.raises(ValueError, match="this machine has") as error:
        moerun.Engine(isa="none such")
    return str(error.value).split("this machine has: ")[1].split(", ")


def test_without_a_wish_the_best_is_chosen() -> None:
    assert check_python(PRINT_ISA) == f"{available()[0]}\n"
    assert check_python(PRINT_ISA, MOERUN_ISA="") == f"{available()[0]}\n"


def test_what_the_machine_has_is_among_the_sources() -> None:
    assert available()[-1] == "ref"
    assert set(available()) <= set(ALL_ISAS)


@pytest.mark.parametrize("wish", ["avx1024", "AVX2", "ref ", "avx512_int8"])
def test_an_unknown_row_is_an_error_that_lists_those_there_are(wish: str) -> None:
    with pytest.raises(ValueError, match="is not available; this machine has") as error:
        moerun.Engine(isa=wish)
    assert f"'{wish}'" in str(error.value)
    assert "MOERUN_ISA" not in str(error.value)

    child = run_python(PRINT_ISA, MOERUN_ISA=wish)
    assert child.returncode == 1
    last = child.stderr.splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert all(isa in last for isa in [*available(), wish])
    assert "MOERUN_ISA" in last


@pytest.mark.skipif(len(available()) == len(ALL_ISAS), reason="this machine has all rows")
def test_a_row_that_the_machine_lacks_is_an_error() -> None:
    lacking = sorted(set(ALL_ISAS) - set(available()))[0]
    with pytest.raises(ValueError, match="is not available"):
        moerun.Engine(isa=lacking)
