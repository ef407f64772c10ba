#!/usr/bin/env bash
# Runs a command with CHROMIUM set to a Chromium that works here. Where there is
# none, and this is root, it is installed.
set -euo pipefail

find_browser() {
  local name
  for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    if [ -n "$name" ] && command -v "$name"; then return; fi
  done
}

browser=$(find_browser)
if [ -z "$browser" ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "$0: there is no Chromium. Install it, name it in CHROMIUM, or run this as root." >&2
    exit 69
  fi
  {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends chromium
  } >/dev/null
  browser=$(find_browser)
fi
if [ -z "$browser" ]; then
  echo "$0: Chromium was installed, and is not on the PATH" >&2
  exit 70
fi

CHROMIUM=$browser exec "$@"
