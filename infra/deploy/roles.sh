#!/bin/bash
# Runs once, when the database is first made: the three roles with the passwords of .env (`counterfoil migrate` uses them
# as they are). Changing one later: ALTER ROLE ... PASSWORD, then .env.
set -euo pipefail

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set owner="$COUNTERFOIL_OWNER_PASSWORD" \
    --set app="$COUNTERFOIL_APP_PASSWORD" \
    --set worker="$COUNTERFOIL_WORKER_PASSWORD" <<'SQL'
CREATE ROLE counterfoil_owner LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD :'owner';
CREATE ROLE counterfoil_app LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD :'app';
CREATE ROLE counterfoil_worker LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD :'worker';
SQL
