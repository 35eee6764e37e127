#!/usr/bin/env bash
# The whole device-cloud loop on the bundled log: six stages, then one extra round. `make demo` runs this.
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

step "3. the cloud model kept fresh: trained further on the newer purchases (the control that all else must beat)"
dcclctl train --continue "$cloud" --on device
control=$(ref train --continue "$cloud" --on device)

step "4. memory: what every device remembers, and patches conditioned on it"
dcclctl memory
dcclctl patch --cloud "$control"
memories=$(ref patch --cloud "$control")

step "5. the paper's way: each household learns 16 numbers on its own purchases, and the patched models teach the cloud"
dcclctl patch --method metapatch --cloud "$cloud"
patches=$(ref patch --method metapatch --cloud "$cloud")
dcclctl distill --patches "$patches"
distilled=$(ref distill --patches "$patches")

step "6. one more round: patch the distilled model on the next block (valid)"
dcclctl patch --method metapatch --cloud "$distilled" --on valid
again=$(ref patch --method metapatch --cloud "$distilled" --on valid)

step "7. evaluate: who gained, by activity?"
models=("$control" "$memories" "$cloud" "$patches" "$distilled" "$again")
dcclctl evaluate "${models[@]}" --against "$control" --candidates 300
evaluation=$(ref evaluate "${models[@]}" --against "$control" --candidates 300)

step "8. report"
dcclctl report "$evaluation" -o "$report"
echo "open $report"
