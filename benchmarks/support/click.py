"""One click on an image that is encoded already, timed."""

from __future__ import annotations

import statistics
import time

import torch

from maskmill.model import Sam


@torch.inference_mode()
def click(sam: Sam, repeat: int) -> dict[str, float]:
    """Seconds of a click on an image of noise: the median, and the best."""
    device, side = sam.device, sam.config.img_size
    encoded = sam.encode([torch.randint(0, 256, (3, side, side))])
    label_111 = torch.ones(1, 1, 1, dtype=torch.int64, device=device)
    prompt_3, token_3 = torch.zeros(3).long(), torch.arange(1, 4)
    seconds = []
    for _ in range(repeat):
        point_1112 = torch.rand(1, 1, 1, 2) * side
        start = time.perf_counter()
        sam.draw(sam.attend(encoded, point_1112.to(device), label_111), prompt_3, token_3)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "best": min(seconds)}
