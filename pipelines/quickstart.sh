#!/usr/bin/env bash
# The whole device-cloud loop on the bundled log, with the paper's own patch beside it. `make demo` runs this.
#
#   pipelines/quickstart.sh            # store in .dccl-demo, report in demo-report.html, bundle in demo-device
#   DCCL_STORE=/tmp/x pipelines/quickstart.sh
#
# Stopped half-way? Run it again: what is finished is reused.
set -euo pipefail
cd "$(dirname "$0")/.."
export DCCL_STORE="${DCCL_STORE:-.dccl-demo}"
report="${REPORT:-demo-report.html}" device="${DEVICE:-demo-device}"

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || step() { printf '\n%s\n' "$*"; }

step "1. ingest: 190,000 grocery purchases of 697 households, one timeline cut into four periods"
dcclctl ingest sample_data/purchases.csv.gz \
  --map user=household_id,item=product_id,time=time \
  --items sample_data/products.csv.gz --users sample_data/households.csv.gz --repeats keep

step "2. train: the cloud model, on everybody's oldest purchases (ten passes, to be quick)"
dcclctl train --model sasrec --epochs 10 --name frozen

step "3. the cloud model trained further on the newer purchases: the control that everything else must beat"
dcclctl train --continue cloud@frozen --on device --name control

step "4. memory: what every device remembers, and patches that use it"
dcclctl memory
dcclctl patch --cloud cloud@control --name memory

step "5. distill: the devices teach the cloud model, until it ranks no better"
dcclctl distill --patches patches@memory --name taught

step "6. the paper's own patch: each household learns 16 numbers on its own purchases, on the model of step 2"
dcclctl patch --method metapatch --cloud cloud@frozen --set patch.metapatch.basis_epochs=8 --name metapatch

step "7. evaluate: who gained, by activity? (one seed: another seed or processor may turn a verdict)"
dcclctl evaluate cloud@control patches@memory cloud@taught cloud@frozen patches@metapatch \
  --against cloud@control --name demo

step "8. export: what a device needs to run the patched model, without torch and without dcclctl; and what it costs"
rm -rf "$device"
dcclctl export patches@memory --name demo --measure -o "$device" --user 1011

step "9. report"
dcclctl report evaluation@demo --bundle "$device" -o "$report"

echo
echo "The report: $report, for any browser."
echo "The model on a device, as a web page: . .venv/bin/activate; DCCL_STORE=$DCCL_STORE dcclctl serve bundle@demo --user 1011"
echo "This is one seed. For a claim give train, patch, distill and evaluate --seeds 0..4, see docs/tuning.md."
