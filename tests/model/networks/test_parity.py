"""The network against the released package and against transformers, with random weights, in fp32.

Widths, heads and windows are the published ones; depth and image size are cut down to one windowed and one
global block over a grid that windows do not divide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskmill.model.checkpoints.errors import CheckpointError
from maskmill.model.checkpoints.loading import _official_names, load_sam
from maskmill.model.config import MODELS, SamConfig
from maskmill.model.networks.image_encoder import ImageEncoderViT
from maskmill.model.networks.mask_decoder import Decoded
from maskmill.model.networks.sam import Sam
from maskmill.pipelines.bench.released import released_sam
from tests.support.oracles import LargestTensor, randomise

TOLERANCE = 1e-4
SHALLOW: dict[str, Any] = {"depth": 2, "global_attn_indexes": (1,)}


def pair(config: SamConfig) -> tuple[Sam, Any]:
    """Ours and the released one with the same random weights, loaded strictly in both directions."""
    ours, theirs = Sam(config).eval(), released_sam(config)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01  # there is something to compare
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


# The image encoder.


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "nano"])
def test_encoders(name: str) -> None:
    ours, theirs = pair(replace(MODELS[name], img_size=320, **SHALLOW))  # 20×20 cells, windows of 14 or 8
    pixels = torch.randn(1, 3, 320, 320)
    assert_close(ours.image_encoder(pixels), theirs.image_encoder(pixels))


def test_nano_in_full() -> None:
    ours, theirs = pair(MODELS["nano"])
    pixels = torch.randn(2, 3, 512, 512)
    assert_close(ours.image_encoder(pixels), theirs.image_encoder(pixels))


def test_bf16_gives_nearly_the_same_embedding_to_a_decoder_that_is_exact() -> None:
    pixels = torch.randint(0, 256, (3, 512, 512), generator=torch.Generator().manual_seed(0))
    exact, fast = (
        load_sam("nano", dtype=dtype).encode([pixels]) for dtype in (torch.float32, torch.bfloat16)
    )
    assert fast.embedding_BCHW.dtype == torch.float32
    error = (fast.embedding_BCHW - exact.embedding_BCHW).norm() / exact.embedding_BCHW.norm()
    assert 0 < error < 0.01


def test_global_attention_over_4096_cells_stores_no_score_matrix() -> None:
    config = SamConfig(embed_dim=128, depth=1, num_heads=2, global_attn_indexes=(0,), out_chans=32)
    encoder = ImageEncoderViT(config).eval()
    randomise(encoder)
    pixels = torch.randn(1, 3, 1024, 1024)
    with LargestTensor() as largest:
        embedding = encoder(pixels)
    assert largest.elements < 4096 * 4096 / 4

    theirs = released_sam(config).image_encoder
    theirs.load_state_dict(encoder.state_dict())
    with LargestTensor() as largest:
        expected = theirs(pixels)
    assert largest.elements >= 2 * 4096 * 4096  # the check itself would notice one
    assert_close(embedding, expected)


# Prompts and masks.

PROMPTS: dict[str, dict[str, Any]] = {
    "point": {"labels": [1]},
    "points": {"labels": [1, 0, 1]},
    "padded points": {"labels": [0, -1, 1, -1]},
    "many points": {"labels": [1, 0] * 6},  # more tokens than pay for carrying them into the cells' space
    "box": {"box": True},
    "box and points": {"labels": [0, 1], "box": True},
    "mask": {"mask": True},
    "mask and point": {"labels": [1], "mask": True},
    "mask and box": {"box": True, "mask": True},
    "mask, box and many points": {"labels": [1, 0] * 6, "box": True, "mask": True},
}


def prompts(
    config: SamConfig, batch: int, labels: list[int] | None = None, box: bool = False, mask: bool = False
) -> dict[str, Tensor]:
    """Three prompts an image, as keyword arguments of `attend`; some coordinates lie outside the image."""
    count, side = 3, config.img_size
    made: dict[str, Tensor] = {}
    if labels:
        made["points_BPN2"] = (1.2 * torch.rand(batch, count, len(labels), 2) - 0.1) * side
        made["labels_BPN"] = torch.tensor(labels).expand(batch, count, -1)
    if box:
        made["boxes_BP4"] = torch.rand(batch, count, 2, 2).sort(dim=2).values.flatten(2) * side
    if mask:
        made["masks_BP1HW"] = 4 * torch.randn(batch, count, 1, config.low_res_size, config.low_res_size)
    return made


def sparse_tokens(sam: Sam, made: dict[str, Tensor]) -> Tensor:
    tokens = sam.prompt_encoder.sparse(made.get("points_BPN2"), made.get("labels_BPN"), made.get("boxes_BP4"))
    assert tokens is not None
    return tokens


def added_to_image(sam: Sam, masks_BP1HW: Tensor | None) -> Tensor:
    """What a mask prompt, or none, adds to the image's embedding: B×P×C×h×w, or 1×1×C×1×1 for all alike."""
    encoder = sam.prompt_encoder
    no_mask_C11 = encoder.no_mask_embed.weight.reshape(1, 1, -1, 1, 1)
    if masks_BP1HW is None:
        return no_mask_C11
    mixed_BPCL = encoder.mask_rows().mT @ encoder.mask_weights(masks_BP1HW)
    side = masks_BP1HW.shape[-1] // 4
    return no_mask_C11 + mixed_BPCL.unflatten(-1, (side, side))


def released_prompt(theirs: Any, made: dict[str, Tensor], image: int) -> tuple[Tensor, Tensor]:
    points = (made["points_BPN2"][image], made["labels_BPN"][image]) if "points_BPN2" in made else None
    boxes, masks = made.get("boxes_BP4"), made.get("masks_BP1HW")
    return theirs.prompt_encoder(
        points, None if boxes is None else boxes[image], None if masks is None else masks[image]
    )


def draw_all(sam: Sam, decoded: Decoded) -> Tensor:
    """All four masks of every prompt, B×P×4×h×w."""
    batch, count, tokens = decoded.iou_BPM.shape
    prompt_K = torch.arange(batch * count).repeat_interleave(tokens)
    token_K = torch.arange(tokens).repeat(batch * count)
    return sam.draw(decoded, prompt_K, token_K).unflatten(0, (batch, count, tokens))


@pytest.fixture(scope="module", params=["vit_b", "nano"])
def models(request: pytest.FixtureRequest) -> tuple[Sam, Any]:
    """Both decoders' widths, behind a small encoder."""
    return pair(replace(MODELS[request.param], img_size=128, embed_dim=64, num_heads=2, **SHALLOW))


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_and_masks(models: tuple[Sam, Any], kind: str) -> None:
    ours, theirs = models
    made = prompts(ours.config, 2, **PROMPTS[kind])
    images = ours.encode_padded(torch.randn(2, 3, 128, 128))
    decoded = ours.attend(images, **made)
    masks = draw_all(ours, decoded)
    positions = theirs.prompt_encoder.get_dense_pe()
    for image in range(2):
        sparse, dense = released_prompt(theirs, made, image)
        if sparse.shape[1]:
            assert_close(sparse_tokens(ours, made)[image], sparse)
        added = added_to_image(ours, made.get("masks_BP1HW")).expand(2, 3, -1, 8, 8)
        assert_close(added[image], dense)

        embedding = images.embedding_BCHW[image : image + 1]
        for multimask, tokens_wanted in ((True, slice(1, None)), (False, slice(0, 1))):
            their_masks, their_iou = theirs.mask_decoder(embedding, positions, sparse, dense, multimask)
            assert_close(masks[image, :, tokens_wanted], their_masks)
            assert (decoded.iou_BPM[image, :, tokens_wanted] - their_iou).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["point", "box and points", "mask and point"])
def test_gradients(models: tuple[Sam, Any], kind: str) -> None:
    with torch.inference_mode(False):
        ours, theirs = pair(models[0].config)
        made = prompts(ours.config, 1, **PROMPTS[kind])
        pixels = torch.randn(1, 3, 128, 128)
        decoded = ours.attend(ours.encode_padded(pixels), **made)
        masks, iou = draw_all(ours, decoded)[0], decoded.iou_BPM[0]
        sparse, dense = released_prompt(theirs, made, 0)
        embedding = theirs.image_encoder(pixels)
        positions = theirs.prompt_encoder.get_dense_pe()
        their_masks, their_iou = theirs.mask_decoder.predict_masks(embedding, positions, sparse, dense)
        weight = torch.randn_like(masks) / masks[0].numel()
        for drawn, scored in ((masks, iou), (their_masks, their_iou)):
            ((drawn * weight).sum() + scored.square().sum()).backward()
        mine = {name: one.grad for name, one in ours.named_parameters()}
        norm = max(one.grad.norm() for one in theirs.parameters() if one.grad is not None)
        assert norm > 0.01
        for name, one in theirs.named_parameters():
            if one.grad is not None:
                assert (mine[name] - one.grad).norm() <= 1e-4 * norm, name


def test_drawing_some_masks_is_drawing_all_and_choosing(models: tuple[Sam, Any]) -> None:
    ours, _ = models
    images = ours.encode_padded(torch.randn(2, 3, 128, 128))
    decoded = ours.attend(images, **prompts(ours.config, 2, labels=[1]))
    prompt_K, token_K = torch.tensor([5, 0, 5, 3]), torch.tensor([1, 0, 3, 2])
    some = ours.draw(decoded, prompt_K, token_K)
    assert (some - draw_all(ours, decoded).flatten(0, 1)[prompt_K, token_K]).abs().max() <= 1e-5
    none = torch.zeros(0, dtype=torch.int64)
    assert ours.draw(decoded, none, none).shape == (0, 32, 32)


def test_end_to_end_from_photographs(models: tuple[Sam, Any]) -> None:
    # One wide, one high, one square: padded, encoded together, asked about one by one.
    ours, theirs = models
    sizes = [(85, 128), (128, 49), (128, 128)]
    photographs = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    encoded = ours.encode(photographs)
    for index, photograph in enumerate(photographs):
        made = prompts(ours.config, 1, labels=[1])
        decoded = ours.attend(encoded.images(slice(index, index + 1)), **made)
        pixels = theirs.preprocess(photograph.float())[None]
        sparse, dense = released_prompt(theirs, made, 0)
        their_masks, their_iou = theirs.mask_decoder.predict_masks(
            theirs.image_encoder(pixels), theirs.prompt_encoder.get_dense_pe(), sparse, dense
        )
        assert_close(draw_all(ours, decoded)[0], their_masks)
        assert_close(decoded.iou_BPM[0], their_iou)


# Hugging Face.

HUGGING_FACE = SamConfig(
    img_size=128,
    embed_dim=32,
    depth=2,
    num_heads=2,
    window_size=3,
    global_attn_indexes=(1,),
    out_chans=48,
    mask_in_chans=8,
    decoder_mlp_dim=40,
    decoder_num_heads=4,
    iou_head_hidden_dim=56,
)


def transformers_config(c: SamConfig) -> Any:
    from transformers.models.sam import SamConfig as TheirConfig
    from transformers.models.sam import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=c.embed_dim,
        output_channels=c.out_chans,
        num_hidden_layers=c.depth,
        num_attention_heads=c.num_heads,
        image_size=c.img_size,
        patch_size=c.patch_size,
        mlp_ratio=c.mlp_ratio,
        window_size=c.window_size,
        global_attn_indexes=list(c.global_attn_indexes),
        num_pos_feats=c.out_chans // 2,
    )
    prompt = SamPromptEncoderConfig(
        hidden_size=c.out_chans,
        image_size=c.img_size,
        patch_size=c.patch_size,
        mask_input_channels=c.mask_in_chans,
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=c.out_chans,
        mlp_dim=c.decoder_mlp_dim,
        num_attention_heads=c.decoder_num_heads,
        iou_head_hidden_dim=c.iou_head_hidden_dim,
        layer_norm_eps=1e-5,  # the official network's; with transformers' default, 1e-6, masks differ by 4e-5
    )
    return TheirConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    from transformers import SamModel

    model = SamModel(transformers_config(HUGGING_FACE)).eval()
    randomise(model)
    with torch.no_grad():  # twice in the state dict, and shared only while transformers keeps it so
        matrix = torch.randn(2, HUGGING_FACE.out_chans // 2)
        model.shared_image_embedding.positional_embedding.copy_(matrix)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    return model


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_every_published_hugging_face_name_has_its_place(name: str) -> None:
    from transformers import SamModel

    with torch.device("meta"):
        theirs = SamModel(transformers_config(MODELS[name])).state_dict()
        ours = Sam(MODELS[name]).state_dict()
    del theirs["prompt_encoder.shared_embedding.positional_embedding"]  # meta tensors cannot be compared
    renamed = _official_names(theirs, Path("model.safetensors"))
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in ours.items()
    }


@pytest.mark.parametrize("positions", ["both", "first", "second"])
def test_hugging_face_weights_give_the_same_numbers(
    hugging_face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positions: str
) -> None:
    monkeypatch.setitem(MODELS, "vit_b", HUGGING_FACE)
    state = {key: value.clone() for key, value in hugging_face.state_dict().items()}
    if positions == "first":
        del state["prompt_encoder.shared_embedding.positional_embedding"]
    if positions == "second":
        del state["shared_image_embedding.positional_embedding"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    ours = load_sam("vit_b", tmp_path / "model.safetensors")

    pixels = torch.randn(1, 3, 128, 128)
    images = ours.encode_padded(pixels)
    embedding = hugging_face.get_image_embeddings(pixels)
    assert_close(images.embedding_BCHW, embedding)
    for kind in ({"labels": [1]}, {"labels": [1, 0, -1]}, {"box": True}, {"labels": [0, 1], "box": True}):
        made = prompts(HUGGING_FACE, 1, **kind)
        theirs = {
            "input_points": made.get("points_BPN2"),
            "input_labels": made.get("labels_BPN"),
            "input_boxes": made.get("boxes_BP4"),
        }
        sparse, dense = hugging_face.get_prompt_embeddings(**theirs)
        assert_close(sparse_tokens(ours, made), sparse)
        assert_close(added_to_image(ours, None).expand(1, 1, -1, 8, 8)[0], dense)
        decoded = ours.attend(images, **made)
        masks = draw_all(ours, decoded)
        for multimask, wanted in ((True, slice(1, None)), (False, slice(0, 1))):
            out = hugging_face(image_embeddings=embedding, multimask_output=multimask, **theirs)
            assert_close(masks[:, :, wanted], out.pred_masks)
            assert (decoded.iou_BPM[:, :, wanted] - out.iou_scores).abs().max() <= TOLERANCE


def test_two_positional_matrices_that_differ_are_refused(
    hugging_face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "vit_b", HUGGING_FACE)
    state = {key: value.clone() for key, value in hugging_face.state_dict().items()}
    state["shared_image_embedding.positional_embedding"][0, 0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"two different tensors for prompt_encoder\.pe_layer"):
        load_sam("vit_b", tmp_path / "model.safetensors")
