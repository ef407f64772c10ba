#!/usr/bin/env bash
# Runs a command that finds a Chromium in CHROMIUM_PATH.
#
#   scripts/with-chromium.sh npx mocha --config .mocharc.browser.json
#
# Installs Chromium with apt if there is none, which takes root.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "Usage: $0 COMMAND [ARGUMENT...]" >&2
  exit 64
fi

find_chromium() {
  command -v chromium || command -v chromium-browser || command -v google-chrome || true
}

install() {
  if [ "$(id -u)" -ne 0 ]; then
    echo "$0: there is no Chromium. Install it, or run this as root." >&2
    exit 69
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq --yes --no-install-recommends chromium >/dev/null
}

CHROMIUM_PATH=${CHROMIUM_PATH:-$(find_chromium)}
if [ -z "$CHROMIUM_PATH" ]; then
  install >&2
  CHROMIUM_PATH=$(find_chromium)
fi
export CHROMIUM_PATH
exec "$@"
