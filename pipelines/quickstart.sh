#!/usr/bin/env bash
# The whole device-cloud loop on the bundled log: five stages, then one extra round. `make demo` runs this.
#
#   pipelines/quickstart.sh            # store in .dccl-demo, report in demo-report.html
#   DCCL_STORE=/tmp/x pipelines/quickstart.sh
#
# Stopped half-way? Run it again: what is finished is reused.
set -euo pipefail
cd "$(dirname "$0")/.."
export DCCL_STORE="${DCCL_STORE:-.dccl-demo}"
report="${REPORT:-demo-report.html}"

# The artifact that a command made, without its table: --quiet prints the reference only.
ref() { dcclctl "$@" --quiet; }
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || step() { printf '\n%s\n' "$*"; }

step "1. ingest: 190,000 grocery purchases of 697 households, one timeline cut into four periods"
dcclctl ingest sample_data/purchases.csv.gz \
  --map user=household_id,item=product_id,time=time \
  --items sample_data/products.csv.gz --users sample_data/households.csv.gz --repeats keep

step "2. train: the cloud model, on everybody's oldest purchases"
dcclctl train
cloud=$(ref train)

step "3. patch: each household learns 16 numbers on its own next purchases"
dcclctl patch --cloud "$cloud"
patches=$(ref patch --cloud "$cloud")

step "   control: the same cloud model simply trained further on the same purchases"
control=$(ref train --continue "$cloud" --on device --epochs 2 --learning-rate 0.001 --patience 0)
echo "$control"

step "4. distill: the patched models teach the cloud model"
dcclctl distill --patches "$patches"
distilled=$(ref distill --patches "$patches")

step "5. one more round: patch the distilled model on the next block (valid)"
dcclctl patch --cloud "$distilled" --on valid
again=$(ref patch --cloud "$distilled" --on valid)

step "6. evaluate: who gained, by activity?"
dcclctl evaluate "$cloud" "$control" "$patches" "$distilled" "$again" --against "$control"
evaluation=$(ref evaluate "$cloud" "$control" "$patches" "$distilled" "$again" --against "$control")

step "7. report"
dcclctl report "$evaluation" -o "$report"
echo "open $report"
