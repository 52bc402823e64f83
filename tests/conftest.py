"""Golden data: small random checkpoints and what the published model computed from them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dasheng_core import DashengAudioGen

GOLDEN = Path(__file__).parent / "golden"
SETS = ("tiny", "tiny_multilingual")


@dataclass
class Golden:
    folder: Path
    prompts: list[str]
    long_prompt: str
    cases: list[dict]
    tensors: dict[str, torch.Tensor]
    model: DashengAudioGen

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def load_model(folder: Path, **options) -> DashengAudioGen:
    return DashengAudioGen.from_pretrained(
        folder / "audiogen", folder / "text_encoder", folder / "audio_tokenizer", **options
    )


@pytest.fixture(scope="session", params=SETS)
def golden(request) -> Golden:
    folder = GOLDEN / request.param
    tensors = load_file(folder / "golden.safetensors")
    return Golden(folder, **json.loads((folder / "golden.json").read_text("utf-8")), tensors=tensors, model=load_model(folder))


@pytest.fixture(scope="session")
def tiny() -> DashengAudioGen:
    return load_model(GOLDEN / "tiny")


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, each relative to max(1, |expected|)."""
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    return ((actual - expected).abs() / expected.abs().clamp(min=1)).max().item()


@pytest.fixture(scope="session")
def deviations(pytestconfig):
    """Worst deviation of each kind of tensor, printed when the session ends."""
    worst: dict[tuple[str, str], float] = {}
    pytestconfig.stash[DEVIATIONS] = worst

    def check(golden: Golden, kind: str, actual, expected, tolerance: float):
        found = deviation(actual, expected)
        key = (golden.folder.name, kind)
        worst[key] = max(worst.get(key, 0.0), found)
        assert found <= tolerance, f"{kind}: deviation {found:.2e}, tolerance {tolerance:.0e}"

    return check


DEVIATIONS = pytest.StashKey[dict]()


def pytest_terminal_summary(terminalreporter, config):
    if worst := config.stash.get(DEVIATIONS, None):
        terminalreporter.section("worst deviation from the published model (relative to max(1, |reference|))")
        for (folder, kind), value in sorted(worst.items()):
            terminalreporter.line(f"{folder:18} {kind:10} {value:.2e}")
