"""The pretended GPU itself: what it counts, what it refuses, and that it leaves nothing behind."""

import os
import tempfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import maskmill.engine.runtime.transfer
from maskmill.engine import MaskGenerator
from maskmill.engine.runtime.accounting import Ledger
from maskmill.model.networks.sam import pixel_statistics
from tests.support import device_guard as guard
from tests.support.pretend_cuda import GridError, MixedDevicesError, PretendCuda, UnfetchedError
from tests.support.tiny import OPEN, tiny

needs_guard = pytest.mark.usefixtures("device_guard")


def on_device(array):
    return maskmill.engine.runtime.transfer.upload(np.asarray(array, np.float32), torch.device("cuda:0"))


@needs_guard
def test_it_counts_what_waits():
    with PretendCuda() as cuda:
        linear = torch.nn.Linear(3, 3).to("cuda")
        cuda.counts.clear()
        with torch.inference_mode():
            out = linear(on_device(np.ones((2, 3))))
            out.nonzero()
            out[out > 0]
            maskmill.engine.runtime.transfer.fetch(out)
            torch.ones(3).nonzero()  # the host's own
            torch.ones(3).to(linear.weight.device, non_blocking=True)
            torch.ones(3).pin_memory()[:2].to(linear.weight.device)
    assert cuda.counts.kinds_of_waits() == {
        "nonzero": 1,
        "index by flags": 1,
        "synchronize": 1,
        "pageable upload": 1,
        "upload": 1,
    }


@needs_guard
@pytest.mark.parametrize(
    "read",
    [
        lambda out: out.cpu(),
        lambda out: out.to("cpu", copy=True, non_blocking=True),
        lambda out: torch.empty(2, 3).pin_memory().copy_(out, non_blocking=True),
        lambda out: out.sum().item(),
        lambda out: bool(out.any()),
        lambda out: int(out.argmax()),
        lambda out: out.argmax().__index__(),
    ],
)
def test_it_refuses_reads_that_nobody_counts(read):
    with PretendCuda(), pytest.raises(UnfetchedError, match="read by itself"):
        read(on_device(np.ones((2, 3))))


@needs_guard
@pytest.mark.parametrize("read", [torch.Tensor.numpy, torch.Tensor.tolist, np.asarray])
def test_no_array_is_made_of_a_tensor_on_the_device(read):
    with PretendCuda(), pytest.raises(RuntimeError, match="not supported"):
        read(on_device(np.ones(2)))


@needs_guard
@pytest.mark.parametrize(
    "mix",
    [
        lambda out: out + torch.ones(3),
        lambda out: out[torch.arange(2)],
        lambda out: out @ torch.ones(3, 1),
        lambda out: torch.cat([out, torch.ones(2, 3)]),
        lambda out: torch.stack([out.sum(), torch.tensor(1.0)]),
        lambda out: torch.gt(out, 0, out=torch.empty(2, 3, dtype=torch.bool)),
        lambda out: F.linear(out, torch.ones(1, 3)),
        lambda out: F.scaled_dot_product_attention(out.new_ones(1, 1, 6, 4), *[torch.ones(1, 1, 6, 4)] * 2),
        lambda out: F.scaled_dot_product_attention(*[torch.ones(1, 1, 6, 4)] * 2, out.new_ones(1, 1, 6, 4)),
    ],
)
def test_it_refuses_tensors_of_host_and_device_together(mix):
    with PretendCuda(), pytest.raises(MixedDevicesError, match="of the device and of the host"):
        mix(on_device(np.ones((2, 3))))


@needs_guard
def test_numbers_of_the_host_may_meet_the_device():
    with PretendCuda():
        out = on_device([[1, 2], [3, 4]]) * torch.tensor(2.0)
        out[0, 0] = torch.tensor(7.0)
        out.masked_fill_(out > 7, torch.tensor(-1.0))
        (array,) = maskmill.engine.runtime.transfer.fetch(out)
    assert array.tolist() == [[7, 4], [6, -1]]


@needs_guard
def test_what_is_changed_in_a_view_is_changed():
    with PretendCuda():
        whole = torch.zeros(2, 2, device="cuda")
        row = whole[1]
        assert row.add_(1) is row
        whole.T[0].fill_(5)  # the first column
        (array,) = maskmill.engine.runtime.transfer.fetch(whole)
    assert array.tolist() == [[5, 0], [5, 1]]


@needs_guard
def test_launches_are_counted_and_views_are_free():
    with PretendCuda() as cuda:
        image = torch.ones(4, 8, device="cuda")
        cuda.counts.clear()
        image.T.reshape(8, 2, 2)[:, 0].expand(3, 8, 2)
        torch.empty_like(image)
        image[:0] + image[:0]
        assert not cuda.counts.launches
        image + image[:1]
    assert [asked.what for asked in cuda.counts.launches] == ["add"]
    assert sum(cuda.counts.bytes.values()) == 4 * (32 + 8 + 32)


@needs_guard
@pytest.mark.parametrize(
    ("dtype", "width", "launched"),
    [
        (torch.bfloat16, 16, {"flash attention": 1}),
        (torch.bfloat16, 12, {"constant_pad_nd": 3, "flash attention": 1}),
        (torch.float32, 12, {"memory-efficient attention": 1}),
    ],
)
def test_attention_is_the_kernel_that_cuda_takes(dtype, width, launched):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, width, generator=generator).to(dtype) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v)
    with PretendCuda() as cuda:
        given = [x.to("cuda") for x in (q, k, v)]
        cuda.counts.clear()
        attended = F.scaled_dot_product_attention(*given)
        counts = {asked.what: number for asked, number in cuda.counts.launches.items()}
    assert counts == launched
    torch.testing.assert_close(attended.held, expected)


@needs_guard
def test_attention_of_five_dimensions_is_written_out():
    with PretendCuda() as cuda:
        q = torch.ones(2, 3, 2, 5, 16, device="cuda")
        F.scaled_dot_product_attention(q, q, q)
    assert {"bmm", "_safe_softmax"} <= {asked.what for asked in cuda.counts.launches}


@needs_guard
def test_stages_and_lines_are_known():
    sam, image = tiny(), np.zeros((60, 90, 3), np.uint8)
    with PretendCuda() as cuda:
        MaskGenerator(sam.to("cuda"), OPEN).generate(image)
    stages = cuda.counts.by_stage()
    assert {"resize", "encode", "prompt", "draw", "resample", "filter", "paint"} <= set(stages)
    assert cuda.counts.most("paint", "waits").startswith("engine/resampling/painting.py:")
    assert cuda.counts.most("encode", "launches").startswith("model/networks/")
    assert all(asked.line != "?" for asked in cuda.counts.waits if asked.stage != "between")


@needs_guard
@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_left_behind(raises):
    def state():
        patched = (torch.cuda._lazy_init, torch.cuda.current_stream, torch.cuda.Event)
        patched += (torch.Tensor.pin_memory, torch.Tensor.is_pinned, F.scaled_dot_product_attention)
        return (*patched, Ledger.stage, torch._C._only_lift_cpu_tensors(), torch.is_grad_enabled())

    before = state()
    with PretendCuda() as cuda:
        assert state() != before
        kept, _ = pixel_statistics(torch.device("cuda:0"))
        if raises:
            with pytest.raises(ZeroDivisionError), PretendCuda():
                raise ZeroDivisionError
        assert cuda.counts.launches
    assert state() == before
    with torch.inference_mode():
        assert torch.ones(3).is_inference()
    with pytest.raises(RuntimeError, match="outside of its block"):
        kept + 1
    with PretendCuda():
        assert pixel_statistics(torch.device("cuda:0"))[0] is not kept


@needs_guard
def test_a_product_of_too_many_matrices_is_refused():
    with PretendCuda(lambda _what, tensor: tensor):
        most = torch.ones((1 << 16) - 1, 1, 1, device="cuda")
        assert (most @ most).shape == most.shape
        many = torch.ones(1 << 16, 1, 1, device="cuda")
        with pytest.raises(GridError, match="bmm of 65,536 matrices"):
            many @ many


@needs_guard
def test_what_comes_from_shapes_alone_is_made_up():
    asked = []

    def made_up(what, tensor):
        asked.append((what, tuple(tensor.shape)))
        return tensor.new_empty(2, 1, dtype=torch.int64) if what == "nonzero" else torch.ones(tensor.shape)

    with PretendCuda(made_up):
        large = torch.ones(1 << 40, device="cuda")  # four terabytes
        found = large.nonzero()
        (array,) = maskmill.engine.runtime.transfer.fetch(large[:3] + found[0])
    assert found.shape == (2, 1)
    assert array.tolist() == [1, 1, 1]
    assert asked == [("nonzero", (1 << 40,)), ("fetch", (3,))]


class TestGuard:
    """The library that is compiled for it."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def test_without_a_compiler_the_reason_is_given(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(guard.NoGuardError, match=r"no C\+\+ compiler"):
            guard._compiled()

    def test_it_is_compiled_once_for_each_pytorch(self, monkeypatch):
        compiled = []
        monkeypatch.setattr(guard, "_compile", lambda library: compiled.append(library) or library.touch())
        assert guard._compiled() == guard._compiled() == compiled[0]
        monkeypatch.setattr(torch, "__version__", "2.99")
        assert guard._compiled() == compiled[1] != compiled[0]
        assert len(compiled) == 2
        assert compiled[0].parent.stat().st_mode & 0o077 == 0

    @pytest.mark.slow
    @needs_guard
    def test_nothing_else_is_left_of_compiling(self):
        library = guard._compiled()
        assert list(library.parent.iterdir()) == [library]

    def test_a_folder_that_others_can_write_to_is_left_alone(self, tmp_path):
        taken = tmp_path / f"maskmill-tests-{os.getuid()}"
        taken.mkdir()
        taken.chmod(0o777)
        assert guard._own_folder() != taken
        assert guard._own_folder().stat().st_mode & 0o077 == 0
