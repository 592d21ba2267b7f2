"""The Triton kernel of the scan statistics as machine code: what can be known of it without a GPU."""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, sys
from kernels.scan_statistics import forward
from profiles.static import compile_case

for case in forward.static_cases():
    compiled = compile_case(case, sys.argv[1])
    print(json.dumps({
        "name": case["name"],
        "spills": compiled.spills,
        "stack": compiled.stack_bytes,
        "registers": compiled.registers,
        "shared": compiled.shared_bytes,
        "float_atomics": compiled.float_atomics,
    }))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_state_stays_in_its_registers(target):
    compiled = by_name(SCRIPT, target)
    assert len(compiled) == 3
    for name, case in compiled.items():
        assert case["spills"] == case["stack"] == case["shared"] == 0, name
        assert case["registers"] <= 168, name
        assert case["float_atomics"] == 0, name
