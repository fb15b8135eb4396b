"""What `maskmill evaluate` does without `--against`: it scores a model against labelled masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ...engine import MaskGenerator
from ...model import load_sam
from ..config.run import load_config
from ..errors import ConfigError, UsageError
from ..labelled.image import VALIDATION_SHARE
from ..labelled.load import read_labelled
from ..storage.paths import is_remote
from .automatic import evaluate_automatic
from .calibration import plot_format, reliability, write_plot
from .interactive import evaluate


@dataclass(frozen=True)
class Wanted:
    """What a model is scored on, and by what."""

    data: Path
    photographs: Path | None
    validation: bool
    masks_per_image: int
    mask_prompts: bool
    automatic: bool
    plot: Path | None
    moved: Mapping[str, str]


def score_model(
    what: Wanted, config: str | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[Table]]:
    """Scores over all masks and by source, and how far the predicted IoU can be believed.

    Of the configuration the name, the checkpoint and the generator count; the CPU scores, in fp32. Raises
    UsageError or ConfigError for what cannot be scored.
    """
    settings = load_config(config or "nano", list(overrides))
    if is_remote(what.data):
        raise UsageError(f"{what.data}: a model is scored on a local folder; bring the images there first")
    if what.plot is not None:  # before hours of scoring
        plot_format(what.plot)
        if not os.access(what.plot.absolute().parent, os.W_OK):
            raise UsageError(f"--plot {what.plot}: {what.plot.parent} is not a folder that can be written to")
    labelled = read_labelled(what.data, what.photographs, what.moved)
    images = [image for image in labelled if image.validates or not what.validation]
    if not images:
        raise ConfigError(
            f"{what.data}: none of its {len(labelled)} images is set aside for validation (one in "
            f"{VALIDATION_SHARE} is, by the hash of its source and id); leave out --validation to score all"
        )
    sam = load_sam(settings.model.name, settings.model.checkpoint)
    scores = evaluate(sam, images, masks_per_image=what.masks_per_image, mask_prompts=what.mask_prompts)
    if what.plot is not None:
        write_plot(scores.predictions_N2, what.plot)
    if what.automatic:
        scores |= evaluate_automatic(MaskGenerator(sam, settings.generator), images)
    result = scores.scores | {
        "by_source": scores.by_source,
        "images": len(images),
        "reliability": reliability(scores.predictions_N2),
    }
    return result, [evaluation_table(scores.scores, scores.by_source)]


def evaluation_table(scores: Mapping[str, float], by_source: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of a model, a row each, over everything and by source; 80 columns do for eight of these."""
    table = Table(title="means over masks", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("score", no_wrap=True)
    columns = {"all": scores, **by_source}
    for source in columns:
        table.add_column(source, justify="right", overflow="fold", min_width=len("0.000"))
    for name in scores:
        table.add_row(name, *(_score(of[name]) if name in of else "-" for of in columns.values()))
    return table


def _score(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"  # masks an image may be many
