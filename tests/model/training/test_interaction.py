"""Simulated interaction: cases made by hand for what is drawn, and the rounds as they come."""

from dataclasses import replace

import pytest
import torch

from maskmill.model.networks.sam import Sam
from maskmill.model.training.initialisation import initialise
from maskmill.model.training.interaction import Interaction, Round, interact, rounds_after_the_first
from maskmill.model.training.simulated_prompts import Draws, corrections, noisy_boxes, uniform_pixels
from tests.support.tiny import LEARNS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(3)
    sam = Sam(replace(LEARNS, depth=1, global_attn_indexes=(0,)))
    initialise(sam)
    return sam


@pytest.fixture
def scene(sam):
    """Two images of three masks, squares of different sizes, and a pixel in each."""
    masks = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    for image in range(2):
        for number in range(3):
            masks[image, number, 8 * number + 4 : 40, 10 * image : 10 * image + 20 + number] = 1
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[5.0, 30.0]] * 3, [[15.0, 30.0]] * 3])
    return sam.encode_padded(pixels), masks, points


def test_an_empty_region_gives_its_last_pixel():
    assert (
        uniform_pixels(torch.zeros(2, 3, 5, dtype=torch.bool), torch.tensor([0.0, 0.9])).tolist()
        == [[4, 2]] * 2
    )


def test_every_pixel_of_a_region_is_drawn_as_often_as_the_others():
    region = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    drawn = torch.arange(400) / 400  # evenly, so that the counts are exact
    points = uniform_pixels(region.expand(400, -1, -1), drawn)
    places, counts = points.unique(dim=0, return_counts=True)
    assert {tuple(place) for place in places.tolist()} == {(1, 0), (3, 0), (0, 2), (1, 2)}
    assert counts.tolist() == [100] * 4


def test_clicks_fall_where_the_mask_is_wrong_with_the_label_of_the_truth():
    true = torch.zeros(6, 8, dtype=torch.uint8)
    true[1:5, 1:4] = 1
    drawn = torch.zeros(6, 8, dtype=torch.bool)
    drawn[1:5, 2:6] = True  # column 1 is missed, columns 4 and 5 are spilled
    chance = (torch.arange(120) + 0.5) / 120
    points, labels = corrections(drawn.expand(120, -1, -1), true.expand(120, -1, -1), chance)
    missed = {(1, y) for y in range(1, 5)}
    spilled = {(x, y) for x in (4, 5) for y in range(1, 5)}
    found = {(int(x), int(y)): int(label) for (x, y), label in zip(points, labels, strict=True)}
    assert found == dict.fromkeys(missed, 1) | dict.fromkeys(spilled, 0)
    assert labels.float().mean() == pytest.approx(1 / 3)


def test_a_perfect_mask_is_clicked_inside():
    true = torch.zeros(2, 6, 8, dtype=torch.uint8)
    true[:, 2, 3:5] = 1
    points, labels = corrections(true > 0, true, torch.tensor([0.0, 0.99]))
    assert points.tolist() == [[3, 2], [4, 2]]
    assert labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("clicks", "refine", "expected"),
    [(0, False, []), (0, True, [False]), (3, False, [True] * 3), (1, True, [False, True, False])],
)
def test_fewer_rounds(clicks, refine, expected):
    assert rounds_after_the_first(clicks, refine, torch.Generator().manual_seed(0)) == expected


def test_the_papers_rounds_are_eleven_with_one_pause_anywhere_and_one_at_the_end():
    paper = Interaction()
    orders = {
        tuple(rounds_after_the_first(paper.clicks, paper.refine, torch.Generator().manual_seed(seed)))
        for seed in range(200)
    }
    assert {len(order) for order in orders} == {10}, "and the first round"
    assert all(order[-1] is False and sum(order) == 8 for order in orders)
    assert len(orders) == 8, "before each of the eight clicks"


def test_the_first_round_asks_for_three_masks_and_the_others_for_one(sam, scene):
    images, masks, points = scene
    rounds = list(interact(sam, images, masks, points, Interaction(clicks=2), Draws(0, 0, range(2))))
    assert [tuple(one.logits_BPKhw.shape) for one in rounds] == [(2, 3, 3, 16, 16)] + [(2, 3, 1, 16, 16)] * 4
    assert [one.iou_BPK.shape[2] for one in rounds] == [3, 1, 1, 1, 1]
    assert not any(one.one_click_BP.any() for one in rounds[1:])


@pytest.mark.parametrize("box_share", [0.0, 1.0])
def test_a_first_prompt_is_answered_as_the_model_answers_it_to_anyone(sam, scene, box_share):
    images, masks, points = scene
    how = Interaction(clicks=0, refine=False, box_share=box_share)
    [first] = interact(sam, images, masks, points, how, Draws(7, 0, range(2)))
    if box_share:
        again = Draws(7, 0, range(2))
        again.uniform(3)  # which of them are boxes
        boxes = again.each(
            lambda b, generator: noisy_boxes(masks[b], generator, 10)
        )  # 20 at the model's scale
        decoded = sam.attend(images, boxes_BP4=boxes * 2)
    else:
        decoded = sam.attend(
            images, (points[:, :, None] + 0.5) * 2 - 0.5, torch.ones(2, 3, 1, dtype=torch.long)
        )
    assert torch.allclose(first.iou_BPK, decoded.iou_BPM[..., 1:], atol=1e-5)
    assert (first.one_click_BP == (box_share == 0)).all()


def test_the_single_mask_token_may_answer_boxes(sam, scene):
    images, masks, points = scene
    how = Interaction(clicks=0, refine=False, single_mask_for_boxes=True)
    draws = Draws(2, 0, range(2))
    boxed = Draws(2, 0, range(2)).uniform(3) < 0.5
    assert 0 < boxed.sum() < 6, "some of each"
    [first] = interact(sam, images, masks, points, how, draws)
    assert (first.trained_BPK[..., 0] == boxed).all()
    assert (first.trained_BPK[..., 1:] == ~boxed[..., None]).all()


def test_the_most_confident_mask_that_counts_is_passed_on():
    logits = torch.arange(4.0).view(1, 1, 4, 1, 1)
    iou = torch.tensor([[[0.9, 0.2, 0.5, 0.4]]])
    trained = torch.tensor([[[False, True, True, True]]])
    assert Round(logits, iou, trained, torch.tensor([[True]])).most_confident().item() == 2


def test_gradients_reach_the_mask_prompt_and_its_layers_but_not_the_round_before(sam, scene):
    images, masks, points = scene
    prompt = torch.randn(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(5), requires_grad=True)
    labels = torch.ones(2, 3, 1, dtype=torch.long)
    decoded = sam.attend(images, points[:, :, None], labels, masks_BP1HW=prompt)
    sam.draw(decoded, torch.arange(6), torch.zeros(6, dtype=torch.long)).sum().backward(retain_graph=True)
    assert (prompt.grad.abs().amax((2, 3, 4)) > 0).all(), "of every prompt"

    sam.zero_grad()
    _, second = interact(sam, images, masks, points, Interaction(1, False), Draws(0, 0, range(2)))
    single, *three = sam.mask_decoder.output_hypernetworks_mlps
    second.logits_BPKhw.sum().backward(retain_graph=True)
    layers = [*sam.prompt_encoder.mask_downscaling.parameters(), *single.parameters()]
    assert all(layer.grad is not None and layer.grad.abs().sum() > 0 for layer in layers)
    assert not any(head.layers[0].weight.grad.any() for head in three)


def test_what_is_drawn_for_an_image_does_not_depend_on_its_neighbours(sam, scene):
    images, masks, points = scene
    how = Interaction(clicks=2)
    together = list(interact(sam, images, masks, points, how, Draws(4, 9, range(2))))
    alone = list(
        interact(sam, images.images(slice(1, 2)), masks[1:], points[1:], how, Draws(4, 9, range(1, 2)))
    )
    for both, one in zip(together, alone, strict=True):
        assert torch.allclose(both.logits_BPKhw[1:], one.logits_BPKhw, atol=1e-4)
    step = Draws(4, 9, range(2))
    assert len({generator.initial_seed() for generator in (step.of_step, *step.of_images)}) == 3
    assert not torch.equal(Draws(4, 9, range(2)).uniform(3)[1], Draws(4, 8, range(2)).uniform(3)[1])


def test_recomputed_rounds_have_the_same_gradient(sam, scene):
    images, masks, points = scene
    gradients = []
    for recompute in (False, True):
        sam.zero_grad()
        how = Interaction(clicks=1, recompute=recompute)
        rounds = interact(sam, images, masks, points, how, Draws(0, 0, range(2)))
        sum(one.logits_BPKhw.square().mean() for one in rounds).backward(retain_graph=True)
        gradients.append(sam.prompt_encoder.mask_downscaling[0].weight.grad.clone())
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)
