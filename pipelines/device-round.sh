#!/usr/bin/env bash
# One round of learning on devices that keep their logs to themselves: 50 processes of the bundle's runner, which needs
# neither torch nor dcclctl. The cloud and the devices exchange files only.
#
#   pipelines/device-round.sh                  # on the bundled log; store in .dccl-round, devices in device-round/
#   DEVICES=200 pipelines/device-round.sh
#
# What the devices learn is compared with `dcclctl patch`, which learns the same in one place.
set -euo pipefail
cd "$(dirname "$0")/.."
export DCCL_STORE="${DCCL_STORE:-.dccl-round}"
folder="${FOLDER:-device-round}" devices="${DEVICES:-50}"

step() { printf '\n%s\n' "$*"; }

step "1. The cloud trains a model and learns the shared basis of the patches"
dcclctl ingest sample_data/purchases.csv.gz --map user=household_id,item=product_id,time=time \
  --items sample_data/products.csv.gz --users sample_data/households.csv.gz --repeats keep
dcclctl train --epochs 2 --name cloud
central=$(dcclctl patch --cloud cloud@cloud --method metapatch --set patch.metapatch.basis_epochs=4 --quiet)

step "2. The cloud ships a bundle; every device holds its own log in its own folder"
bundle=$(dcclctl export "$central" --quiet)
rm -rf "$folder"
python pipelines/device_round.py prepare "$bundle" "$folder" --devices "$devices"

step "3. The devices learn, each in a process of its own"
ls "$folder"/devices | xargs -P "${JOBS:-2}" -I {} sh -c '
  python "$0/bundle/runner/python/device.py" "$0/bundle" --user "$0/devices/{}/user.json" --log "$0/devices/{}/log.csv" \
    --learn --uplink "$0/uplinks/{}.json"' "$folder"

step "4. The cloud collects what came back, and the patched models teach it"
collected=$(dcclctl collect "$bundle" "$folder/uplinks" --max-norm 1000 --quiet)
python pipelines/device_round.py compare "$central" "$collected"
dcclctl distill --patches "$collected" --method momodistill --epochs 1 --name taught
