import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.engine.codes import single
from maskmill.engine.codes.runs import Runs
from maskmill.engine.geometry import input_size
from maskmill.engine.resampling.bands import CompiledResampler
from maskmill.engine.resampling.interpolation import finite
from maskmill.engine.resampling.painting import run_ends
from maskmill.engine.resampling.tiles import Resampler

SHAPES = [(5, 3), (64, 64), (65, 63), (301, 33), (77, 130), (128, 1), (1, 200), (451, 300)]


def published_chain(logits_Nhw, img_size, size):
    """Interpolate to the model's square, cut off the padding, interpolate to the image."""
    height, width = input_size(*size, img_size)
    square = F.interpolate(logits_Nhw[None], (img_size, img_size), mode="bilinear", align_corners=False)
    return F.interpolate(square[..., :height, :width], size, mode="bilinear", align_corners=False)[0]


BOTH = pytest.mark.parametrize("kind", [Resampler, CompiledResampler])


def resampler(kind, logits_Nhw, img_size, size, **options):
    return kind(logits_Nhw.shape[-1], img_size, input_size(*size, img_size), size, **options)


def painted(ours, logits_Nhw, measures, n, size) -> Runs:
    """Mask n, by either kind."""
    box = box_of(measures, n)
    if isinstance(ours, CompiledResampler):
        return Runs.between(*ours.run_ends(ours.cut(logits_Nhw[n], box), box), size)
    ends = run_ends(ours, finite(logits_Nhw[n : n + 1]), np.array([box]))
    return Runs.between(ends.x_E, ends.y_E, size)


def smooth_logits(count, side, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, max(2, side // 6), max(2, side // 6), generator=generator)
    return 3 * F.interpolate(coarse, (side, side), mode="bicubic")[0]


def box_of(measures, n):
    return tuple(measures.box_N4[n].tolist())


def pixels(mask: Runs) -> np.ndarray:
    return single.decode(single.encode_runs(mask))


@BOTH
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(("low", "img_size"), [(16, 64), (64, 256)])
def test_measures_and_masks_are_those_of_the_published_chain(kind, size, low, img_size):
    logits_Nhw = smooth_logits(6, low, seed=size[0])
    chain_NHW = published_chain(logits_Nhw, img_size, size)
    near = (chain_NHW.abs() < 1e-4).sum().item() + 1  # rounding may tip what lies on the threshold
    ours = resampler(kind, logits_Nhw, img_size, size)
    measures = ours.measure(logits_Nhw, 1.0)
    for counted_N, threshold in ((measures.tight_N, 1), (measures.area_N, 0), (measures.loose_N, -1)):
        expected_N = (chain_NHW > threshold).sum((1, 2)).numpy()
        assert np.abs(counted_N - expected_N).max() <= near
    for n in np.flatnonzero(measures.area_N):
        mask = painted(ours, logits_Nhw, measures, n, size)
        assert mask.box() == box_of(measures, n)
        assert mask.area == measures.area_N[n]
        assert (pixels(mask) != (chain_NHW[n] > 0).numpy()).sum() <= near


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([8, 16, 32]), st.integers(0, 5))
def test_values_on_a_line_stay_on_the_line(height, width, low, seed):
    # Interpolation keeps a constant and, off the border, a straight line: no weights are lost or moved.
    slope = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    cells = torch.arange(low, dtype=torch.float32)
    plane_1hw = (slope[0] * cells[:, None] + slope[1] * cells)[None]
    ours = resampler(Resampler, plane_1hw, 4 * low, (height, width))
    ones_1yx = torch.ones(1, len(ours.y.length_t), len(ours.x.length_t), dtype=torch.bool)
    for axis in (ours.y, ours.x):
        sums_tO = axis.weights_tOs.sum(2)
        inside_tO = torch.arange(sums_tO.shape[1]) < axis.length_t[:, None]
        assert torch.allclose(sums_tO, inside_tO.float(), atol=1e-6)
    values = ours.tiles(plane_1hw, *ones_1yx.nonzero(as_tuple=True))
    chain_1HW = published_chain(plane_1hw, 4 * low, (height, width))
    corner = chain_1HW[0, : values.shape[1], : values.shape[2]]
    assert torch.allclose(values[0, : corner.shape[0], : corner.shape[1]], corner, atol=1e-3)


@BOTH
def test_empty_full_and_infinite_masks(kind):
    logits_Nhw = torch.zeros(6, 16, 16)
    for n, value in enumerate((-torch.inf, torch.inf, torch.nan, 0.0, 5.0)):
        logits_Nhw[n] = value
    logits_Nhw[5] = -torch.inf
    logits_Nhw[5, 4:8, 4:8] = torch.inf  # ∞ beside −∞
    ours = resampler(kind, logits_Nhw, 64, (100, 70))
    measures = ours.measure(logits_Nhw, 1.0)
    assert measures.area_N[:5].tolist() == [0, 7000, 0, 0, 7000]
    assert measures.tight_N[:5].tolist() == [0, 7000, 0, 0, 7000]
    assert measures.loose_N[:5].tolist() == [0, 7000, 0, 7000, 7000]
    assert measures.box_N4[:5].tolist() == [[0] * 4, [0, 0, 69, 99], [0] * 4, [0] * 4, [0, 0, 69, 99]]
    assert 0 < measures.area_N[5] < 7000
    for n in (1, 4, 5):
        mask = painted(ours, logits_Nhw, measures, n, (100, 70))
        assert mask.area == measures.area_N[n]


@pytest.mark.parametrize("offset", [0.0, 0.5, 2.0])
def test_a_small_budget_and_half_precision_change_nothing(offset):
    logits_Nhw = smooth_logits(5, 32, seed=1).half()
    whole = resampler(Resampler, logits_Nhw, 128, (70, 150)).measure(logits_Nhw, offset)
    pieces = resampler(Resampler, logits_Nhw, 128, (70, 150), budget_bytes=1).measure(logits_Nhw, offset)
    for name in ("tight_N", "area_N", "loose_N", "box_N4"):
        assert np.array_equal(getattr(whole, name), getattr(pieces, name))
    compiled = resampler(CompiledResampler, logits_Nhw, 128, (70, 150)).measure(logits_Nhw, offset)
    for name in ("tight_N", "area_N", "loose_N", "box_N4"):
        assert np.abs(getattr(whole, name) - getattr(compiled, name)).max() <= 1
    if offset == 0:
        assert np.array_equal(whole.tight_N, whole.loose_N)
        assert np.array_equal(compiled.tight_N, compiled.loose_N)


@BOTH
def test_a_mask_wider_than_int16(kind):
    # The released stability score sums rows in 16 bits and is negative here.
    size = (3, 40_000)
    logits_Nhw = torch.full((1, 16, 16), 4.0)
    ours = resampler(kind, logits_Nhw, 64, size)
    measures = ours.measure(logits_Nhw, 1.0)
    assert measures.tight_N.tolist() == measures.loose_N.tolist() == [120_000]
    mask = painted(ours, logits_Nhw, measures, 0, size)
    assert mask.area == single.area(single.encode_runs(mask)) == 120_000


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([4, 8, 16, 32]),
    st.floats(0, 3),
    st.integers(0, 99),
)
def test_masks_of_any_shape_are_painted_as_they_were_counted(height, width, low, offset, seed):
    logits_Nhw = smooth_logits(4, low, seed)
    ours = resampler(CompiledResampler, logits_Nhw, 4 * low, (height, width))
    measures = ours.measure(logits_Nhw, offset)
    assert (measures.tight_N <= measures.area_N).all()
    assert (measures.area_N <= measures.loose_N).all()
    for n in range(4):
        if measures.area_N[n] == 0:
            assert box_of(measures, n) == (0, 0, 0, 0)
            continue
        mask = painted(ours, logits_Nhw, measures, n, (height, width))
        assert mask.area == measures.area_N[n]
        assert mask.box() == box_of(measures, n)
        assert Runs.of(pixels(mask)).start_R.tolist() == mask.start_R.tolist()


@pytest.mark.parametrize("budget_bytes", [1, 100_000, 4 << 20])
@pytest.mark.parametrize("size", [(5, 3), (64, 64), (130, 70), (301, 200)])
def test_runs_on_a_device_are_those_of_the_painted_masks(size, budget_bytes):
    # One strip at a time, a few, and all of them on one canvas; masks that reach the bottom join columns.
    logits_Nhw = smooth_logits(6, 16, seed=size[0])
    logits_Nhw[0], logits_Nhw[1, 8:] = 5.0, 5.0
    compiled = resampler(CompiledResampler, logits_Nhw, 64, size)
    ours = resampler(Resampler, logits_Nhw, 64, size, budget_bytes=budget_bytes)
    measures = compiled.measure(logits_Nhw, 1.0)
    some = np.flatnonzero(measures.area_N)
    ends = run_ends(ours, logits_Nhw[some], measures.box_N4[some])
    assert (np.diff(ends.mask_E) >= 0).all()
    for place, n in enumerate(some):
        here = ends.mask_E == place
        mask, expected = (
            Runs.between(ends.x_E[here], ends.y_E[here], size),
            painted(compiled, logits_Nhw, measures, n, size),
        )
        assert mask.start_R.tolist() == expected.start_R.tolist()
        assert mask.stop_R.tolist() == expected.stop_R.tolist()


def test_a_comb_has_more_ends_than_were_foreseen():
    # Every other row of cells: in each column of pixels an end for each of them.
    logits_Nhw = torch.full((1, 64, 64), -1.0)
    logits_Nhw[0, ::2] = 1.0
    ours = resampler(CompiledResampler, logits_Nhw, 256, (256, 256))
    mask = painted(ours, logits_Nhw, ours.measure(logits_Nhw, 0.0), 0, (256, 256))
    assert len(mask.start_R) == 32 * 256
    assert np.array_equal(pixels(mask), (published_chain(logits_Nhw, 256, (256, 256))[0] > 0).numpy())


def test_tiles_are_no_more_than_a_batched_product_may_have_matrices():
    assert Resampler(256, 1024, (683, 1024), (1500, 2250), budget_bytes=64 << 30).tiles_at_once == 2**16 - 1
