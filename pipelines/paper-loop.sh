#!/usr/bin/env bash
# The paper's loop as published, in one command: MetaPatch, MoMoDistill with Θ and the encoder U, rounds over successive
# blocks, and the picture over 20 groups by activity; once on DIN as in the paper, once on SASRec, the strong cloud model.
# (Θ and U stand inside DIN's hidden layers: taught by its devices, SASRec gets new weights only.)
#
#   pipelines/paper-loop.sh                          # the bundled log; store .dccl-paper, reports paper-din.html, paper-sasrec.html
#   DATASET=dataset@3 DCCL_STORE=.dccl pipelines/paper-loop.sh   # a data set of your own
#   MODELS=din ROUNDS=5 CONFIG=settings.toml SEED=1 THREADS=1 pipelines/paper-loop.sh
#
# Stopped half-way? Run it again: what is finished is reused. One seed: another one may turn a verdict.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
export DCCL_STORE="${DCCL_STORE:-.dccl-paper}"
flags=(--seed "${SEED:-0}" ${CONFIG:+--config "$CONFIG"})
compute=("${flags[@]}" --threads "${THREADS:-0}")  # 0: one per core
rounds="${ROUNDS:-3}"
candidates="${CANDIDATES:-all}"

ref() { dcclctl "$@" "${compute[@]}" --quiet; }

dataset="${DATASET:-}"
if [ -z "$dataset" ]; then
  dataset=$(dcclctl ingest "$here/sample_data/purchases.csv.gz" --map user=household_id,item=product_id,time=time \
    --items "$here/sample_data/products.csv.gz" --users "$here/sample_data/households.csv.gz" \
    ${CONFIG:+--config "$CONFIG"} --quiet)
fi

for model in ${MODELS:-din sasrec}; do
  printf '\n== %s\n' "$model"
  frozen=$(ref train --dataset "$dataset" --model "$model" --name "$model-frozen")
  control=$(ref train --continue "$frozen" --on device --name "$model-further")
  patched=$(ref patch --method metapatch --cloud "$frozen" --name "$model-patched")
  taught=$(ref distill --method momodistill --patches "$patched" --epochs 8 --name "$model-taught")
  subjects=("$frozen" "$patched" "$patched+mean" "$taught" "$control")
  # U(0, u) patches users whom no patch was learned for; it comes with Θ
  if [ "$model" = din ]; then subjects+=("$taught+encoder"); fi
  for period in valid test; do  # valid is the block right after what the devices learned from
    dcclctl evaluate "${subjects[@]}" --against "$control" --on "$period" --candidates "$candidates" "${compute[@]}" \
      --name "paper-$model-$period"
  done
  dcclctl report "evaluation@paper-$model-valid" -o "paper-$model.html"  # with the picture over 20 groups
  WAY=paper MODEL="$model" DATASET="$dataset" "$here/pipelines/rounds.sh" "$rounds"
done
