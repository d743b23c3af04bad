#!/usr/bin/env bash
# The whole pipeline on the embedded data set (handwritten digits), on any computer: search, generate, train, validate.
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh requirements.txt

CFG=config_file/digits_config.yml
RUN=logs/digits_config
FOUND=$RUN/found.json
TRAINED=logs/digits_5.5M

echo "== 1 of 4: supernet warm-up and generator training"
python3 search.py --cfg $CFG
echo "== 2 of 4: architectures for eleven targets, in one forward pass"
python3 -m tools.generate --run $RUN --flops 3:8:0.5 --out $FOUND
echo "== 3 of 4: the middle one from scratch"
python3 train_cifar.py --cfg $CFG --flops 5.5 --architecture $FOUND --title "$(basename $TRAINED)"
echo "== 4 of 4: its checkpoint on the test images"
python3 validate.py --checkpoint $TRAINED/checkpoints/last.pth
echo
python3 -m tools.summary --cfg $CFG --architectures $FOUND --result $TRAINED/result.json
echo "search: $RUN; trained network: $TRAINED; to look at the curves: tensorboard --logdir logs"
