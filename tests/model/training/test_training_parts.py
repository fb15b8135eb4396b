"""Losses, simulated prompts and the starting point, against values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from maskmill.model.config import MODELS, SamConfig
from maskmill.model.networks.image_encoder import ImageEncoderViT, drop_paths
from maskmill.model.networks.sam import Sam
from maskmill.model.training.initialisation import cosine_filters, initialise
from maskmill.model.training.losses import FeatureContrast, best_iou, dice_loss, focal_loss, mask_iou
from maskmill.model.training.simulated_prompts import holding, noisy_boxes, points_in_and_around, tight_boxes


def test_losses_of_a_perfect_mask_vanish_and_of_its_inverse_do_not():
    target = torch.zeros(1, 4, 4)
    target[:, :2] = 1
    certain = (2 * target - 1) * 50
    assert focal_loss(certain, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(certain, target).item() == pytest.approx(0, abs=1e-6)
    assert focal_loss(-certain, target).item() == pytest.approx(50, rel=1e-4)
    # Nothing overlaps: 1 − (0 + 1) / (8 + 8 + 1).
    assert dice_loss(-certain, target).item() == pytest.approx(1 - 1 / 17, rel=1e-4)


def test_focal_loss_of_an_undecided_pixel():
    # Probability ½: cross-entropy ln 2, scaled by (½)².
    assert focal_loss(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(math.log(2) / 4)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([[0, 0]], [[0, 0]], 1.0),  # two empty masks agree
        ([[1, 0]], [[0, 0]], 0.0),
        ([[1, 1]], [[1, 0]], 0.5),
        ([[0, 0]], [[0.25, 0]], 0.0),  # smaller than half a pixel, and missed
        ([[1, 0]], [[0.25, 0]], 0.25),
    ],
)
def test_mask_iou(predicted, true, expected):
    logits = torch.tensor([predicted], dtype=torch.float32) * 2 - 1
    assert mask_iou(logits, torch.tensor([true], dtype=torch.float32)).item() == expected


def test_best_iou_takes_the_best_of_the_images_own_eligible_targets():
    left, right = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    targets = torch.stack([torch.stack([left, right]), torch.stack([right, right])])  # 2 images × 2 targets
    drawn = (2 * torch.stack([left, left]) - 1)[:, None]  # the left half, in both images
    assert best_iou(drawn, targets, torch.ones(2, 1, 2)).tolist() == [[1.0], [0.0]]
    assert best_iou(drawn, targets, torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])).tolist() == [[0.0], [0.0]]


def test_a_point_is_held_by_the_masks_that_cover_it():
    masks = torch.zeros(1, 2, 3, 4, dtype=torch.uint8)
    masks[0, 0, :, :2] = 1  # the left half
    masks[0, 1, 2, 1:] = 1  # most of the lowest row
    points = torch.tensor([[[0.0, 0.0], [1.0, 2.0]]])  # (x, y): in the first only; in both
    assert holding(masks, points).tolist() == [[[True, False], [True, True]]]


def test_feature_contrast_rewards_features_that_follow_the_mask():
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    follows = torch.cat([target, 1 - target], dim=1)
    random = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    point = torch.tensor([[[0.25, 0.5]]])
    contrast = FeatureContrast()
    assert contrast(follows, point, target) < contrast(random, point, target)
    assert contrast(follows, point, target) < 0.1


def test_tight_boxes_and_the_empty_mask():
    masks = torch.zeros(2, 6, 8, dtype=torch.uint8)
    masks[1, 2:5, 3:7] = 1
    assert tight_boxes(masks).tolist() == [[0, 0, 0, 0], [3, 2, 6, 4]]


def test_noise_of_a_box_is_bounded_and_repeats():
    masks = torch.zeros(1, 300, 300, dtype=torch.uint8)
    masks[:, 50:250, 50:250] = 1
    draws = torch.stack([noisy_boxes(masks, torch.Generator().manual_seed(seed)) for seed in range(300)])
    offsets = draws - tight_boxes(masks)
    assert offsets.abs().max() <= 20
    assert 10 < offsets.std() < 20  # 10 % of 199 px, clamped at 20
    assert torch.equal(draws[3], noisy_boxes(masks, torch.Generator().manual_seed(3)))


def test_points_carry_the_label_of_the_mask_below_them():
    masks = torch.zeros(3, 40, 50, dtype=torch.uint8)
    masks[0, 5:9, 5:9] = 1
    masks[1, :, 25:] = 1
    masks[2, 39, 49] = 1
    for seed in range(20):
        points, labels = points_in_and_around(masks, 3, torch.Generator().manual_seed(seed))
        assert points.shape[:2] == labels.shape
        assert points.shape[1] == 3
        for mask, place, label in zip(masks, points, labels, strict=True):
            assert label[0] == 1
            assert [int(mask[int(y), int(x)]) for x, y in place] == label.tolist()


@pytest.mark.parametrize(("asked", "there"), [(192, 192), (768, 768), (1280, 768)])
def test_cosine_filters_are_orthogonal_and_start_with_the_mean(asked, there):
    """Up to all the values that a patch of 16 × 16 has, in three colours."""
    bank = cosine_filters(16, asked).flatten(1)
    directions = bank / bank.norm(dim=1, keepdim=True)
    assert torch.allclose(directions @ directions.T, torch.eye(there), atol=1e-4)
    assert bank[0].std() < 1e-6  # brightness of the whole patch


@pytest.mark.parametrize("name", ["nano", "vit_b", "vit_l", "vit_h"])
def test_every_size_that_can_be_trained_has_a_starting_point(name):
    sam = Sam(replace(MODELS[name], depth=1, global_attn_indexes=(0,)))
    initialise(sam)
    filters = sam.image_encoder.patch_embed.proj.weight.flatten(1)
    assert torch.linalg.matrix_rank(filters) == min(filters.shape)
    assert all(parameter.isfinite().all() for parameter in sam.parameters())


def test_a_new_model_attends_to_the_prompts_own_place():
    torch.manual_seed(0)
    sam = Sam(MODELS["nano"])
    initialise(sam)
    positions = sam.prompt_encoder.image_positions(32)
    attention = sam.mask_decoder.transformer.final_attn_token_to_image
    centre = torch.tensor([[[[8 * 16 + 7.5, 20 * 16 + 7.5]]]])  # column 8, row 20
    query = sam.prompt_encoder.sparse(centre, torch.ones(1, 1, 1), None)[0, 0, :1]
    scores = attention.q_proj(query) @ attention.k_proj(positions).T
    row, column = divmod(int(scores.argmax()), 32)
    assert abs(row - 20) <= 2
    assert abs(column - 8) <= 2


def test_drop_path_leaves_out_more_of_later_blocks_and_keeps_the_mean():
    uniform = torch.tensor([[0.0, 0.0], [0.7, 0.76], [0.4, 0.6]])[None]  # three blocks: attention, MLP
    assert drop_paths(uniform, 0.5).tolist() == [[[1.0, 1.0], [pytest.approx(1 / 0.75), 0.0], [2.0, 0.0]]]
    many = drop_paths(torch.rand(20_000, 3, 2, generator=torch.Generator().manual_seed(0)), 0.5)
    assert torch.allclose(many.mean(0), torch.ones(3, 2), atol=0.03)


def test_an_encoder_without_its_blocks_is_its_patches_and_its_neck():
    torch.manual_seed(0)
    config = SamConfig(
        img_size=64, embed_dim=16, depth=2, num_heads=2, window_size=2, global_attn_indexes=(1,), out_chans=16
    )
    encoder = ImageEncoderViT(config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    pixels = torch.randn(3, 3, 64, 64)
    patches = encoder.patch_embed.proj(pixels) + encoder.pos_embed.permute(0, 3, 1, 2)
    paths = torch.ones(3, 2, 2)
    paths[1] = 0  # the second photograph goes without any block, the third without the last MLP
    paths[2, 1, 1] = 0
    with torch.no_grad():
        found, plain = encoder(pixels, paths), encoder(pixels)
        assert torch.allclose(found[0], plain[0], atol=1e-5)
        assert torch.allclose(found[1], encoder.neck(patches[1:2])[0], atol=1e-5)
        for parameter in encoder.blocks[1].mlp.parameters():
            parameter.zero_()
        assert torch.allclose(found[2], encoder(pixels)[2], atol=1e-5)
        assert not torch.allclose(found[2], plain[2], atol=1e-2)


def test_tiny_vit_cannot_be_initialised_for_training():
    with pytest.raises(ValueError, match="tiny_vit"):
        initialise(Sam(SamConfig(encoder="tiny_vit", img_size=128)))
