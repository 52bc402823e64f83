"""The benchmarks measure what they say, nothing wrong is timed, and weights are not degenerate."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contestants, floor, gpu, report, run, timing
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


def test_random_weights_are_not_degenerate():
    net = random_backbone(backbone_config(TINY))
    for name, parameter in net.named_parameters():
        centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        assert (parameter.mean() - centre).abs() < 0.05, name
        assert 0.01 < parameter.std() < 0.08, name
    again = random_backbone(backbone_config(TINY))
    assert all(map(torch.equal, net.parameters(), again.parameters()))


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


def test_the_floor_is_the_slower_of_arithmetic_and_weights():
    work = floor.Work(flops=100, weights=10)
    assert work.floor({"fp32": 50.0, floor.COPY: 1e9}, torch.float32) == 2
    assert work.floor({"bf16": 1e9, floor.COPY: 4.0}, torch.bfloat16) == 5


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


def test_a_disturbed_run_is_called_so_and_measured_again(monkeypatch):
    threads = torch.get_num_threads()
    idle, busy = Timing(1, 0.5 * threads), Timing(1, threads)
    assert "threads were busy" in compare([busy, idle], [idle, idle])["disturbed"][0]
    jumping = [Timing(1, threads), Timing(2, 2 * threads), Timing(2, 2 * threads)]
    assert "differ by" in compare(jumping, [busy] * 3)["disturbed"][0]

    script = iter([busy, idle, busy, busy] + [busy] * 4)
    monkeypatch.setattr(timing, "time_once", lambda run: next(script))
    timings = interleave({"A": None, "B": None}, rounds=1, spare=3)
    assert timings == {"A": [busy, busy], "B": [busy, busy]} and not list(script)


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
    names = [(entry["name"], entry["baseline"]) for entry in result["evaluation"]]
    assert ("ours fp32", "baseline fp32") in names
    assert ("ours fp32, torch.compile", "baseline fp32, torch.compile") in names
    assert all(e["pairs"] == 6 for e in result["evaluation"])
    assert {entry["what"] for entry in result["growth"]} == {"seconds", "batch", "tokens"}
    assert {entry["stage"] for entry in result["stages"]} == {"text", "decode", "write"}
    assert {entry["steps"] for entry in result["prepare"]} == {5, 10, 25, 50}
    printed = capsys.readouterr().out
    assert printed == report.section(result, None) + "\n"
    assert "No figure from a GPU exists" in printed


def test_the_gpu_benchmark_goes_through_without_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", (1,))
    monkeypatch.setattr(gpu, "TOKENS", (16,))
    assert gpu.main(["--dry-run", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    ways = {entry["name"]: entry for entry in result["evaluation"]}
    assert {"baseline fp32", "baseline tf32", "baseline bf16", "ours bf16", "ours bf16, compiled"} <= set(ways)
    assert ways["ours fp32"]["error"] <= 5e-6 and ways["ours bf16, compiled"]["error"] <= 2e-2
    assert [entry["batch"] for entry in result["throughput"]] == [1, 2, 4, 8, 16]
    assert any("CUDA graph" in reason for reason in result["left_out"])
    assert "A dry run without a GPU: these times mean nothing." in capsys.readouterr().out
    assert torch.get_float32_matmul_precision() == "highest"

    # The same figures, as if from a GPU.
    result |= {"dry_run": False, "gpu": {"name": "NVIDIA H200"}}
    section = report.section(None, result)
    assert "On NVIDIA H200:" in section and "dry run" not in section and report.NO_GPU not in section


@pytest.mark.full
def test_the_quick_gpu_benchmark_compiles_and_grows_less(tmp_path):
    assert gpu.main(["--dry-run", "--quick", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert not [entry["name"] for entry in result["evaluation"] if entry["name"].endswith("compiled")]
    assert len(result["evaluation"]) == 6 and len(result["clip"]) == 3 and result["growth"] == []


def test_a_way_that_fails_is_left_out_and_the_rest_goes_on():
    bench = gpu.GpuBench("tiny", "cpu", timing.Progress())
    bench.peaks = bench.measure_peaks()
    bench.backbone32 = random_backbone(bench.config)
    bench.backbone = contestants.in_dtype(bench.backbone32, torch.bfloat16)

    def fails():
        raise torch.OutOfMemoryError("no room\nfor this")

    wrong = bench.baseline(bench.backbone32)
    good = bench.ways()[0]
    bench.ways = lambda: [
        good,
        gpu.Way("too large", fails, torch.bfloat16, "bf16", 2e-2),
        gpu.Way("wrong", lambda: lambda: 1.1 * wrong(), torch.bfloat16, "bf16", 2e-2),
    ]
    assert [entry["name"] for entry in bench.evaluations()] == ["baseline fp32"]
    assert "too large: OutOfMemoryError: no room" in bench.left_out
    assert "wrong: off by 1.0e-01, allowed is 2e-02." in bench.left_out


def test_the_page_shows_what_the_kept_results_give():
    page = report.PAGE.read_text("utf-8")
    assert page == report.with_section(page), "python -m benchmarks.report writes it anew"
