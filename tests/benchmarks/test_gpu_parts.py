"""What the GPU benchmark is made of: its report, its masks, and what it counts."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import attention, waiting
from benchmarks.gpu.agreement import iou_of_pairs, matched_share
from benchmarks.gpu.bank import Bank, answering
from benchmarks.gpu.report import Report, version_of
from benchmarks.gpu.scenes import save_scenes, scene
from benchmarks.gpu.speed import SMALL, noise
from maskmill.engine import GeneratedMasks, GeneratorConfig, MaskGenerator, MaskRecord
from maskmill.engine.codes import single
from maskmill.engine.records import DROP_REASONS
from maskmill.engine.runtime.accounting import Ledger
from maskmill.pipelines.bench.released import compare, released_generator

ROOT = Path(__file__).parents[2]


class TestReport:
    def test_a_part_that_fails_is_recorded_and_the_next_goes_on(self, tmp_path, capsys):
        report = Report(tmp_path / "out" / "x.json", {"device": "cpu"}, most_seconds=60)
        assert not report.part("first", 5, lambda _: {"value": 1 / 0})
        assert json.loads(report.path.read_text())["failed"] == ["first"]
        assert report.part("second", 5, lambda time_left: {"left": time_left()})
        assert report.close() == 1
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result == json.loads(report.path.read_text())
        assert result["parts"]["first"]["failed"] == "ZeroDivisionError: division by zero"
        assert 4 < result["parts"]["second"]["left"] <= 5

    def test_a_part_that_is_not_done_in_time_is_ended(self, tmp_path):
        report = Report(tmp_path / "x.json", {}, most_seconds=60)
        start = time.monotonic()
        report.part("slow", 0.2, lambda _: time.sleep(30))
        assert time.monotonic() - start < 10
        assert "not done in 0 s" in report.result["parts"]["slow"]["failed"]
        report.close()

    def test_where_all_hangs_what_is_known_is_printed(self, tmp_path):
        # The signal is held back, as it is while a call into a library does not return.
        program = f"""
import signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu.report import Report
report = Report(Path({str(tmp_path / "x.json")!r}), {{}}, most_seconds=1.0)
report.part("known", 0.5, lambda _: {{"value": 7}})
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
report.part("hangs", 0.1, lambda _: time.sleep(30))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 3
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["parts"]["known"] == {"value": 7}
        assert result["failed"] == ["time"]

    def test_a_package_that_is_not_there_has_no_version(self):
        assert version_of("numpy") == np.__version__
        assert version_of("no-such-package-of-anyones") is None


def record(mask_HW):
    code = single.encode(mask_HW)
    return MaskRecord(code, single.area(code), single.bbox(code), 0.9, 0.95, (0, 0, 4, 3), ((0, 0),))


def results(*masks):
    return [GeneratedMasks([record(x) for x in masks], len(masks), dict.fromkeys(DROP_REASONS, 0), {})]


def test_agreement():
    whole, half = np.ones((3, 4), bool), np.zeros((3, 4), bool)
    half[:, :2] = True
    assert iou_of_pairs([record(whole), record(half)], [record(half)]).tolist() == [[0.5], [1.0]]
    assert iou_of_pairs([], [record(half)]).shape == (0, 1)
    assert matched_share(results(), results(), 0.9) is None
    assert matched_share(results(whole), results(), 0.9) is None
    assert matched_share(results(whole, half), results(half), 0.9) == 0.5
    assert matched_share(results(half), results(half, whole), 0.9) == 0.5
    assert matched_share(results(whole, half), results(half), 0.5) == 1


def test_scenes_are_the_same_each_time(tmp_path):
    one = scene(3, 90, 120)
    assert one.shape == (90, 120, 3)
    assert np.array_equal(one, scene(3, 90, 120))
    assert not np.array_equal(one, scene(4, 90, 120))
    assert [path.name for path in save_scenes(tmp_path / "new", 2, (30, 40))] == ["0.jpg", "1.jpg"]


def test_a_bank_answers_both_generators_alike(one_thread):
    size = (90, 135)
    options = {"points_per_side": 6, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.9}
    sam = noise(SMALL, torch.device("cpu"))
    snow = MaskGenerator(sam, GeneratorConfig(**options)).generate_batch([scene(0, *size)])
    sam.bank = Bank.drawn(SMALL, size, "cpu", torch.float32)
    ours = MaskGenerator(sam, GeneratorConfig(**options)).generate(scene(0, *size))
    theirs = released_generator(SMALL, sam.state_dict(), output_mode="coco_rle", **options)
    with answering(theirs.predictor.model, sam.bank):
        records = theirs.generate(scene(0, *size))
    assert len(ours) >= 5 > len(snow[0].masks)
    agreement = compare(ours, records)
    assert agreement.share == 1
    assert agreement.largest_score_difference == 0


def test_a_bank_answers_by_the_point_alone():
    bank = Bank.drawn(SMALL, (90, 135), "cpu", torch.float32)
    points_N2 = torch.rand(400, 2) * SMALL.img_size
    shape_NM, iou_NM = bank.at(points_N2)
    assert (shape_NM[:, 1:] == shape_NM[:, :1] + torch.tensor([1, 2])).all()  # a whole, and parts of it
    again = bank.at(points_N2[37:38])
    assert torch.equal(again[0][0], shape_NM[37])
    assert torch.equal(again[1][0], iou_NM[37])
    assert bank.iou_hwM.gt(0.88).float().mean() == pytest.approx(0.2, abs=0.01)


def test_calls_of_cuda_are_told_from_kernels():
    calls = {"cudaLaunchKernel": 5, "cuLaunchKernelEx": 2, "cudaMemcpyAsync": 3, "cudaMemsetAsync": 1}
    calls |= {"cudaStreamSynchronize": 4, "cudaDeviceSynchronize": 1, "cudnn::LaunchKernel": 8, "aten::mm": 9}
    counted = waiting.by_kind(calls)
    assert (counted["launches"], counted["copies"], counted["waits"]) == (7, 4, 4)
    assert "aten::mm" not in counted["calls"]


def test_stages_wait_for_the_device_before_and_after(monkeypatch):
    ledger, said = Ledger(), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: said.append("wait"))
    with waiting.waiting_at_stages(torch.device("cuda")), ledger.stage("draw"):
        said.append("work")
    with ledger.stage("draw"):
        said.append("work")
    with waiting.waiting_at_stages(torch.device("cpu")), ledger.stage("nms"):
        said.append("work")
    assert said == ["wait", "work", "wait", "work", "work"]
    assert ledger.seconds["draw"] > 0


def test_a_thread_that_is_kept_waiting_is_noticed():
    def hold(lock_seconds=0.3):
        # Another thread gets the interpreter lock after this interval at the earliest.
        before = sys.getswitchinterval()
        sys.setswitchinterval(lock_seconds)
        end = time.perf_counter() + lock_seconds
        while time.perf_counter() < end:
            pass
        sys.setswitchinterval(before)

    assert waiting.kept_waiting(hold, 0.1)["longest_seconds"] > 0.1
    free = waiting.kept_waiting(lambda: threading.Event().wait(0.3), 0.1)
    assert free["share_late"] < 0.5
    assert free["seconds"] >= 0.3


def test_attention_is_listed_by_kind():
    def work():
        q = torch.rand(1, 2, 5, 8)
        for _ in range(3):
            F.scaled_dot_product_attention(q, q, q)
        mask = torch.ones(5, 5, dtype=torch.bool)
        F.scaled_dot_product_attention(q, q.mT.contiguous().mT, q, attn_mask=mask, scale=1.0)

    calls = attention.calls_of(work)
    assert list(calls.values()) == [3, 1]
    assert [str(call) for call in calls] == [
        "1×2×5×8, 1×2×5×8, 1×2×5×8 float32",
        "1×2×5×8, 1×2×5×8, 1×2×5×8, 5×5 float32",
    ]


def test_a_call_is_repeated_with_tensors_laid_out_as_its_own():
    q = torch.rand(1, 2, 5, 8).mT.contiguous().mT
    mask = torch.rand(5, 1).expand(1, 2, 5, 5)
    (call,) = attention.calls_of(lambda: F.scaled_dot_product_attention(q, q, q, mask))
    for one, like in zip((q, q, q, mask), call.tensors, strict=True):
        again = attention.random_like(like, torch.device("cpu"))
        assert (again.shape, again.stride(), again.dtype) == (one.shape, one.stride(), one.dtype)
