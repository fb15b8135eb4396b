#!/bin/sh
# The loop closes: a model makes a corpus, learns from what it has made, and is scored before and after.
#
#   sh examples/loop.sh PHOTOGRAPHS LABELLED OUT
#
# PHOTOGRAPHS is a folder of plain photographs, LABELLED is what to score on: images with masks that people drew, of
# which those that training sets aside count. Run it in the repository's root. What it gave is in docs/training.md.
set -eu
photographs=$1 labelled=$2 out=$3
weights=model/weights/nano.safetensors

maskmill generate "$photographs" --out "$out/corpus" --config nano --workers 0
maskmill evaluate --data "$labelled" --validation --no-automatic --checkpoint "$weights" | tee "$out/before.txt"
maskmill train --config train_nano --set data="$out/corpus" --set out="$out/run" --set initial="$weights" \
    --set teacher_features=null --set source_weights={} --set paste_share=0 \
    --set learning_rate=1.0e-4 --set warmup_steps=10 --set evaluate_every=1000 \
    --set "stages=[{steps: 60, size: 512, images: 4, masks: 8, zoom: [0.9, 1.5], focal_weight: 0.3}]"
maskmill evaluate --data "$labelled" --validation --no-automatic --checkpoint "$out/run/nano.safetensors" |
    tee "$out/after.txt"
