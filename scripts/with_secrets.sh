#!/bin/sh
# Runs a command with the secrets that are files named like variables, such as /run/secrets/ADMIN_PASSWORD: unlike
# variables that compose sets, `docker inspect` does not show them. An empty file is a variable that is not set.
for file in /run/secrets/[A-Z]*; do
  if [ -s "$file" ]; then export "${file##*/}=$(cat "$file")"; fi
done
exec "$@"
