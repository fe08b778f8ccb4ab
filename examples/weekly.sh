#!/bin/sh
# A week in production: what the service has seen becomes the next run, which is served if it is promoted.
#
#   weekly.sh STATE STORE [ADDRESS]
#
# STATE    file, a path or an fsspec URI, with the URI of the run that is served; replaced when another one is
# STORE    store of the service: sqlite:PATH or redis://HOST:PORT/DATABASE
# ADDRESS  Ray cluster that the update runs on; this machine by default
#
# Started again it goes on from where it was, also on a later day, as long as the update has no verdict: STATE.begun, beside
# STATE, names the run and the day. Ends with the status of `tesserec update`: 0 promoted, 3 the old run stays, 4 a refit is
# due.
set -eu

python=${PYTHON:-python}
tesserec=${TESSEREC:-$python -m workflows}
state=$1 store=$2 address=${3:-local}

content() { $python -c 'import fsspec, sys; print(fsspec.open(sys.argv[1], "rt").open().read().strip())' "$1"; }
exists() { $python -c 'import fsspec, sys; fs, path = fsspec.core.url_to_fs(sys.argv[1]); sys.exit(not fs.exists(path))' "$1"; }
replace() { $python -c 'import fsspec, sys; fsspec.core.url_to_fs(sys.argv[1])[0].pipe_file(sys.argv[1], sys.argv[2].encode())' "$1" "$2"; }

run=$(content "$state")
begun=$(content "$state.begun" 2>/dev/null || true)
case $begun in
  "$run "*) day=${begun##* } ;;
  *) day=$(date +%Y-%m-%d) ;;
esac
next="${run%-????-??-??}-$day"
catalog="$next-catalog"

if [ "$run" = "$next" ]; then
  echo "$run is of today: nothing to do"
  exit 0
fi
replace "$state.begun" "$run $day"
# The items come last: with them, an export is whole.
exists "$catalog/items.parquet" || $tesserec export "$run" --store "$store" -o "$catalog"
# Items that were posted to the service are in $catalog; add the rows of others to its items table here.

status=0
$tesserec update "$run" --catalog "$catalog" --run-dir "$next" --address "$address" || status=$?
case $status in
  0)
    $tesserec roll "$next" --store "$store"
    replace "$state" "$next"
    ;;
  3 | 4)
    replace "$state.begun" ""
    echo "$run stays: see $next/report/index.html"
    [ $status = 3 ] || echo "fit anew: tesserec run $next/workflow.yaml --set previous=null --run-dir $next-refit"
    ;;
esac
exit $status
