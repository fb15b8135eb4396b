"""CUDA tensors without a GPU: tensors whose device says `cuda:0` hold tensors of the CPU, which do the work.

    with PretendCuda() as cuda:
        sam.to("cuda")
        MaskGenerator(sam, config).generate_batch(images)
    cuda.counts.by_stage()

Whatever CUDA would refuse raises: `MixedDevicesError` where host and device meet in an operation, `GridError`
where a batched product has more matrices than a grid has places, and, which CUDA would not refuse,
`UnfetchedError` where a program reads a device's numbers by other ways than
`maskmill.engine.runtime.transfer`. What goes into the device's queue is counted, and so is what the host has
to wait for. With `made_up` the tensors held have shapes and no data (PyTorch's device `meta`): networks of
any size are counted in seconds, and what would come to the host is made up.

Two things are not as on CUDA. `torch.inference_mode` is `torch.no_grad` while the block runs, as PyTorch
gives no subclass of its tensors to inference mode. And fused attention is computed by the CPU's kernel, but
counted and fed as CUDA's: see `cuda_operations.attention_kernel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .cuda_operations import WAITS, attention_kernel, bytes_of, is_composite, is_free, nbytes
from .cuda_streams import made_on_the_host, no_inference_mode, nothing_cached, streams
from .cuda_tensors import CudaTensor, held, is_cuda, tensors
from .device_counts import Counts, asked_by_reader
from .device_guard import load_guard

WITH_NUMBERS = ("index_put", "index_put_", "fill_", "masked_fill", "masked_fill_", "where", "clamp", "lerp")
"""Beside pointwise operations, those to which CUDA lets the host give a tensor of no dimensions."""

MOST_MATRICES = (1 << 16) - 1
"""Of a batched product: the last axis of a grid of CUDA's ends there."""

MadeUp = Callable[[str, Tensor], Tensor]


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of the host and of the device."""


class GridError(RuntimeError):
    """A batched product has too many matrices for one launch."""


class UnfetchedError(AssertionError):
    """The host reads what is on the device where nobody counts it."""


class PretendCuda(TorchDispatchMode):
    """While it is entered, `cuda` is a device; `counts` says what was asked of it.

    `made_up` is given the name of what asks for numbers and a tensor without data. It returns for `fetch`
    what the host gets, of that shape and type, and for `nonzero` one without data of the result's shape.
    Raises NoGuardError where PyTorch cannot be made to accept the device.
    """

    def __init__(self, made_up: MadeUp | None = None) -> None:
        super().__init__()
        load_guard()
        self.counts = Counts()
        self._made_up = made_up
        self._inside = torch.device("meta" if made_up else "cpu")
        self._pinned: dict[int, torch.UntypedStorage] = {}  # by address; kept, so that no other gets it
        self._block = contextlib.ExitStack()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to say so PyTorch would load its compiler: a second."""
        return False

    def __enter__(self) -> PretendCuda:
        with contextlib.ExitStack() as block:
            waited = partial(self.counts.wait, "synchronize")
            for part in (streams(waited), no_inference_mode(), made_on_the_host(), nothing_cached()):
                block.enter_context(part)
            block.enter_context(self._methods())
            block.enter_context(self.counts.following())
            super().__enter__()
            self._block = block.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._block.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_composite(func):
            with _entered_again(self):
                return func.decompose(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        there = [x for x in tensors(args, kwargs) if isinstance(x, CudaTensor)]
        if name == "_to_copy":
            return self._moved(func, args[0], kwargs)
        if name == "copy_" and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
            return self._copied(func, args, kwargs)
        if name == "record_stream":
            return None
        if there:
            self._check(func, name, args, kwargs)
        return self._run(func, name, args, kwargs, there)

    def _run(self, func, name, args, kwargs, there):
        """By the tensors that are held; on the device where an argument is, or where one asks for it."""
        device = kwargs.get("device")
        on_device = is_cuda(device) if device is not None else bool(there)
        given = dict(kwargs)
        pinned = bool(given.get("pin_memory"))
        if pinned:
            given["pin_memory"] = False
        if is_cuda(device):
            given["device"] = self._inside
        inputs, options = [held(x) for x in args], {name: held(x) for name, x in given.items()}
        if name == "nonzero" and there and self._made_up:
            out = self._made_up(name, inputs[0])
        else:
            out = func(*inputs, **options)
        if pinned:
            self._pin(out)
        if not on_device:
            return out
        if not is_free(func, name, inputs, out):
            self.counts.launch(name, bytes_of(name, inputs, options, out))
        wrappers = {id(x.held): x for x in there}
        if isinstance(out, list | tuple):
            return type(out)(_wrapped(x, wrappers) for x in out)
        return _wrapped(out, wrappers)

    def _check(self, func, name, args, kwargs):
        """Raise where CUDA would, or where numbers are read; count what waits."""
        if name == "_local_scalar_dense":
            raise UnfetchedError("a number of a tensor on the device is read by itself, not by `fetch`")
        scalars = torch.Tag.pointwise in func.tags or name in (*WITH_NUMBERS, "copy_")
        hosts = (x for x in tensors(args, kwargs) if not isinstance(x, CudaTensor))
        refuse(name, [x for x in hosts if x.dim() > 0 or not scalars])
        if "bmm" in name and (matrices := max(map(len, tensors(args)))) > MOST_MATRICES:
            raise GridError(f"{name} of {matrices:,} matrices, and CUDA has places for {MOST_MATRICES:,}")
        if name in WAITS and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
            self.counts.wait(WAITS[name])
        if name.startswith(("index", "_index_put")) and len(args) > 1 and isinstance(args[1], list | tuple):
            flags = [x for x in args[1] if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)]
            if flags:
                self.counts.wait("index by flags")

    def _moved(self, func, tensor, kwargs):
        """`to`: between host and device, or from one type to another."""
        device, from_device = kwargs.get("device"), isinstance(tensor, CudaTensor)
        to_device = is_cuda(device) if device is not None else from_device
        given = dict(kwargs, device=self._inside) if to_device else dict(kwargs)
        given.pop("pin_memory", None)
        if from_device and not to_device:
            self._read(waits=not kwargs.get("non_blocking"))  # PyTorch copies into pinned memory then
            made = self._made_up("fetch", tensor.held) if self._made_up else tensor.held
            out = func(made, **given)
        else:
            if to_device and not from_device:
                self._upload(tensor, bool(kwargs.get("non_blocking")))
            out = func(held(tensor), **given)
        if from_device or to_device:
            self.counts.launch("_to_copy", nbytes(tensor) + nbytes(out))
        return CudaTensor(out) if to_device else out

    def _copied(self, func, args, kwargs):
        """`copy_` from the host to the device or back."""
        into, source, *blocking = args
        non_blocking = bool((*blocking, kwargs.get("non_blocking"))[0])
        made = held(source)
        if isinstance(into, CudaTensor):
            self._upload(source, non_blocking)
        else:
            self._read(waits=not (non_blocking and self.is_pinned(into)))
            made = self._made_up("fetch", made) if self._made_up else made
        func(held(into), made)
        self.counts.launch("copy_", 2 * nbytes(into))
        return into

    def _read(self, *, waits: bool) -> None:
        if not asked_by_reader():
            raise UnfetchedError("a tensor on the device is read by itself, not by `fetch`")
        if waits:
            self.counts.wait("download")

    def _upload(self, tensor: Tensor, non_blocking: bool) -> None:
        """From pinned memory, and without blocking, the device reads by itself."""
        if tensor.numel() and not (non_blocking and self.is_pinned(tensor)):
            self.counts.wait("upload" if self.is_pinned(tensor) else "pageable upload")

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor of the host lies in memory that the device could read by itself."""
        return not isinstance(tensor, CudaTensor) and tensor.untyped_storage()._cdata in self._pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    def _attend(self, in_operations, q, k, v, attn_mask=None, **options):
        """`scaled_dot_product_attention`, by the kernel that CUDA would take."""
        given = list(tensors(q, k, v, attn_mask))
        kernel = attention_kernel(q, k, v, attn_mask)
        if kernel == "operations" or not any(isinstance(x, CudaTensor) for x in given):
            return in_operations(q, k, v, attn_mask, **options)
        refuse("attention", [x for x in given if not isinstance(x, CudaTensor)])
        width = v.shape[-1]
        if kernel == "flash" and width % 8:
            options.setdefault("scale", q.shape[-1] ** -0.5)
            q, k, v = (F.pad(x, (0, -x.shape[-1] % 8)) for x in (q, k, v))
        inputs = [held(x) for x in (q, k, v, attn_mask)]
        if self._made_up:  # where the kernels leave it: a cell's heads beside each other
            batch, heads, length = q.shape[:3]
            out = inputs[0].new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
        else:
            out = in_operations(*inputs, **options)
        self.counts.launch(f"{kernel} attention", bytes_of("attention", inputs, {}, out))
        return CudaTensor(out)[..., :width]

    @contextlib.contextmanager
    def _methods(self) -> Iterator[None]:
        """Of tensors and for them, what does not come here by itself."""
        attention = F.scaled_dot_product_attention
        with (
            mock.patch.object(Tensor, "pin_memory", lambda tensor, *_: self._pin(tensor.clone())),
            mock.patch.object(Tensor, "is_pinned", lambda tensor, *_: self.is_pinned(tensor)),
            mock.patch.object(F, "scaled_dot_product_attention", partial(self._attend, attention)),
        ):
            yield


@contextlib.contextmanager
def _entered_again(mode: PretendCuda) -> Iterator[None]:
    """The mode on, for what an operation that PyTorch has switched it off for is made of."""
    TorchDispatchMode.__enter__(mode)
    try:
        yield
    finally:
        TorchDispatchMode.__exit__(mode, None, None, None)


def refuse(name: str, hosts: list[Tensor]) -> None:
    """Raise MixedDevicesError for tensors of the host's that an operation on the device was given."""
    if hosts:
        shapes = [tuple(x.shape) for x in hosts]
        raise MixedDevicesError(f"{name} of tensors of the device and of the host's {shapes}")


def _wrapped(x: Any, wrappers: dict[int, CudaTensor]) -> Any:
    """A result on the device; what was changed in place is still the tensor that was given."""
    if not isinstance(x, Tensor):
        return x
    if id(x) not in wrappers:
        return CudaTensor(x)
    wrapper = wrappers[id(x)]
    assert wrapper.shape == x.shape, "a tensor whose shape changes in place is not pretended"
    return wrapper
