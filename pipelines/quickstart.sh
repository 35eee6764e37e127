#!/usr/bin/env bash
# The whole device-cloud loop on the bundled log, with the paper's own patch beside it. `make demo` runs this.
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

step "5. distill: the devices teach the cloud model what their memories say of products that nobody has labelled"
# Six passes show it; by default it goes on until the cloud model ranks no better.
dcclctl distill --patches "$memories" --epochs 6
distilled=$(ref distill --patches "$memories" --epochs 6)

step "6. the loop closes: memories on the model that they have taught"
dcclctl patch --cloud "$distilled"
again=$(ref patch --cloud "$distilled")

step "7. beside it the paper's own patch: each household learns 16 numbers on its own purchases, on the model of step 2"
dcclctl patch --method metapatch --cloud "$cloud"
metapatch=$(ref patch --method metapatch --cloud "$cloud")

step "8. evaluate: who gained, by activity?"
models=("$control" "$memories" "$distilled" "$again" "$cloud" "$metapatch")
dcclctl evaluate "${models[@]}" --against "$control" --candidates 300
evaluation=$(ref evaluate "${models[@]}" --against "$control" --candidates 300)

step "9. report"
dcclctl report "$evaluation" -o "$report"
echo "open $report"
