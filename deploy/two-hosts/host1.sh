#!/usr/bin/env bash
# The second of two machines: it runs its share of whatever job host0.sh starts, and ends with it.
#
#   SHARED=/mnt/shared deploy/two-hosts/host1.sh
#
# Either machine may be started first.
set -euo pipefail
: "${SHARED:?give a folder that both machines see at the same path}"

run_folder="$SHARED/by-hand/pretrain/${TAG:-two-hosts}/work"
exec nanochat join "$run_folder/job.json" \
    --rdzv-id "${RUN_ID:-two-hosts}" --wait-minutes "${WAIT_MINUTES:-30}"
