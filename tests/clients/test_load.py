"""What bench/server/load.py asks of a server, scaled down: each of its scenarios fails by itself."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT

# A guard against hangs only.
HANG_SECONDS = 1800
SCENARIOS = {
    "thousand": ["--streams", "200", "--tokens", "32"],
    "mixed": ["--seconds", "12"],
    "damaged": ["--requests", "600"],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_server_takes_the_load(scenario):
    script = ROOT / "bench/server/load.py"
    command = [sys.executable, "-B", str(script), scenario, *SCENARIOS[scenario]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["scenario"] == scenario
