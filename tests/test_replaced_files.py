"""Model files that are rewritten while a server has them loaded: it lives, and its next queue reads them anew."""

import pytest
import torch
from safetensors.torch import load_file, save

from conftest import GOLDEN, PUBLISHED_NAMES
from graphs import Graph, run, text_to_sound
from tools.comfyui import MODEL_FOLDERS


def scene(kind: str, name: str, seed: int) -> Graph:
    return text_to_sound(seed, seconds=0.4, steps=2, **{kind: name})


@pytest.fixture
def files(server):
    """Write bytes into a file among the models of a kind, in place; side files come with the first. Removed afterwards."""
    written = set()

    def write(kind: str, name: str, content: bytes) -> None:
        path = server.base / "models" / kind / name
        for side_file in ("config.json", "tokenizer.json"):
            source = GOLDEN / "tiny" / MODEL_FOLDERS[kind] / side_file
            if source.exists() and path not in written:
                beside = path.with_name(f"{path.stem}.{side_file}")
                beside.write_bytes(source.read_bytes())
                written.add(beside)
        with open(path, "r+b" if path in written else "wb") as file:
            file.truncate(0)
            file.write(content)
        written.add(path)

    yield write
    for path in written:
        path.unlink()


def weights(kind: str) -> tuple[bytes, bytes]:
    """The golden file of a kind, and one of the same layout with other weights."""
    tensors = load_file(GOLDEN / "tiny" / MODEL_FOLDERS[kind] / "model.safetensors")
    other = {name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return save(tensors), save(other)


def sound(server, graph: Graph) -> torch.Tensor:
    ((samples, _),) = run(server, graph).audio()
    return samples


@pytest.mark.parametrize("kind", PUBLISHED_NAMES)
def test_a_loaded_file_is_rewritten(server, files, kind):
    first, second = weights(kind)
    files(kind, "rewritten.safetensors", first)
    files(kind, "fresh.safetensors", second)
    before = sound(server, scene(kind, "rewritten.safetensors", seed=1))

    # A copy that was stopped, or has not come to its end.
    files(kind, "rewritten.safetensors", second[: len(second) // 2])
    stopped = run(server, scene(kind, "rewritten.safetensors", seed=2))
    assert stopped.events[-1][0] == "execution_error"
    assert "rewritten.safetensors is not a readable safetensors file" in stopped.error()

    files(kind, "rewritten.safetensors", second)
    after = sound(server, scene(kind, "rewritten.safetensors", seed=1))
    expected = sound(server, scene(kind, "fresh.safetensors", seed=1))
    assert (after - expected).abs().max() <= 1e-4
    assert (after - before).abs().max() > 1e-3


def test_a_loaded_file_that_stays_is_not_loaded_again(server, files):
    files("vae", "kept.safetensors", weights("vae")[0])
    sound(server, scene("vae", "kept.safetensors", seed=1))
    again = run(server, scene("vae", "kept.safetensors", seed=2))
    (cached,) = [data["nodes"] for kind, data in again.events if kind == "execution_cached"]
    assert {"1", "2", "3"} <= {*cached}
