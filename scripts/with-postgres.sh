#!/usr/bin/env bash
# Runs a command beside a PostgreSQL server of its own, whose address it finds
# in TEST_DATABASE_URL. Afterwards nothing is left of the server.
#
#   scripts/with-postgres.sh npx mocha --config .mocharc.postgres.json
#
# Installs PostgreSQL with apt if there is none, which takes root.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "Usage: $0 COMMAND [ARGUMENT...]" >&2
  exit 64
fi

find_bin() {
  local initdb
  initdb=$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  dirname "${initdb:-.}"
}

install() {
  if [ "$(id -u)" -ne 0 ]; then
    echo "$0: there is no PostgreSQL under /usr/lib/postgresql. Install it, or run this as root." >&2
    exit 69
  fi
  # The package would start a server for the whole machine.
  mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/with-postgres.conf
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq --yes --no-install-recommends postgresql >/dev/null
}

bin=$(find_bin)
if [ "$bin" = . ]; then
  install >&2
  bin=$(find_bin)
fi

folder=$(mktemp -d /tmp/with-postgres.XXXXXX)

# PostgreSQL refuses to run as root.
as_postgres() {
  if [ "$(id -u)" -eq 0 ]; then
    (cd "$folder" && runuser -u postgres -- "$@")
  else
    (cd "$folder" && "$@")
  fi
}

clean_up() {
  if [ -f "$folder/data/postmaster.pid" ]; then
    as_postgres "$bin/pg_ctl" stop --pgdata "$folder/data" --mode immediate --silent || true
  fi
  rm -rf "$folder"
}
trap clean_up EXIT

if [ "$(id -u)" -eq 0 ]; then chown postgres: "$folder"; fi

# A language's own order of text, so that nobody relies on the order of bytes.
as_postgres "$bin/initdb" --pgdata "$folder/data" --username postgres \
  --auth trust --encoding UTF8 --locale-provider icu --icu-locale en \
  --no-sync >"$folder/initdb.log" 2>&1 || {
  cat "$folder/initdb.log" >&2
  exit 70
}

started=no
for _ in 1 2 3 4 5 6 7 8 9 10; do
  port=$((20000 + RANDOM % 12000))
  if as_postgres "$bin/pg_ctl" start --pgdata "$folder/data" --wait --silent \
    --log "$folder/server.log" \
    --options "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=''"; then
    started=yes
    break
  fi
done
if [ "$started" = no ]; then
  cat "$folder/server.log" >&2
  exit 70
fi

export TEST_DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres"

"$@" <&0 &
command=$!
trap 'kill -TERM "$command" 2>/dev/null || true' HUP INT TERM
status=0
wait "$command" || status=$?
# A signal ends the wait before the command.
while kill -0 "$command" 2>/dev/null; do
  status=0
  wait "$command" || status=$?
done
exit "$status"
