#!/usr/bin/env bash
# The whole pipeline on the embedded data set (handwritten digits), on any computer: search, generate, train, validate,
# and a page that shows it.
#
#   bash run_example.sh
#   bash run_example.sh imagenet DATA_DIR [TARGET_FLOPS] [GPUS] [more flags]
#   bash run_example.sh finetune DATA_DIR NETWORK_DIR SUPERNET [GPUS] [more flags]
#
# The second trains the network of a target with the published recipe of SGNAS, the third tunes a network of
# post_search.py with that of NSGANetV2, both by torchrun. Without GPUs they say what they would run; CPU=1 runs it
# anyway. Flags behind the others replace those of the recipe.
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh requirements.txt

fail() {
    echo "run_example.sh: error: $1" >&2
    exit 2
}

there() {
    python3 -c 'import torch; print(torch.cuda.device_count())'
}

launch() {  # GPUS COMMAND...: by torchrun, where there are GPUs or CPU=1 says so
    local processes=$1
    shift
    local command=(torchrun --standalone "--nproc_per_node=$processes" --max-restarts=3 "$@")
    if [ "$(there)" -eq 0 ] && [ "${CPU:-0}" != 1 ]; then
        echo "no GPU here; CPU=1 runs it on the CPU. With GPUs this would run:"
        echo "${command[*]}"
        return
    fi
    [ "$(there)" -eq 0 ] || [ "$processes" -le "$(there)" ] || fail "GPUS $processes: there are $(there)"
    "${command[@]}"
}

case "${1:-digits}" in
digits) ;;
imagenet)
    [ $# -ge 2 ] || fail "imagenet: DATA_DIR must name the folder of train/ and val/"
    DATA=$2 TARGET=${3:-320} GPUS=${4:-4}
    shift $(($# < 4 ? $# : 4))
    [ -e "$DATA/train_lmdb/train.lmdb" ] && set -- --lmdb "$@"
    launch "$GPUS" train_imagenet.py "$DATA" --model get_model --epochs 500 --warmup-epochs 5 --batch-size 64 \
        --lr 0.016 --opt rmsproptf --opt-eps 0.001 --sched step --decay-epochs 3 --decay-rate 0.963 \
        --color-jitter 0.4 --drop 0.2 -j 8 --num-classes 1000 --model-ema --weight-decay 1e-5 --amp \
        --target_flops "$TARGET" --config_path ./config_file/imagenet_config.yml --bn-momentum 0.001 --se True \
        --activation hswish "$@"
    exit
    ;;
finetune)
    [ $# -ge 4 ] || fail "finetune: DATA_DIR, NETWORK_DIR of post_search.py, and the SUPERNET that teaches are needed"
    DATA=$2 NETWORK=$3 SUPERNET=$4 GPUS=${5:-8}
    [ -e "$NETWORK/net.subnet" ] || fail "$NETWORK: it has no net.subnet, which post_search.py writes"
    shift $(($# < 5 ? $# : 5))
    [ -e "$DATA/train_lmdb/train.lmdb" ] && set -- --lmdb "$@"
    SIZE=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["r"])' "$NETWORK/net.subnet")
    launch "$GPUS" train_imagenet.py "$DATA" --model nsganetv2 --model-config "$NETWORK/net.config" \
        --initial-checkpoint "$NETWORK/net.inherited" --img-size "$SIZE" -b 128 --sched step --epochs 450 \
        --decay-epochs 2.4 --decay-rate .97 --opt rmsproptf --opt-eps .001 -j 6 --warmup-lr 1e-6 \
        --weight-decay 1e-5 --drop 0.2 --drop-path 0.2 --model-ema --model-ema-decay 0.9999 \
        --aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --amp --lr .024 --teacher "$SUPERNET" "$@"
    exit
    ;;
*)
    fail "$1: allowed are imagenet, finetune, or nothing"
    ;;
esac

CFG=config_file/digits_config.yml
RUN=logs/digits_config
FOUND=$RUN/found.json
TRAINED=logs/digits_5.5M

echo "== 1 of 5: supernet warm-up and generator training"
python3 search.py --cfg $CFG
echo "== 2 of 5: architectures for eleven targets, in one forward pass"
python3 -m tools.generate --run $RUN --flops 3:8:0.5 --out $FOUND
echo "== 3 of 5: the middle one from scratch"
python3 train_cifar.py --cfg $CFG --flops 5.5 --architecture $FOUND --title "$(basename $TRAINED)"
echo "== 4 of 5: its checkpoint on the test images"
python3 validate.py --checkpoint $TRAINED/checkpoints/last.pth
echo "== 5 of 5: a page that shows it all"
python3 -m tools.report $RUN $TRAINED
echo
python3 -m tools.summary --cfg $CFG --architectures $FOUND --result $TRAINED/result.json
echo "search: $RUN; trained network: $TRAINED; to look at: $RUN/report.html"
