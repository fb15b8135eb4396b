"""What all tests share: weights that answer in milliseconds, photographs, labelled shapes, one Ray."""

import os
import signal
from pathlib import Path

import pytest

# Before torch is loaded: threads that wait for each other sleep. Where another program is at work, too, those
# that spin keep the one they wait for from running, and a second's test takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell's background job ignores SIGINT, and so would each process that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    """Two threads wait for each other longer than a tiny network takes, where other programs are at work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A checkpoint of the `nano` family, 128 pixels and two blocks, its weights drawn with a fixed seed."""
    from tests.support.tiny import save_tiny

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_tiny(path)
    return path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Twenty pictures of two ellipses each, laid out as labelled data."""
    import cv2
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pycocotools import mask as mask_utils

    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images" / "drawn").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        picture = np.full((96, 128, 3), rng.integers(0, 255, 3), np.uint8)
        masks = []
        for _ in range(2):
            mask = np.zeros((96, 128), np.uint8)
            middle, axes = rng.integers(20, 76, 2), rng.integers(8, 20, 2)
            cv2.ellipse(mask, middle.tolist(), axes.tolist(), 0, 0, 360, 1, -1)
            picture[mask > 0] = rng.integers(0, 255, 3)
            rle = mask_utils.encode(np.asfortranarray(mask))
            masks.append({"size": rle["size"], "counts": rle["counts"].decode()})
        name = f"images/drawn/{number}.png"
        cv2.imwrite(str(folder / name), picture)
        rows.append(
            {"image_id": str(number), "file_name": name, "height": 96, "width": 128, "source": "drawn"}
            | {"masks": masks}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "drawn.parquet")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of twelve small photographs, cut out of scikit-image's samples, in two folders."""
    from PIL import Image
    from skimage import data

    root = tmp_path_factory.mktemp("collection") / "photos"
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)())
        (root / name).mkdir(parents=True)
        for number, left in enumerate((0, 90, 180)):
            image.crop((left, 40, left + 160, 160)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny_settings(tiny_weights) -> list[str]:
    """Overrides for a run that takes every mask of a coarse grid, in shards of two images."""
    return [
        f"model.checkpoint={tiny_weights}",
        "generator.points_per_side=3",
        "generator.pred_iou_thresh=0",
        "generator.stability_score_thresh=0",
        "generator.box_nms_thresh=1",
        "shard_size=2",
        "threads_per_worker=1",
    ]


@pytest.fixture(scope="session")
def local_ray():
    """One Ray of two CPUs for all tests that need one; it joins this process and leaves with it."""
    from ray.job_config import JobConfig

    import maskmill.pipelines.workers.cluster.connect  # noqa: F401  (sets what Ray reads when it starts)
    from maskmill.pipelines.workers.cluster.own_ray import started

    with started(2, JobConfig()):
        yield
