#!/usr/bin/env bash
# For DRY_RUN=cpu: a cluster of one node and a search service on this machine, and the program given on it.
#   bash recipes/multi_node/one_node.sh PROGRAM ARGUMENTS...
# What is started here carries the caller's marker; recipes/dry_run.py ends all of it.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BIN=$(dirname "$1")

free_port() { "$BIN/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
PORT=$(free_port)
service=$(free_port)
export PORT
# Ray's clusters ask for a token; this one has its own.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
"$BIN/python" -m verl_mtgrpo.cli.main serve "$MTGRPO_INDEX" --port "$service" &
export MTGRPO_INDEX=http://127.0.0.1:$service
RAY=$BIN/ray NODE_OPTIONS="--node-ip-address=127.0.0.1 --num-cpus=16 --num-gpus=1 --include-dashboard=false --temp-dir=$RAY_TMPDIR" \
    bash "$HERE/node.sh" head &
export RAY_ADDRESS=127.0.0.1:$PORT
RAY=$BIN/ray bash "$HERE/wait_for_nodes.sh" 1 120
exec "$@"
