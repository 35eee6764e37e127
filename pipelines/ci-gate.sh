#!/usr/bin/env bash
# A quality gate as a continuous-integration job runs it: train a candidate on the same log as the release, score both on
# the same users, and stop if a group of users is really worse off. Exit code 4 means: do not release.
#
#   pipelines/ci-gate.sh                                  # bundled log; a candidate that differs in the seed alone
#   CANDIDATE_FLAGS="--epochs 1 --learning-rate 0.00001" pipelines/ci-gate.sh     # one that has learned hardly anything
#   GATE=gate.toml pipelines/ci-gate.sh                   # your own rules
#
# Writes gate.xml (JUnit) and gate.md (for a pull request or a step summary) to $OUT, the current folder by default.
# Run it again with the same store and only what changed is computed.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
export DCCL_STORE="${DCCL_STORE:-.dccl-gate}"
out="${OUT:-.}"
mkdir -p "$out"

# How the log is read: people buy the same things again, and what they buy next can be told far better than what they buy
# for the first time, so a gate sees more.
read -r -a ingest_flags <<<"${INGEST_FLAGS:---repeats keep}"
# The flags that the release was trained with, and those of the candidate. Here the candidate only has another seed.
read -r -a release_flags <<<"${RELEASE_FLAGS:---epochs 4}"
read -r -a candidate_flags <<<"${CANDIDATE_FLAGS:---epochs 4 --seed 1}"
# The artifact that a command made: --quiet prints the reference and nothing else.
ref() { dcclctl "$@" --quiet; }

# 1. The log and its columns. An unchanged log gives the artifact that is there already.
log="${LOG:-$here/sample_data/purchases.csv.gz}"
columns="${MAP:-user=household_id,item=product_id,time=time}"
dataset=$(ref ingest "$log" --map "$columns" "${ingest_flags[@]}")

# 2. The baseline, known from now on as cloud@release. In a real pipeline the store is kept between runs and the name is
#    moved by whoever releases (dcclctl artifacts tag cloud@N release); here it is made where there is none yet.
if ! dcclctl artifacts show cloud@release --quiet >/dev/null 2>&1; then
  ref train --dataset "$dataset" "${release_flags[@]}" --name release
fi

# 3. The candidate: what this commit would release.
candidate=$(ref train --dataset "$dataset" "${candidate_flags[@]}" --name candidate)

# 4. Nothing of it may have seen the test period; exit code 3 if it has.
dcclctl audit "$candidate" --quiet >/dev/null

# 5. The gate. Without a file: rules that are wider than the differences between four seeds were on this log, see docs/ci.md.
#    Both models are of one seed: the intervals cover the choice of users only.
rules=(--max-drop "tail.gauc=2%" --max-drop "all.gauc=2%" --max-drop "tail.ndcg@10=25%")
if [ -n "${GATE:-}" ]; then rules=(--gate "$GATE"); fi
verdict=0
dcclctl evaluate "$candidate" --against cloud@release "${rules[@]}" \
  --junit "$out/gate.xml" --markdown "$out/gate.md" || verdict=$?

# 6. GitHub shows this file on the page of the run.
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$out/gate.md" ]; then cat "$out/gate.md" >>"$GITHUB_STEP_SUMMARY"; fi
exit "$verdict"
