#!/usr/bin/env bash
# Returns when a Ray cluster has so many nodes: `wait_for_nodes.sh NODES [SECONDS]`. verl does not wait for them: it ends
# with "Total available GPUs 8 is less than total desired GPUs 16".
# Variables: RAY_ADDRESS of the head, RAY (ray).
set -euo pipefail

wanted=${1:?the number of nodes to wait for}
limit=${2:-600}
: "${RAY_ADDRESS:?the address of the head, HOST:PORT}"

# `ray status` lists a node a line below Active (or Idle), as " 1 node_7c2756...": the number first. A head that is still
# starting answers "No cluster status".
nodes() {
    { "${RAY:-ray}" status --address="$RAY_ADDRESS" 2> /dev/null || true; } \
        | awk '/^(Active|Idle):/ { on = 1; next } /^[^ ]/ { on = 0 } on && $1 ~ /^[0-9]+$/ { sum += $1 } END { print sum + 0 }'
}

until [ "$(nodes)" -ge "$wanted" ]; do
    if [ "$SECONDS" -ge "$limit" ]; then
        echo "wait_for_nodes.sh: $(nodes) of $wanted nodes are in the Ray cluster at $RAY_ADDRESS after $limit s." \
            "See what \`ray start\` said on the others (node.sh): do they reach the head's port, and have they its token?" >&2
        exit 1
    fi
    sleep 2
done
