#!/usr/bin/env bash
# A quality gate as a continuous-integration job runs it: train a candidate on the same log as the release, score both on
# the same users, and stop if a group of users is really worse off. Exit code 4 means: do not release.
#
#   MAKE_RELEASE=1 pipelines/ci-gate.sh       # the first time: trains the release too, on the bundled log
#   CANDIDATE_FLAGS="--epochs 1 --learning-rate 0.00001" pipelines/ci-gate.sh     # a broken candidate: exit 4
#   LOG=clicks.csv GATE=gate.toml pipelines/ci-gate.sh                            # your own log and rules
#
# Settings, all by environment (docs/ci.md): LOG, MAP, INGEST_FLAGS, RELEASE_FLAGS, CANDIDATE_FLAGS, GATE, MAX_DROP, STRICT,
# MAKE_RELEASE, OUT, DCCL_STORE. Writes gate.xml (JUnit) and gate.md (for a pull request or a step summary) to $OUT, the
# current folder by default. Run it again with the same store and only what changed is computed.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export DCCL_STORE="${DCCL_STORE:-.dccl-gate}"
out="${OUT:-.}"
mkdir -p "$out"

fail() { # CODE WHAT REMEDY
  printf 'error: %s\n  %s\n' "$2" "$3" >&2
  exit "$1"
}
# Words of a setting, which may have several lines, into the array `words`.
split() { read -r -d '' -a words <<<"$1" || true; }
# The artifact that a command made: --quiet prints the reference and nothing else.
ref() { dcclctl "$@" --quiet; }

# How the bundled log is read: people buy the same things again, and what they buy next can be told far better than what
# they buy for the first time, so a gate sees more. The rules there are those that another seed of the same training keeps.
if [ -z "${LOG:-}" ]; then
  LOG="$here/sample_data/purchases.csv.gz"
  MAP="${MAP:-user=household_id,item=product_id,time=time}"
  INGEST_FLAGS="${INGEST_FLAGS---repeats keep}"
  RELEASE_FLAGS="${RELEASE_FLAGS---epochs 4}"
  CANDIDATE_FLAGS="${CANDIDATE_FLAGS---epochs 4 --seed 1}"
  if [ -z "${GATE:-}" ]; then MAX_DROP="${MAX_DROP:-tail.gauc=2% all.gauc=2% tail.ndcg@10=25%}"; fi
fi
rules=()
if [ -n "${GATE:-}" ]; then rules+=(--gate "$GATE"); fi
split "${MAX_DROP:-}"
for rule in "${words[@]}"; do rules+=(--max-drop "$rule"); done
[ ${#rules[@]} -gt 0 ] || fail 2 "the gate has no rule" "Set GATE=gate.toml or MAX_DROP='tail.ndcg@10=5% all.gauc=2%'."
if [ "${STRICT:-}" = 1 ] || [ "${STRICT:-}" = true ]; then rules+=(--strict); fi

# 1. The release that the candidate is held against, known as cloud@release. It is never made from the code under test,
#    unless that is asked for: a lost cache would otherwise turn every gate into a comparison of the change with itself.
released=yes
why=$(dcclctl artifacts show cloud@release --quiet 2>&1 >/dev/null) || released=no
if [ "$released" = no ] && [ "${MAKE_RELEASE:-}" != 1 ] && [ "${MAKE_RELEASE:-}" != true ]; then
  printf '%s\n' "$why" >&2
  fail 3 "there is no release in $DCCL_STORE to hold the candidate against" \
    "Bring the store that has it (a cache, a shared disk), or train the release from this code: MAKE_RELEASE=1."
fi

# 2. The log. An unchanged log gives the artifact that is there already.
split "${INGEST_FLAGS:-}"
if [ -n "${MAP:-}" ]; then words+=(--map "$MAP"); fi
dataset=$(ref ingest "$LOG" "${words[@]}")
if [ "$released" = no ]; then
  split "${RELEASE_FLAGS:-}"
  release=$(ref train --dataset "$dataset" "${words[@]}" --name release)
  echo "made the release from this code: cloud@release is $release" >&2
fi

# 3. The candidate: what this commit would release.
split "${CANDIDATE_FLAGS:-}"
candidate=$(ref train --dataset "$dataset" "${words[@]}" --name candidate)

# 4. Nothing of it may have seen the test period; exit code 3 if it has.
dcclctl audit "$candidate" --quiet >/dev/null

# 5. The gate. Both models are of one seed: the intervals cover the choice of users only.
verdict=0
rm -f "$out/gate.md" "$out/gate.xml"
dcclctl evaluate "$candidate" --against cloud@release "${rules[@]}" \
  --junit "$out/gate.xml" --markdown "$out/gate.md" || verdict=$?

# 6. GitHub shows the summary on the page of the run, and later steps can read the result in one line.
if [ -f "$out/gate.md" ]; then
  if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then cat "$out/gate.md" >>"$GITHUB_STEP_SUMMARY"; fi
  if [ -n "${GITHUB_OUTPUT:-}" ]; then
    read -r headline <"$out/gate.md"
    echo "headline=${headline#\#\# }" >>"$GITHUB_OUTPUT"
  fi
fi
exit "$verdict"
