#!/usr/bin/env bash
# R rounds over successive blocks of the timeline. The device period is cut into R blocks; in round t the devices learn
# patches on block t, are tested on the block right after it, and then teach the cloud model, which the next round
# patches. After the last block comes valid.
#
#   pipelines/rounds.sh [ROUNDS]                       # newest dataset of the store; the bundled log if there is none
#   DCCL_STORE=.dccl SEED=1 THREADS=1 pipelines/rounds.sh 3
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
rounds="${1:-3}"
seed="${SEED:-0}"
threads="${THREADS:-0}"  # 0: one per core
export DCCL_STORE="${DCCL_STORE:-.dccl}"

ref() { dcclctl "$@" --seed "$seed" --threads "$threads" --quiet; }
compare() { dcclctl evaluate "$@" --seed "$seed" --threads "$threads"; }

# Nothing ingested yet: take the bundled log, so that the script runs as it stands.
if ! dcclctl artifacts show dataset --quiet >/dev/null 2>&1; then
  dcclctl ingest "$here/sample_data/purchases.csv.gz" --map user=household_id,item=product_id,time=time \
    --items "$here/sample_data/products.csv.gz" --users "$here/sample_data/households.csv.gz"
fi

frozen=$(ref train)      # stays as it is, the first baseline
control=$frozen          # trained further on the same blocks for the same number of passes, the strong baseline
cloud=$frozen            # taught by its devices, round after round

for ((t = 1; t <= rounds; t++)); do
  block="device:$t/$rounds"
  if ((t < rounds)); then next="device:$((t + 1))/$rounds"; else next="valid"; fi
  printf '\nround %d of %d: patch on %s, test on %s\n' "$t" "$rounds" "$block" "$next"
  patches=$(ref patch --method metapatch --cloud "$cloud" --on "$block")
  models=("$frozen" "$cloud" "$patches")
  if [ "$control" != "$frozen" ]; then models+=("$control"); fi
  if [ "$cloud" = "$frozen" ]; then models=("$frozen" "$patches"); fi
  compare "${models[@]}" --on "$next"
  cloud=$(ref distill --patches "$patches" --on "$block" --epochs 3 --learning-rate 0.002)
  control=$(ref train --continue "$control" --on "$block" --epochs 3 --learning-rate 0.002 --patience 0)
done

printf '\nafter %d rounds: frozen %s, trained further %s, distilled %s\n' "$rounds" "$frozen" "$control" "$cloud"
compare "$frozen" "$control" "$cloud" --on test
dcclctl artifacts lineage "$cloud"
