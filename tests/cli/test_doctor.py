"""doctor: what this machine can do."""

import json


def test_doctor_says_what_the_machine_can_do(cli) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0 and json.loads(done.out)["gflops"] > 0
    assert "GFLOP/s" in cli("doctor").out
