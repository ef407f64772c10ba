#!/usr/bin/env bash
# All checks of a submission, from a fresh clone. Prints the true count of all
# suites as its last line.
set -euo pipefail
cd "$(dirname "$0")/.."

npm ci
export PATH="$PWD/node_modules/.bin:$PATH"
# The counts are read from what the suites print.
export NO_COLOR=1 FORCE_COLOR=0 MOCHA_COLORS=0

passed=0
failed=0
status=0
# What failed, told once more at the end: a log is often kept from its end.
failures=$(mktemp)
# Runs a suite and adds up its counts. Mocha tells them as "N passing" and
# "N failing"; a suite that tells nothing has failed.
suite() {
  local log code=0
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || code=$?
  local p f
  local escape
  escape=$(printf '\033')
  sed -i -E "s/${escape}\\[[0-9;]*m//g" "$log"
  p=$(sed -nE 's/^ *([0-9]+) passing.*/\1/p' "$log" | tail -n 1)
  f=$(sed -nE 's/^ *([0-9]+) failing.*/\1/p' "$log" | tail -n 1)
  sed -nE '/^ *[0-9]+ failing/,$ p' "$log" | sed '/^-----.*|/,$ d' >>"$failures"
  rm -f "$log"
  if [ -z "$p" ] && [ -z "$f" ]; then f=1; fi
  passed=$((passed + ${p:-0}))
  failed=$((failed + ${f:-0}))
  if [ "$code" -ne 0 ] || [ "${f:-0}" -ne 0 ]; then status=1; fi
}

suite npm test
suite npm run test:postgres
suite npm run test:browser
suite npm run test:slow
npm run lint || status=1
npm run types || status=1
npm run build || status=1
npm run demo -- --json || status=1

cat "$failures"
rm -f "$failures"
echo "$passed passed, $failed failed"
exit "$status"
