#!/usr/bin/env bash
# All checks of a submission, from a fresh clone. Prints the true count of all
# suites as its last line.
#
# Three lanes run side by side: two mostly wait for one thread of their own, and
# the third one for leases and pages.
set -euo pipefail
cd "$(dirname "$0")/.."

npm ci
export PATH="$PWD/node_modules/.bin:$PATH"
# The counts are read from what the suites print.
export NO_COLOR=1 FORCE_COLOR=0 MOCHA_COLORS=0

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
escape=$(printf '\033')

# Runs a suite, and notes its counts and what failed. Mocha tells them as
# "N passing" and "N failing"; a suite that tells nothing has failed.
suite() {
  local name=$1 log code=0 passed failed started=$SECONDS
  shift
  log="$results/$name.log"
  "$@" 2>&1 | sed -u -E "s/${escape}\\[[0-9;]*m//g" | tee "$log" || code=$?
  passed=$(sed -nE 's/^ *([0-9]+) passing.*/\1/p' "$log" | tail -n 1)
  failed=$(sed -nE 's/^ *([0-9]+) failing.*/\1/p' "$log" | tail -n 1)
  if [ -z "$passed" ] && [ -z "$failed" ]; then failed=1; fi
  if [ "$code" -ne 0 ] && [ -z "$failed" ]; then echo "$name ended with $code" >>"$results/failures"; fi
  # Told once more at the end: a log is often kept from its end.
  sed -nE '/^ *[0-9]+ failing/,$ p' "$log" | sed '/^-----.*|/,$ d' >>"$results/failures"
  echo "${passed:-0} ${failed:-0} $code $name $((SECONDS - started))" >>"$results/counts"
}

# Runs a check that has no counts.
check() {
  local code=0
  npm run "$@" || code=$?
  echo "0 0 $code $1 0" >>"$results/counts"
}

# As many rounds as there is time for; `npm run test:slow` makes all of them.
export CONCURRENT_AGENTS=100 CONCURRENT_REFRESHES=200 KILL_ROUNDS=20 \
  REFRESH_KILL_ROUNDS=50

# Installed before two lanes want it.
scripts/with-postgres.sh true

waiting_lane() {
  suite postgres npm run test:postgres
  suite browser npm run test:browser
}

waiting_lane >"$results/waiting-lane.log" 2>&1 &
suite slow npm run test:slow >"$results/slow-lane.log" 2>&1 &
suite test npm test
check lint
check types
check build
check demo -- --json
wait || true
cat "$results/waiting-lane.log" "$results/slow-lane.log"

touch "$results/failures"
cat "$results/failures"
passed=0
failed=0
status=0
while read -r p f code name seconds; do
  echo "$name: $p passed, $f failed, exit $code, $seconds s"
  passed=$((passed + p))
  failed=$((failed + f))
  if [ "$code" -ne 0 ] || [ "$f" -ne 0 ]; then status=1; fi
done <"$results/counts"
# What ended without a word is not all that there should be.
if [ "$(wc -l <"$results/counts")" -ne 8 ]; then status=1; fi
echo "$passed passed, $failed failed"
exit "$status"
