"""What the device's backend asks of a GPU, stage by stage, stays within its bounds."""

from pathlib import Path

import pytest

from tests.support.device_budget import NAMES, as_markdown, beyond, bounds, counted, pytorch
from tests.support.device_counts import Counts


@pytest.mark.usefixtures("device_guard")
@pytest.mark.parametrize("name", [pytest.param("nano", marks=pytest.mark.slow), "vit_h"])
def test_a_batch_of_four_photographs_stays_within_its_bounds(name):
    version, networks = bounds()
    if version != pytorch():
        pytest.skip(f"the bounds are of PyTorch {version}, which takes operations apart in its own way")
    counts = counted(name)
    found = beyond(counts, networks[name])
    advice = "where that has to be: python -m tests.support.device_budget --write"
    assert not found, "\n".join(["the GPU is asked for more than it was", *found, advice])
    assert set(counts.by_stage()) == set(networks[name])  # or else it was not this work that was counted


def test_all_networks_have_bounds():
    assert tuple(bounds()[1]) == NAMES


def test_the_docs_show_the_bounds():
    docs = Path(__file__).parents[3] / "docs" / "performance.md"
    assert as_markdown("vit_h", bounds()[1]["vit_h"]) in docs.read_text()


def test_what_is_beyond_its_bounds_is_named():
    counts = Counts()
    for nbytes in (10, 20):
        counts.launch("mm", nbytes)
    counts.wait("nonzero")
    allowed = {"launches": 2, "bytes": 30, "waits": 1}
    assert beyond(counts, {"between": allowed}) == []
    assert beyond(counts, {"between": allowed | {"bytes": 29}}) == [
        "between: 30 bytes, and no more than 29 are allowed; ? asks for the most, 30 for mm"
    ]
    assert len(beyond(counts, {})) == 3


def test_the_table_is_by_the_image():
    table = {"draw": {"launches": 8, "bytes": 6_000_000_000, "waits": 2}}
    assert as_markdown("nano", table).splitlines()[2:] == [
        "| draw | 2 | 1.50 | 0.50 |",
        "| all | 2 | 1.50 | 0.50 |",
    ]
