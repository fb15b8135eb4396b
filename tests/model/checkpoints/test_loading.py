"""Loading and writing weights: first everything that can be wrong with a file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import maskmill.model.checkpoints.finding
from maskmill.model.checkpoints.errors import CheckpointError
from maskmill.model.checkpoints.finding import checkpoint_sha256, find_checkpoint, recommended_thresholds
from maskmill.model.checkpoints.loading import check_finite, load_sam, save_sam
from maskmill.model.config import MODELS, SamConfig, Thresholds
from maskmill.model.networks.sam import Sam

TINY = SamConfig(
    img_size=64,
    embed_dim=16,
    depth=2,
    num_heads=2,
    window_size=3,
    global_attn_indexes=(1,),
    out_chans=16,
    mask_in_chans=4,
    decoder_mlp_dim=16,
    decoder_num_heads=2,
    iou_head_hidden_dim=16,
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return Sam(TINY).eval()


@pytest.fixture
def state(sam: Sam) -> dict[str, Tensor]:
    return dict(sam.state_dict())


@pytest.fixture(autouse=True)
def tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `vit_b` load in milliseconds and `nano` have other shapes; keep away from the user's cache."""
    monkeypatch.setitem(MODELS, "vit_b", TINY)
    monkeypatch.setitem(MODELS, "nano", replace(TINY, depth=3))
    monkeypatch.setattr(maskmill.model.checkpoints.zoo, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))


def assert_same(loaded: Sam, expected: dict[str, Tensor]) -> None:
    assert not loaded.training
    state = loaded.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value.to(state[key].dtype)), key


# Names and places.


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        CheckpointError, match=r"unknown model 'vit-b'; known: nano, .*; did you mean vit_b\?"
    ):
        load_sam("vit-b")


def test_without_weights_the_error_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="no weights for vit_h: `maskmill models get sam_vit_h`"
    ) as caught:
        load_sam("vit_h")
    assert str(tmp_path / "cache") in str(caught.value)
    assert "sam_vit_h_4b8939.pth" in str(caught.value)


def test_a_downloaded_file_is_found_by_the_models_name(tmp_path: Path, state: dict[str, Tensor]) -> None:
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / "sam_vit_b_01ec64.pth"
    torch.save(state, path)
    assert find_checkpoint("vit_b") == path
    assert_same(load_sam("vit_b"), state)


# Files that are not checkpoints.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a text file, not weights", "is no checkpoint"),
        (b"\x10" + bytes(7) + b"{not the header}", "damaged safetensors"),
        (b"PK\x03\x04 and then nothing", "is damaged"),
        (b"\x80\x02", "is damaged"),
        (pickle.dumps([1, 2], protocol=2), "is damaged"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sam("vit_b", path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth: No such file .*expected a PyTorch file"):
        load_sam("vit_b", tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"Is a directory; expected a PyTorch file"):
        load_sam("vit_b", tmp_path)
    with pytest.raises(CheckpointError, match="Is a directory"):
        checkpoint_sha256(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_damaged(
    tmp_path: Path, state: dict[str, Tensor], kind: str, share: float
) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_sam("vit_b", path)


class Malicious:
    """Unpickled by an ordinary unpickler, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, state: dict[str, Tensor], kind: str) -> None:
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    poisoned = {**state, "more": Malicious(trap)}
    if kind == "plain":
        path.write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    else:
        torch.save(poisoned, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match=r"refused|damaged") as caught:
        load_sam("vit_b", path)
    assert not trap.exists()
    if kind == "zip":
        assert "is refused, it asks for more than tensors" in str(caught.value)
        assert "mkdir" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, expected a state dict"),
        ({}, "not a state dict; not tensors: it is empty"),
        ({"epoch": 3, "lr": 0.1}, "not tensors: epoch: int, lr: float"),
        ({"model": {"a": torch.zeros(1), "b": None}}, "not tensors: b: NoneType"),
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load_sam("vit_b", tmp_path / "weights.pth")


# Files of another model.


def test_missing_surplus_and_misshapen_keys_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    removed = [key for key in state if key.startswith("image_encoder.blocks.0.")]
    for key in removed:
        del state[key]
    state["mask_decoder.extra"] = torch.zeros(3)
    state["image_encoder.neck.0.weight"] = torch.zeros(16, 8, 1, 1)
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 16, dtype=torch.int64)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        load_sam("vit_b", tmp_path / "weights.pth")
    message = str(caught.value)
    assert f"does not fit vit_b: {len(removed)} missing ({', '.join(removed[:4])}, …)" in message
    assert "1 surplus (mask_decoder.extra)" in message
    assert "image_encoder.neck.0.weight 16×8×1×1 in the file, 16×16×1×1 in the model" in message
    assert "mask_decoder.iou_token.weight 1×16 int64 in the file, 1×16 in the model" in message


def test_the_error_says_which_model_the_file_looks_like(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state | {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1024)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 misshapen .*; it looks like vit_l$"):
        load_sam("vit_b", tmp_path / "weights.pth")


# Files that load.


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_official_files_load_as_they_are(
    tmp_path: Path, state: dict[str, Tensor], wrap: str | None, zipped: bool
) -> None:
    content = {wrap: state, "epoch": 7} if wrap else state
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_sam("vit_b", tmp_path / "weights.pth"), state)


def test_safetensors_with_official_names_load_whatever_the_file_is_called(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_file(state, tmp_path / "weights.pth")
    assert_same(load_sam("vit_b", str(tmp_path / "weights.pth")), state)


def test_a_mobile_sam_file_loads_with_its_unused_classifier(tmp_path: Path) -> None:
    mobile = Sam(MODELS["vit_t"]).state_dict()
    assert {"image_encoder.norm_head.weight", "image_encoder.head.weight"} <= set(mobile)
    assert mobile["image_encoder.patch_embed.seq.0.bn.num_batches_tracked"].dtype == torch.int64
    torch.save(mobile, tmp_path / "mobile_sam.pt")
    assert_same(load_sam("vit_t", tmp_path / "mobile_sam.pt"), mobile)
    with pytest.raises(CheckpointError, match="it looks like vit_t"):
        load_sam("vit_b", tmp_path / "mobile_sam.pt")


def test_device_and_precision(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "weights.pth")
    half = load_sam("vit_b", tmp_path / "weights.pth", dtype=torch.bfloat16)
    assert {one.dtype for one in half.image_encoder.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in half.mask_decoder.parameters()} == {torch.float32}  # rounding costs masks
    assert_same(half, state)


@pytest.mark.parametrize(
    ("key", "value", "dtype", "said"),
    [
        ("mask_decoder.iou_token.weight", torch.nan, torch.float32, "iou_token.weight (float32)"),
        ("image_encoder.neck.0.weight", torch.inf, torch.bfloat16, "neck.0.weight (bfloat16)"),
        ("image_encoder.neck.0.weight", 7e4, torch.float16, "neck.0.weight (float16)"),
    ],
)
def test_weights_that_are_not_finite_as_they_are_used_are_named(
    tmp_path: Path, state: dict[str, Tensor], key: str, value: float, dtype: torch.dtype, said: str
) -> None:
    state[key] = state[key].clone().index_fill_(0, torch.tensor([0]), value)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"expected finite weights, got others in 1 ") as caught:
        load_sam("vit_b", tmp_path / "weights.pth", dtype=dtype)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decoder_in_fp16_holds_no_weight_over_its_range(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """As a GPU has it; there `load_sam` asks the same."""
    state["mask_decoder.iou_token.weight"] = torch.full((1, 16), 7e4)
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_sam("vit_b", tmp_path / "weights.pth", dtype=torch.bfloat16)  # on a CPU it is in fp32
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight \(float16\)"):
        check_finite(loaded.decode_in(torch.float16), tmp_path / "weights.pth")


# Our own files.


def test_a_headers_length_is_not_taken_for_a_pickle(tmp_path: Path, sam: Sam) -> None:
    path = tmp_path / "own.safetensors"
    save_sam(sam, path, {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_sam(sam, path, {"note": "." * ((0x80 - length) % 256)})
    assert path.read_bytes()[0] == 0x80, "as a pickle begins"
    assert load_sam("nano", path).config == TINY


def test_save_and_load(tmp_path: Path, sam: Sam) -> None:
    path = tmp_path / "own.safetensors"
    save_sam(sam, path, {"steps": "100"})
    assert [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]
    assert path.stat().st_size < 2.5 * sum(value.numel() for value in sam.state_dict().values()) + 40_000
    assert checkpoint_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["steps"] == "100"
    assert json.loads(metadata["config"]) == {**asdict(TINY), "global_attn_indexes": [1]}

    assert_same(load_sam("vit_b", path), {key: value.half() for key, value in sam.state_dict().items()})
    save_sam(sam, path, dtype=torch.float32)
    assert_same(load_sam("vit_b", path), sam.state_dict())


def test_the_same_weights_make_the_same_file(tmp_path: Path, sam: Sam) -> None:
    """Its sha256 decides whether a corpus goes on; safetensors itself leaves the order to chance."""
    odd = {"näme \x7f\U0001f3a8": 'quote " slash \\ / tab \t bell \x07 null \x00 line \u2028'}
    path = tmp_path / "own.safetensors"
    written = set()
    for _ in range(20):
        save_sam(sam, path, odd)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata().items() >= odd.items()
    assert_same(load_sam("nano", path), {key: value.half() for key, value in sam.state_dict().items()})


def test_nano_takes_its_shapes_from_the_file(tmp_path: Path, sam: Sam) -> None:
    (tmp_path / "weights").mkdir()
    save_sam(sam, tmp_path / "weights" / "nano.safetensors")
    assert load_sam("nano").config == TINY  # MODELS says depth 3
    assert find_checkpoint("nano") == tmp_path / "weights" / "nano.safetensors"


def test_a_published_size_must_have_its_published_shapes(tmp_path: Path) -> None:
    save_sam(Sam(replace(TINY, depth=1, window_size=5)), tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"is not a vit_b: depth 1 in the file, 2 in vit_b; window_size 5 in the file, 3",
    ):
        load_sam("vit_b", tmp_path / "other.safetensors")


def test_nano_is_never_a_tiny_vit(tmp_path: Path) -> None:
    save_sam(Sam(replace(TINY, encoder="tiny_vit")), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not a nano: encoder 'tiny_vit' in the file, 'vit' in nano"):
        load_sam("nano", tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "has an invalid `config` in its metadata"),
        ('{"depth": 2, "heads": 3}', "unknown keys heads"),
        ('{"img_size": 65}', "65 is not a multiple of patch_size 16"),
        (
            '{"img_size": "64"}',
            "has an invalid `config` in its metadata: img_size '64' is not a positive whole number",
        ),
        ('{"img_size": 512.0}', "img_size 512.0 is not a positive whole number"),
        ('{"patch_size": 0}', "patch_size 0 is not a positive whole number"),
        ('{"num_heads": 0}', "num_heads 0 is not a positive whole number"),
        ('{"embed_dim": -12}', "embed_dim -12 is not a positive whole number"),
        ('{"depth": true}', "depth True is not a positive whole number"),
        ('{"mlp_ratio": NaN}', "mlp_ratio nan is not a positive number"),
        ('{"global_attn_indexes": [1, -1]}', r"global_attn_indexes \(1, -1\) does not name blocks"),
        ('{"global_attn_indexes": 5}', "global_attn_indexes 5 does not name blocks"),
        ('{"encoder": "resnet"}', "encoder 'resnet' is not vit or tiny_vit"),
        (
            '{"out_chans": 24, "decoder_num_heads": 5}',
            "out_chans 24 does not divide into 2 × decoder_num_heads 5",
        ),
    ],
)
def test_a_file_whose_config_makes_no_model(
    tmp_path: Path, state: dict[str, Tensor], config: str, message: str
) -> None:
    save_file(state, tmp_path / "own.safetensors", {"config": config})
    with pytest.raises(CheckpointError, match=message):
        load_sam("nano", tmp_path / "own.safetensors")


def test_a_weight_that_half_precision_cannot_hold_is_not_written(tmp_path: Path) -> None:
    broken = Sam(TINY)
    with torch.no_grad():
        broken.mask_decoder.iou_token.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"not finite in torch\.float16: mask_decoder\.iou_token\.weight"):
        save_sam(broken, tmp_path / "own.safetensors")
    assert list(tmp_path.iterdir()) == []


# Thresholds that belong to the weights.


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("no json", "has invalid `thresholds` in its metadata: Expecting value"),
        ("[0.5, 0.5]", "has invalid `thresholds`"),
        ('{"pred_iou_thresh": 1.5}', "pred_iou_thresh 1.5 is not a number from 0 to 1"),
        ('{"pred_iou_thresh": true}', "pred_iou_thresh True is not a number"),
        ('{"other": 0.5}', "unexpected keyword argument 'other'"),
    ],
)
def test_thresholds_of_a_file_that_are_none(tmp_path: Path, sam: Sam, said: str, message: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(sam.state_dict(), path, {"config": json.dumps(asdict(TINY)), "thresholds": said})
    for read in (load_sam, recommended_thresholds):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read("nano", path)


def test_thresholds_are_the_files_or_else_the_models(tmp_path: Path, sam: Sam) -> None:
    published, nano = Thresholds(0.88, 0.95), Thresholds(0.58, 0.8)
    assert sam.thresholds == published
    torch.save(sam.state_dict(), tmp_path / "official.pth")
    save_file(sam.state_dict(), tmp_path / "before.safetensors", {"config": json.dumps(asdict(TINY))})
    sam.thresholds = Thresholds(0.3, 0.4)
    save_sam(sam, tmp_path / "own.safetensors")
    sam.thresholds = published
    for name, file, expected in (
        ("vit_b", "official.pth", published),
        ("nano", "before.safetensors", nano),
        ("nano", "own.safetensors", Thresholds(0.3, 0.4)),
    ):
        assert load_sam(name, tmp_path / file).thresholds == expected
        assert recommended_thresholds(name, tmp_path / file) == expected
