"""One click on an image that is encoded already: how long until its three masks are there, as logits.

    python -m benchmarks.bench_point --model vit_b --threads 2

The weights are noise: the time depends on the shapes alone. Prints a line for people and one of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from maskmill.model import MODELS, Sam


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_b", choices=MODELS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    config = replace(MODELS[given.model], depth=1, global_attn_indexes=())  # the encoder does not count
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    sam = Sam(config).eval().to(given.device, dtype)
    encoded = sam.encode([torch.randint(0, 256, (3, config.img_size, config.img_size))])
    label_111 = torch.ones(1, 1, 1, dtype=torch.int64, device=given.device)
    prompt_3, token_3 = torch.zeros(3).long(), torch.arange(1, 4)
    seconds = []
    for _ in range(given.repeat):
        point_1112 = torch.rand(1, 1, 1, 2) * config.img_size
        start = time.perf_counter()
        sam.draw(sam.attend(encoded, point_1112.to(given.device), label_111), prompt_3, token_3)
        if given.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    median = seconds[len(seconds) // 2]
    print(f"{given.model} {given.precision}: {1000 * median:.0f} ms a click, {1000 * seconds[0]:.0f} at best")
    result = {"seconds": median, "best": seconds[0], "model": given.model, "threads": given.threads}
    print(json.dumps(result | {"precision": given.precision, "device": given.device}))


if __name__ == "__main__":
    main()
