"""Can the model learn at all: from nothing, on fifty images, until it knows them by heart.

`MASKMILL_TRAINING_DATA` names a folder of labelled tables with a source `coco_instances`; without it the
images are drawn here. Only objects of a hundredth of their photograph or more count: a mask is drawn at a
quarter of the square's side, and a smaller true mask, drawn so coarsely, has no IoU of 0.9 with itself.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools import mask as mask_utils

from maskmill.model import Sam, load_sam
from maskmill.model.checkpoints.loading import save_sam
from maskmill.model.config import SamConfig
from maskmill.model.training.initialisation import initialise
from maskmill.pipelines.evaluation.interactive import evaluate
from maskmill.pipelines.labelled.image import LabelledImage
from maskmill.pipelines.labelled.load import read_labelled
from maskmill.pipelines.training.config import StageConfig, TrainConfig
from maskmill.pipelines.training.train import train

IMAGES = 50
SMALLEST = 0.01


def textured_shapes(folder: Path) -> Path:
    """Sixty photographs of noise and stripes, with three to five textured shapes on each."""
    rng = np.random.default_rng(0)
    rows = []
    (folder / "images").mkdir(parents=True)
    for number in range(IMAGES + 10):
        picture, masks = texture(rng), []
        for _ in range(rng.integers(3, 6)):
            shape = np.zeros((192, 256), np.uint8)
            middle, radius = rng.integers((40, 40), (216, 152)), rng.integers(26, 60)
            corners = rng.integers(3, 9)
            angles = 2 * np.pi * (np.arange(corners) + rng.uniform(0, 0.6, corners)) / corners
            around = middle + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(shape, [around.astype(np.int32)], 1)
            picture[shape > 0] = texture(rng)[shape > 0]
            masks = [*(np.where(shape, 0, below).astype(np.uint8) for below in masks), shape]
        name = f"images/{number}.png"
        cv2.imwrite(str(folder / name), picture)
        codes = [mask_utils.encode(np.asfortranarray(mask)) for mask in masks]
        coded = [{"size": code["size"], "counts": code["counts"].decode()} for code in codes]
        rows.append({"image_id": str(number), "file_name": name, "source": "drawn", "masks": coded})
    pq.write_table(pa.Table.from_pylist(rows), folder / "drawn.parquet")
    return folder


def texture(rng: np.random.Generator):
    """Stripes of two colours, and noise."""
    y, x = np.mgrid[:192, :256]
    waves = np.sin(x * rng.uniform(-0.6, 0.6) + y * rng.uniform(-0.6, 0.6))[..., None]
    colours = rng.uniform(30, 225, (2, 3))
    plain = colours[0] + (colours[1] - colours[0]) * (waves + 1) / 2
    return np.clip(plain + rng.normal(0, 8, plain.shape), 0, 255).astype(np.uint8)


def large_objects(image: LabelledImage):
    """The masks that count."""
    height, width = image.rles[0]["size"]
    return tuple(
        r for r, area in zip(image.rles, image.areas(), strict=True) if area >= SMALLEST * height * width
    )


def fifty(data: Path, folder: Path) -> Path:
    """A folder of fifty of the images, for training, with nothing but their large objects."""
    given = os.environ.get("MASKMILL_TRAINING_DATA")
    wanted = [image for image in read_labelled(data) if not given or image.source == "coco_instances"]
    chosen = [image for image in wanted if not image.validates and large_objects(image)][:IMAGES]
    assert len(chosen) == IMAGES
    rows = [
        {"image_id": image.image_id, "file_name": str(image.photograph.path), "source": image.source}
        | {"masks": [{"size": r["size"], "counts": r["counts"].decode()} for r in large_objects(image)]}
        for image in chosen
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "chosen.parquet")
    return folder


def nothing_learnt(path: Path) -> Path:
    """A network of half of nano's depth, as training from nothing starts; its shapes are the file's."""
    torch.manual_seed(0)
    sam = Sam(
        SamConfig(
            img_size=256,
            embed_dim=192,
            depth=4,
            num_heads=6,
            window_size=8,
            global_attn_indexes=(1, 3),
            out_chans=64,
            decoder_mlp_dim=256,
            iou_head_hidden_dim=64,
        )
    )
    initialise(sam)
    save_sam(sam, path, dtype=torch.float32)
    return path


@pytest.mark.slow
def test_fifty_images_are_learnt_by_heart(tmp_path):
    given = os.environ.get("MASKMILL_TRAINING_DATA")
    data = fifty(Path(given) if given else textured_shapes(tmp_path / "shapes"), tmp_path / "fifty")
    steps = 1500 if given else 600  # what is drawn is simpler than what is photographed
    stage = StageConfig(steps=steps, size=256, images=10, masks=4, augment=False)
    config = TrainConfig(
        data=data,
        initial=nothing_learnt(tmp_path / "initial.safetensors"),
        out=tmp_path / "run",
        stages=(stage,),
        prompts="simple",
        box_share=1.0,
        focal_weight=2.0,
        contrast_weight=0.3,
        optimizer="muon",
        learning_rate=1.5e-3,
        warmup_steps=50,
        schedule="cosine",
        layer_decay=1.0,
        weight_decay=0.0,
        ema_decay=0.98,
        drop_path=0.0,
        largest_mask=1.0,
        evaluate_every=500,
    )
    scores = evaluate(load_sam("nano", train(config)), read_labelled(data), size=stage.size).scores
    assert scores["miou_box"] >= 0.9, scores
