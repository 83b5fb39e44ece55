"""The machine code of the GPU kernels, as far as it is quick; `make check-gpu-kernels` compiles all of it."""

from __future__ import annotations

import pytest
from compiling import HERE, USUAL, case_files, load_cases, run_cases

pytest.importorskip("triton.backends.nvidia", reason="this triton has no compiler for GPUs")

BAD = HERE / "bad_cases.py"
FOUND = {
    "sound": "",
    "sound warp group": "",
    "odd stride": "best_score loads nothing ahead",
    "spills": "product spills: ",
    "too much shared memory": "bytes of shared memory, sm_90 has 232448",
    "no warp group": "product multiplies with HMMA only",
    "too many registers": "registers, not 24",
    "a kernel a stride": "compiles 2 kernels instead of 1",
    "nothing launched": "launches no kernel",
    "another kernel": "no_such_kernel is not launched",
    "does not compile": "did not compile",
    "sound after a failure": "",
}


@pytest.mark.parametrize("target", USUAL)
def test_machine_code(target: str) -> None:
    cases = [case for case in load_cases(case_files()) if target in case.quick]
    faults = [
        f"{outcome.case.name}: {fault}"
        for outcome in run_cases(target, cases, case_files())
        for fault in outcome.faults
    ]
    assert not faults, "\n".join(faults)


def test_bad_machine_code_is_found() -> None:
    cases = [case for case in load_cases([BAD]) if case.name in FOUND]
    outcomes = {outcome.case.name: outcome for outcome in run_cases("sm_90", cases, [BAD])}
    assert list(outcomes) == list(FOUND)
    for name, fault in FOUND.items():
        found = "\n".join(outcomes[name].faults)
        assert fault in found if fault else not found, f"{name}: {found}"


def test_a_compiler_that_hangs_is_ended() -> None:
    cases = [case for case in load_cases([BAD]) if case.name == "hangs"]
    (outcome,) = run_cases("sm_90", cases, [BAD], seconds=0.1)
    assert outcome.faults == ["not compiled after 0.1 s"]
