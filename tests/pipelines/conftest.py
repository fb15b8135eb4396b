"""What the tests of collections share: a network that answers in milliseconds, small photographs, one Ray."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A checkpoint of the `nano` family, 128 pixels and two blocks, its weights drawn with a fixed seed."""
    import torch

    from model.checkpoint import save_sam
    from model.config import SamConfig
    from model.initialise import initialise
    from model.sam import Sam

    with torch.random.fork_rng():
        torch.manual_seed(7)
        sam = Sam(
            SamConfig(
                img_size=128,
                embed_dim=32,
                depth=2,
                num_heads=2,
                window_size=4,
                global_attn_indexes=(1,),
                out_chans=32,
                decoder_mlp_dim=64,
                decoder_num_heads=2,
                iou_head_hidden_dim=32,
            )
        )
        initialise(sam)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_sam(sam, path)
    return path


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
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    import pipelines.cluster  # noqa: F401  (sets what Ray reads at import)

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()
