"""The numerical tests as older processors compute: AVX2 without AVX512, and the oldest x86-64 that torch supports.

The libraries below torch are asked, by their own variables, to leave newer instructions unused.
"""

import os
import platform
import subprocess
import sys

import pytest

from tools.comfyui import ROOT

PROCESSORS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
FILES = ("golden", "checkpoint", "repack", "gguf", "library", "backbone", "spectral")
TESTS = [*(f"tests/test_{name}.py" for name in FILES), "tests/test_command_line.py"]
# What is long and computes little, or is of the command line and computes nothing.
LEFT_OUT = "not (full_size or disk or interruption or memory) and (not test_command_line or interrupted_run)"
IS_IT_SO = """
import sys, torch
from dasheng_core.tensors import has_fast_bfloat16
sys.exit(torch.backends.cpu.get_cpu_capability() != sys.argv[1] or has_fast_bfloat16(torch.device("cpu")))
"""


@pytest.mark.full
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the variables are for x86-64")
def test_the_numerical_tests_pass_on_older_processors():
    """Both at a time, a thread each."""
    runs = {}
    for name, variables in PROCESSORS.items():
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", IS_IT_SO, name], cwd=ROOT, env=environment, check=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", LEFT_OUT]
        runs[name] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    reports = {name: run.communicate()[0] for name, run in runs.items()}
    failed = {name: reports[name][-5000:] for name, run in runs.items() if run.returncode}
    assert not failed, "\n\n".join(f"{name}:\n{report}" for name, report in failed.items())
