#!/usr/bin/env bash
# R rounds over successive blocks of the timeline. The device period is cut into R blocks. In round t the cloud model is
# trained further on block t, the devices remember it, are tested on the block right after it, and teach the cloud model,
# with which the next round begins. After the last block comes valid.
#
#   pipelines/rounds.sh [ROUNDS]                       # newest dataset of the store; the bundled log if there is none
#   WAY=paper pipelines/rounds.sh                      # as published: MetaPatch on the model of the round before, MoMoDistill
#   MODEL=sasrec DATASET=dataset@2 pipelines/rounds.sh # another cloud model than DIN, another data set than the newest
#   CONFIG=settings.toml pipelines/rounds.sh           # settings of your own, for every command
#   DCCL_STORE=.dccl SEED=1 THREADS=1 pipelines/rounds.sh 3
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
rounds="${1:-3}"
way="${WAY:-memory}"
model="${MODEL:-din}"
seed="${SEED:-0}"
flags=(--seed "$seed" ${CONFIG:+--config "$CONFIG"})
compute=("${flags[@]}" --threads "${THREADS:-0}")  # 0: one per core
export DCCL_STORE="${DCCL_STORE:-.dccl}"

ref() { dcclctl "$@" "${compute[@]}" --quiet; }
compare() { dcclctl evaluate "$@" "${compute[@]}"; }

case "$way" in memory | paper) ;; *) echo "WAY is memory or paper, not $way" >&2; exit 2 ;; esac

# Nothing ingested yet: take the bundled log, so that the script runs as it stands.
if ! dcclctl artifacts show dataset --quiet >/dev/null 2>&1; then
  dcclctl ingest "$here/sample_data/purchases.csv.gz" --map user=household_id,item=product_id,time=time \
    --items "$here/sample_data/products.csv.gz" --users "$here/sample_data/households.csv.gz" ${CONFIG:+--config "$CONFIG"}
fi

# The tables show the names that models are given here.
frozen=$(ref train --model "$model" ${DATASET:+--dataset "$DATASET"} --name frozen)  # stays as it is, the first baseline
control=$frozen  # learns from the labels of the same blocks until it ranks no better, the strong baseline
cloud=$frozen    # taught by its devices, round after round

for ((t = 1; t <= rounds; t++)); do
  block="device:$t/$rounds"
  if ((t < rounds)); then next="device:$((t + 1))/$rounds"; else next="valid"; fi
  printf '\nround %d of %d: learn from %s, test on %s\n' "$t" "$rounds" "$block" "$next"
  control=$(ref train --continue "$control" --on "$block")
  if [ "$way" = memory ]; then
    fresh=$(ref train --continue "$cloud" --on "$block")
    memory=$(dcclctl memory ${DATASET:+--dataset "$DATASET"} --counted-through "$block" "${flags[@]}" --quiet)
    patches=$(ref patch --method memory --cloud "$fresh" --on "$block" --memory "$memory" --name "round-$t")
    cloud=$(ref distill --method from-memory --patches "$patches" --on "$block" --name "taught-$t")
    # as the student does: further, at its rate and with its patience
    control=$(ref train --continue "$control" --on "$block" --learning-rate 0.001 --patience 5)
  else
    patches=$(ref patch --method metapatch --cloud "$cloud" --on "$block" --name "round-$t")
    cloud=$(ref distill --method momodistill --patches "$patches" --on "$block" --epochs 8 --name "taught-$t")
  fi
  dcclctl artifacts tag "$control" "control-$t" --quiet
  compare "$control" "$patches" "$cloud" "$frozen" --against "$control" --on "$next"
done

printf '\nafter %d rounds: frozen %s, trained further %s, distilled %s\n' "$rounds" "$frozen" "$control" "$cloud"
compare "$control" "$cloud" "$frozen" --against "$control" --on test
dcclctl artifacts lineage "$cloud"
