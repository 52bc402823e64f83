"""The benchmarks measure what they say, nothing wrong is timed, and weights are not degenerate."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contestants, floor, gpu, report, run
from benchmarks.contestants import Job, baseline_evaluation, hold, our_evaluation, sample_baseline, sample_ours
from benchmarks.random_weights import backbone_config, random_backbone
from benchmarks.timing import Timing, compare, interleave
from dasheng_core.backbone import Backbone
from tools.random_checkpoint import TINY


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_ours_and_the_baseline_make_the_same_latent(guidance):
    backbone, job = random_backbone(backbone_config(TINY)), Job(30, 7, 2, 4, guidance)
    ours, baseline = sample_ours(backbone, job), sample_baseline(backbone, job, *job.inputs(backbone.config))
    contestants.check_equal("ours", ours, baseline, torch.float32)
    evaluations = our_evaluation(hold(backbone, job), job), baseline_evaluation(backbone, job)
    contestants.check_equal("ours", *(evaluate() for evaluate in evaluations), torch.float32)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_work_is_what_is_counted(guidance):
    """The floor's arithmetic against what PyTorch counts, on a device that only counts."""
    config, job = replace(backbone_config(TINY), embed_dim=64), Job(frames=30, tokens=7, batch=2, guidance=guidance)
    backbone = Backbone(config, device="meta")
    size = (config, job.frames, job.tokens, job.batch, job.guided)
    for evaluate, work in (
        (baseline_evaluation(backbone, job, "meta"), floor.whole_work(*size)),
        (our_evaluation(hold(backbone, job, "meta"), job, "meta"), floor.step_work(*size)),
    ):
        with FlopCounterMode(display=False) as counter:
            evaluate()
        assert counter.get_total_flops() == work.flops
    assert floor.step_work(*size).weights < floor.whole_work(*size).weights


def test_work_at_full_size_is_the_published_networks():
    step, whole = (work(backbone_config(), 250, 64) for work in (floor.step_work, floor.whole_work))
    assert whole.flops / 1e9 == pytest.approx(1612.3, rel=0.001)
    assert whole.weights / 1e6 == pytest.approx(2173.4, rel=0.001)
    assert step.flops / whole.flops < 0.90 and step.weights / whole.weights < 0.70


def test_a_wrong_result_is_never_timed():
    expected = torch.ones(10)
    contestants.check_equal("right", expected * (1 + 4e-6), expected, torch.float32)
    for wrong in (expected * (1 + 6e-6), expected * torch.nan):
        with pytest.raises(SystemExit, match="ours: relative error .* at most 5e-06"):
            contestants.check_equal("ours", wrong, expected, torch.float32)


def test_runs_take_turns_and_ratios_are_of_neighbours():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ABC"}
    timings = interleave(runs, rounds=1)
    assert order[:6] == list("ABCCBA") and all(len(found) == 2 for found in timings.values())

    busy = torch.get_num_threads()
    slow, fast = [Timing(6, 6 * busy), Timing(8, 8 * busy)], [Timing(3, 3 * busy), Timing(2, 2 * busy)]
    found = compare(slow, fast)
    assert (found["ratio"], found["spread"], found["ratio_of_minima"]) == (3, [2, 4], 3)
    assert found["disturbed"] == []


@pytest.mark.full
def test_the_processor_benchmark_goes_through(tmp_path, capsys, monkeypatch):
    """Everything but compilers and checkpoints, which take minutes; what it prints is what docs/speed.md gets."""
    monkeypatch.setattr(run, "SECONDS", (1,))
    monkeypatch.setattr(run, "BATCHES", (2,))
    monkeypatch.setattr(run, "TOKENS", (16,))
    monkeypatch.setattr(run.machine, "has_compiler", lambda: True)
    monkeypatch.setattr(run.machine, "load_times", lambda sizes, progress: [])
    threads = torch.get_num_threads()
    try:
        with torch.compiler.set_stance("force_eager"):
            assert run.main(["--size", "tiny", "--threads", "1", "--json", str(tmp_path / "out.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["command"] == "python3 dev.py bench --size tiny"
    assert result["equality"]["ours fp32"] <= 5e-6
    names = {(entry["name"], entry["baseline"]) for entry in result["evaluation"]}
    compiled = ("ours fp32, torch.compile", "baseline fp32, torch.compile")
    assert {("ours fp32", "baseline fp32"), compiled} <= names
    assert all(result[part] for part in ("growth", "stages", "prepare"))
    printed = capsys.readouterr().out
    assert printed == report.section(result, None) + "\n"
    assert "No figure from a GPU exists" in printed


def test_the_gpu_benchmark_goes_through_without_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", (1,))
    monkeypatch.setattr(gpu, "TOKENS", (16,))
    assert gpu.main(["--dry-run", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    ways = {entry["name"]: entry for entry in result["evaluation"]}
    assert ways["ours fp32"]["error"] <= 5e-6 and ways["ours bf16, compiled"]["error"] <= 2e-2
    assert result["throughput"] and any("CUDA graph" in reason for reason in result["left_out"])
    assert "A dry run without a GPU: these times mean nothing." in capsys.readouterr().out
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_page_shows_what_the_kept_results_give():
    page = report.PAGE.read_text("utf-8")
    assert page == report.with_section(page), "python -m benchmarks.report writes it anew"
