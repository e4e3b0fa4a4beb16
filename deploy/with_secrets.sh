#!/bin/sh
# Runs a command with environment variables from secret files of the same name, such as /run/secrets/ADMIN_PASSWORD.
# Unlike variables set by compose, `docker inspect` does not show them. An empty file means an unset variable.
for file in /run/secrets/[A-Z]*; do
  if [ -s "$file" ]; then export "${file##*/}=$(cat "$file")"; fi
done
exec "$@"
