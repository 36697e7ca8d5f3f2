#!/usr/bin/env bash
# The first of two machines: it plans the run, and trains with its own GPUs. host1.sh is the other.
#
#   SHARED=/mnt/shared RENDEZVOUS=node01:29500 deploy/two-hosts/host0.sh
#
# Flags of `nanochat train pretrain` may follow, such as --device-batch-size 16.
set -euo pipefail
: "${SHARED:?give a folder that both machines see at the same path}"
: "${RENDEZVOUS:?give the name of this machine and a free port of it, as in node01:29500}"

exec nanochat train pretrain --depth "${DEPTH:-24}" --model-tag "${TAG:-two-hosts}" \
    --store "$SHARED/store" --output "$SHARED/by-hand" \
    --nproc-per-node "${RANKS:-8}" --nnodes 2 \
    --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "${RUN_ID:-two-hosts}" "$@"
