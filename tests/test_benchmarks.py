"""The benchmarks measure what they say, nothing wrong is timed, and weights are not degenerate."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import approximate, cards, comfyui_gpu, floor, gpu, gpu_check, report, run, timing
from benchmarks.contestants import (
    TOLERANCE,
    Job,
    baseline_evaluation,
    hold,
    our_evaluation,
    relative_error,
    sample_baseline,
    sample_ours,
)
from benchmarks.random_weights import backbone_config, random_backbone
from benchmarks.timing import Timing, compare, interleave
from tools.random_checkpoint import TINY


def test_ours_and_the_baseline_make_the_same_latent():
    backbone, job = random_backbone(backbone_config(TINY)), Job(30, 7, 2, 4)
    ours, baseline = sample_ours(backbone, job), sample_baseline(backbone, job, *job.inputs(backbone.config))
    assert relative_error(ours, baseline) <= TOLERANCE[torch.float32]
    evaluations = our_evaluation(hold(backbone, job), job), baseline_evaluation(backbone, job)
    assert relative_error(*(evaluate() for evaluate in evaluations)) <= TOLERANCE[torch.float32]


def test_random_weights_are_not_degenerate():
    net = random_backbone(backbone_config(TINY))
    for name, parameter in net.named_parameters():
        centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        assert (parameter.mean() - centre).abs() < 0.05, name
        assert 0.01 < parameter.std() < 0.08, name
    again = random_backbone(backbone_config(TINY))
    assert all(map(torch.equal, net.parameters(), again.parameters()))


def test_work_is_that_of_the_sizes():
    """By hand, of one more block: a whole one more, or without what is computed once for all steps."""
    job = Job(frames=30, tokens=7, batch=2)
    config = replace(backbone_config(TINY), embed_dim=64)
    rows, S, T, D, M = 2 * job.batch, job.tokens, job.frames, config.embed_dim, config.mlp_dim
    # Multiply-adds of a block and row: attention's four matrices and products, MLP; and cross-attention's two and products.
    own, cross = 4 * D * D + 2 * T * D + 3 * D * M, 2 * D * D + 2 * S * D
    skip = 2 * D * D
    whole = rows * T * (2 * (own + cross + config.ta_context_dim * D) + skip) + 2 * (rows * S * 2 * D * D + 6 * D * D)
    step = rows * T * (2 * own + skip) + 2 * job.batch * T * cross
    for ours, expected in ((False, whole), (True, step)):
        less, more = (floor.work_of(replace(config, depth=depth), job, ours).flops for depth in (4, 6))
        assert more - less == 2 * expected
    assert floor.work_of(config, job, True).weights < floor.work_of(config, job, False).weights


def test_work_at_full_size_is_the_published_networks():
    step, whole = (floor.work_of(backbone_config(), Job(), ours) for ours in (True, False))
    assert whole.flops / 1e9 == pytest.approx(1612.3, rel=0.001)
    assert whole.weights / 1e6 == pytest.approx(2173.4, rel=0.001)
    assert step.flops / whole.flops < 0.90 and step.weights / whole.weights < 0.70


def test_the_floor_is_the_slower_of_arithmetic_and_weights():
    work = floor.Work(flops=100, weights=10)
    assert work.floor({"fp32": 50.0, floor.COPY: 1e9}, "fp32", torch.float32) == 2
    assert work.floor({"bf16": 1e9, floor.COPY: 4.0}, "bf16", torch.bfloat16) == 5


def test_runs_take_turns_and_ratios_are_of_neighbours():
    order = []
    runs = {name: lambda name=name: order.append(name) or Timing(1, 1) for name in "ABC"}
    timings = interleave(runs, rounds=1)
    assert order == list("ABCCBA") and all(len(found) == 2 for found in timings.values())

    busy = torch.get_num_threads()
    slow, fast = [Timing(6, 6 * busy), Timing(8, 8 * busy)], [Timing(3, 3 * busy), Timing(2, 2 * busy)]
    found = compare(slow, fast)
    assert (found["ratio"], found["spread"], found["disturbed"]) == (3, [2, 4], [])


def test_a_disturbed_run_is_called_so():
    threads = torch.get_num_threads()
    idle, busy = Timing(1, 0.5 * threads), Timing(1, threads)
    assert "threads were busy" in compare([busy, idle], [idle, idle])["disturbed"][0]
    jumping = [Timing(1, threads), Timing(2, 2 * threads), Timing(2, 2 * threads)]
    assert "differ by" in compare(jumping, [busy] * 3)["disturbed"][0]


def test_the_processor_benchmark_goes_through(tmp_path, capsys):
    """Everything but a compiler; what it prints is what docs/speed.md gets."""
    with torch.compiler.set_stance("force_eager"):
        assert run.main(["--size", "tiny", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["command"] == "python3 dev.py bench --size tiny"
    ways = {entry["name"]: entry for entry in result["evaluation"]}
    last = "bf16" if "ours bf16" in ways else "fp32"
    assert {"baseline fp32", "ours fp32", f"baseline {last}, compiled", f"ours {last}, compiled"} <= set(ways)
    assert ways["ours fp32"]["error"] <= 5e-6 and ways["ours fp32"]["ratio"] > 0 and result["left_out"] == []
    assert {entry["stage"] for entry in result["stages"]} == {"text", "decode", "write", "prepare 25 steps"}
    parts = {(entry["stage"], entry["dtype"]): entry["seconds"] for entry in result["stages"]}
    whole = sum(parts[name, "fp32"] for name in ("text", "decode", "write", "prepare 25 steps"))
    clips = {entry["name"]: entry["seconds"] for entry in result["clip"]}
    assert clips["ours fp32"] == pytest.approx(whole + 25 * ways["ours fp32"]["seconds"])
    assert capsys.readouterr().out == report.section(result) + "\n"


def test_the_gpu_benchmark_goes_through_without_a_gpu(tmp_path, capsys):
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
    section = report.section(result | {"size": "full", "gpu": {"name": "NVIDIA H200"}})
    assert "On NVIDIA H200." in section and "dry run" not in section


def test_the_check_of_graphs_goes_through_without_a_gpu(capsys):
    assert gpu_check.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count(": equal, eager") == 6 and "OFF" not in said and "step, graphed" in said


def test_a_clip_in_comfyui_is_timed_by_its_own_history():
    times = {"execution_start": 1000, "execution_cached": 1100, "execution_success": 1250}
    messages = [[kind, {"prompt_id": "a", "timestamp": time}] for kind, time in times.items()]
    assert comfyui_gpu.executed({"status": {"messages": messages}, "outputs": {}}) == 0.25


def test_a_way_that_fails_or_is_wrong_is_left_out_and_the_rest_goes_on(monkeypatch):
    bench = gpu.GpuBench("tiny", timing.Progress(), quick=True)
    bench.peaks = bench.measure_peaks()
    bench.make_networks()
    evaluation = bench.evaluation

    def changed(way, job=None):
        if way.format == "tf32":
            raise torch.OutOfMemoryError("no room\nfor this")
        right = evaluation(way, job)
        return right if way.who == "baseline" or way.format == "fp32" else lambda: 1.1 * right()

    monkeypatch.setattr(bench, "evaluation", changed)
    names = [entry["name"] for entry in bench.evaluations()]
    assert names == ["baseline fp32", "baseline bf16", "ours fp32"]
    assert "ours tf32: OutOfMemoryError: no room" in bench.left_out
    assert "ours bf16: off by 1.0e-01, allowed is 2e-02." in bench.left_out


def test_the_page_shows_what_the_kept_results_give():
    page = report.PAGE.read_text("utf-8")
    assert page == report.with_section(page), "python -m benchmarks.report writes it anew"
    assert page == cards.with_cards(page), "python -m benchmarks.cards writes it anew"
    assert page == approximate.with_judged(page), "python -m benchmarks.approximate --page writes it"
