"""Segment Anything: encode an image once, then ask about it as often as you like.

`encode` → `attend` → `draw`. Nothing here turns gradients off: training and generation call the same code,
and generation wraps it in `torch.inference_mode()`. Parameter names are the official checkpoints'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PUBLISHED, SamConfig
from .compiled_encoder import CompiledEncoder
from .device_tensors import kept_on_device, on_device
from .image_encoder import ImageEncoderViT
from .mask_decoder import Decoded, MaskDecoder, SharedImage
from .prompt_encoder import PromptEncoder
from .tiny_vit import TinyViT

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB, 0…255
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class EncodedImages:
    """B encoded images: their embeddings and what all prompts share of them."""

    embedding_BCHW: Tensor
    shared: SharedImage

    def __len__(self) -> int:
        return len(self.embedding_BCHW)

    def images(self, chosen: slice) -> EncodedImages:
        """Some of the images."""
        return EncodedImages(self.embedding_BCHW[chosen], self.shared.images(chosen))


class Sam(nn.Module):
    """The promptable segmentation model (paper, section 3)."""

    mask_threshold = 0.0
    """Logits above it are mask."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.thresholds = PUBLISHED  # recommended; `load_sam` knows those of its weights
        self.image_encoder = TinyViT(config) if config.encoder == "tiny_vit" else ImageEncoderViT(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self._compiled_encoder: CompiledEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.prompt_encoder.no_mask_embed.weight.device

    def in_precision(self, dtype: torch.dtype) -> Sam:
        """The same model with its encoder in `dtype`, and on a GPU its decoder in as many bits.

        On a CPU the decoder stays in fp32: rounding there tips masks over the thresholds, one in ten of
        nano's in bf16, where the encoder alone tips one in fifty; and it is the smaller part of the time. On
        a GPU it is in fp16 where the encoder is in bf16: three bits finer, and the decoder's numbers stay
        within its range, since they are normalised in every block, by sums in fp32. A GPU's products are
        kept precise then, for the whole process (`compute_precisely`).
        """
        self.image_encoder.to(dtype)
        if self.device.type == "cuda":
            compute_precisely()
        if self.device.type != "cpu":
            self.decode_in(torch.float16 if dtype == torch.bfloat16 else dtype)
        return self

    def decode_in(self, dtype: torch.dtype) -> Sam:
        """The same model with its prompt encoder and its mask decoder in `dtype`.

        Two small parts keep the precision that they have. The frequencies of the positions: they are
        multiplied with coordinates, and rounded to bf16 they turn a far point's angle by degrees. And the
        head of the predicted IoU, which decides what is kept and in which order: between 0.88 and 1 fp16
        has 246 numbers, bf16 31, and where they tie the order is chance.
        """
        kept = (self.prompt_encoder.pe_layer, self.mask_decoder.iou_prediction_head)
        for part in (*self.prompt_encoder.children(), *self.mask_decoder.children()):
            if part not in kept:
                part.to(dtype)
        return self

    def compile_encoder(self, batch: int = 1, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have `torch.compile` fuse the image encoder when it is first called, for `batch` images.

        Fewer are filled up to as many. Where compiling fails, for want of a compiler for instance, a warning
        says why and the encoder runs as it is.
        """
        self._compiled_encoder = CompiledEncoder(self.image_encoder, batch, backend)

    def encode(self, images: Sequence[Tensor]) -> EncodedImages:
        """Encode B images, each 3×h×w RGB in 0…255, already resized so that max(h, w) is `img_size`.

        Normalises, pads with zeros at the right and at the bottom, and runs the encoder once for all of them.
        Raises ValueError for an image of another shape.
        """
        side = self.config.img_size
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or max(image.shape[1:]) != side:
                raise ValueError(
                    f"image {index} must be 3×h×w with its longer side {side}, got {tuple(image.shape)}"
                )
        return self.encode_padded(torch.stack([self._pad(image, side) for image in images]))

    def encode_padded(self, pixels_BCHW: Tensor, paths_BL2: Tensor | None = None) -> EncodedImages:
        """Encode squares that are normalised and padded already (training encodes smaller squares, too).

        `paths_BL2` weighs what the blocks of a ViT add, in training
        (`model.networks.image_encoder.drop_paths`).
        """
        no_mask = self.prompt_encoder.no_mask_embed.weight
        if paths_BL2 is None:
            encoder = self._compiled_encoder or self.image_encoder
            embedding_BCHW = encoder(pixels_BCHW).to(no_mask.dtype)
        else:  # TinyViT knows none
            embedding_BCHW = self.image_encoder(pixels_BCHW, paths_BL2).to(no_mask.dtype)
        return self.share(embedding_BCHW)

    def share(self, embedding_BCHW: Tensor) -> EncodedImages:
        """What `encode` gives, of embeddings that are there already: square, in cells of the image."""
        cells_BCHW = embedding_BCHW + self.prompt_encoder.no_mask_embed.weight[0][:, None, None]
        shared = self.mask_decoder.share(
            cells_BCHW.flatten(2).mT,
            self.prompt_encoder.image_positions(cells_BCHW.shape[-1]),
            self.prompt_encoder.mask_rows(),
        )
        return EncodedImages(embedding_BCHW, shared)

    def attend(
        self,
        images: EncodedImages,
        points_BPN2: Tensor | None = None,
        labels_BPN: Tensor | None = None,
        boxes_BP4: Tensor | None = None,
        masks_BP1HW: Tensor | None = None,
        *,
        together: int | None = None,
    ) -> Decoded:
        """Score P prompts an image: any combination of N points with labels, a box and a mask each.

        Points are (x, y), boxes XYXY, in pixels of the model's input; labels 1 foreground, 0 background,
        −1 padding; masks are low-resolution logits, four pixels to an image cell. Draws nothing yet.
        `together` prompts of each image are worked on at once, here and in `draw`, to bound the memory; by
        default all. Raises ValueError for a prompt of nothing, for points without labels, for prompts of
        another number of images, or for a misshapen mask.
        """
        if (points_BPN2 is None) != (labels_BPN is None):
            raise ValueError("points and labels come together; got only one of them")
        sparse_BPTC = self.prompt_encoder.sparse(points_BPN2, labels_BPN, boxes_BP4)
        if sparse_BPTC is None:
            if masks_BP1HW is None:
                raise ValueError("a prompt needs points with labels, a box or a mask; got none of them")
            no_mask = self.prompt_encoder.no_mask_embed.weight
            sparse_BPTC = no_mask.new_zeros(*masks_BP1HW.shape[:2], 0, self.config.out_chans)
        return self.answer(images, sparse_BPTC, masks_BP1HW, together=together)

    def answer(
        self,
        images: EncodedImages,
        sparse_BPTC: Tensor,
        masks_BP1HW: Tensor | None = None,
        *,
        together: int | None = None,
    ) -> Decoded:
        """`attend`, to prompts that are tokens already (`PromptEncoder.sparse`, `PromptEncoder.labelled`)."""
        if masks_BP1HW is None:
            return self.mask_decoder.attend(images.shared, sparse_BPTC, together=together)
        side, prompts = 4 * images.embedding_BCHW.shape[-1], sparse_BPTC.shape[:2]
        if masks_BP1HW.shape != (*prompts, 1, side, side):
            wanted, got = "×".join(map(str, (*prompts, 1, side, side))), "×".join(map(str, masks_BP1HW.shape))
            raise ValueError(f"mask prompts must be B×P×1×h×w = {wanted}, got {got}")
        weights_BPXL = self.prompt_encoder.mask_weights(masks_BP1HW)
        return self.mask_decoder.attend(images.shared, sparse_BPTC, weights_BPXL, together)

    def draw(self, decoded: Decoded, prompt_K: Tensor, token_K: Tensor) -> Tensor:
        """Low-resolution logits K×h×w, four pixels to an image cell, of the masks chosen.

        `prompt_K` indexes the B·P prompts flattened; `token_K` is 0 for the single-mask token, 1 to 3 for the
        three readings of an ambiguous prompt.
        """
        return self.mask_decoder.draw(decoded, prompt_K, token_K)

    def normalise(self, pixels: Tensor) -> Tensor:
        """…×3×h×w RGB in 0…255 → the encoder's range; computed in fp32, given in the encoder's precision."""
        mean_311, std_311 = pixel_statistics(self.device)
        dtype = next(self.image_encoder.parameters()).dtype
        return ((on_device(pixels, self.device).float() - mean_311) / std_311).to(dtype)

    def _pad(self, image_CHW: Tensor, side: int) -> Tensor:
        height, width = image_CHW.shape[1:]
        return F.pad(self.normalise(image_CHW), (0, side - width, 0, side - height))


def compute_precisely() -> None:
    """Keep a GPU from TF32, which multiplies fp32 with eleven bits, and from sums in half precision.

    Torch's defaults let cuDNN's convolutions take the one, and products in fp16 or bf16 the other. In bf16
    some parts are fp32 on purpose (positions, predicted IoUs, resampling) and stay so. Holds for the process.
    """
    torch.backends.cudnn.allow_tf32 = False
    products = torch.backends.cuda.matmul
    products.allow_tf32 = False
    products.allow_fp16_reduced_precision_reduction = False
    products.allow_bf16_reduced_precision_reduction = False


@kept_on_device(8)
def pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels, 3×1×1 each; a copy to the device once, not an image."""
    mean, std = (on_device(torch.tensor(rgb), device)[:, None, None] for rgb in (PIXEL_MEAN, PIXEL_STD))
    return mean, std
