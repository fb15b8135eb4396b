"""One click on an image that is encoded already: how long until its three masks are there, as logits.

    python -m benchmarks.bench_point --model vit_b --threads 2

The weights are noise: the time depends on the shapes alone. Prints a line for people and one of JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch

from benchmarks.support.click import click
from maskmill.model import MODELS, Sam


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
    sam = Sam(config).eval().to(given.device).in_precision(dtype)
    timed = click(sam, given.repeat)
    print(
        f"{given.model} {given.precision}: {1000 * timed['seconds']:.0f} ms a click, "
        f"{1000 * timed['best']:.0f} at best"
    )
    result = timed | {"model": given.model, "threads": given.threads}
    print(json.dumps(result | {"precision": given.precision, "device": given.device}))


if __name__ == "__main__":
    main()
