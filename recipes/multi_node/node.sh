#!/usr/bin/env bash
# One node of the Ray cluster, in the foreground: `node.sh head`, then `node.sh worker HEAD_ADDRESS` on the others.
#
# Everything that verl's workers have to know stands in the environment BEFORE `ray start`: Ray gives its processes the
# environment that the node was started with, not that of the training command.
# Variables: PORT (6379), MTGRPO_INDEX (a path that every node has, or the URL of a search service), NODE_OPTIONS (more
# options for `ray start`, e.g. --num-gpus=8).
set -euo pipefail

PORT=${PORT:-6379}
RAY=${RAY:-ray}
: "${MTGRPO_INDEX:?an index folder that every node has, or the URL of a search service (mtgrpo serve); set it before ray start}"
export MTGRPO_INDEX
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

read -r -a options <<< "${NODE_OPTIONS:-}"
case ${1:-} in
    head) exec "$RAY" start --block --head --port="$PORT" --disable-usage-stats "${options[@]}" ;;
    worker)
        [ $# -eq 2 ] || { echo "node.sh worker: the address of the head is missing" >&2; exit 1; }
        exec "$RAY" start --block --address="$2:$PORT" --disable-usage-stats "${options[@]}" ;;
    *) echo "usage: node.sh head | node.sh worker HEAD_ADDRESS" >&2; exit 1 ;;
esac
