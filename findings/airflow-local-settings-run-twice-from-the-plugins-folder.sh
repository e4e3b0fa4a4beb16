#!/bin/sh
# airflow_local_settings.py in the plugins folder is run twice, and the second module takes the place of the first.
#
# apache-airflow 3.3.2, Python 3.11, Linux.
# Guess: the plugins folder is on sys.path, so Airflow imports the file from there as its local settings, once a process.
# Seen:  once the plugins are loaded, `sys.modules["airflow_local_settings"]` is another module, which has run again. What
#        the first run had noted, such as an environment variable, is gone for whoever imports it afterwards.
# Why:   the plugin loader executes each Python file in the folder as a module of its own, whether or not it has been
#        imported already, and registers it in `sys.modules` under the file's name (airflow._shared.plugins_manager).
#        That is so for each helper module in the folder, not only for this one.
# Remedy: name files without a plugin in `.airflowignore` in the plugins folder; the second half shows it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
"$dir/venv/bin/uv" pip install -q --python "$dir/venv/bin/python" apache-airflow==3.3.2

mkdir "$dir/plugins"
cat > "$dir/plugins/airflow_local_settings.py" <<'EOF'
import os

NOTED = os.environ["NOTE"]
EOF
cat > "$dir/look.py" <<'EOF'
import os

os.environ["NOTE"] = "as Airflow started"
from airflow import plugins_manager, settings

settings.initialize()
import airflow_local_settings

assert airflow_local_settings.NOTED == "as Airflow started"
os.environ["NOTE"] = "later"
plugins_manager.ensure_plugins_loaded()
from airflow_local_settings import NOTED

print(NOTED)
EOF
export AIRFLOW_HOME="$dir/home" AIRFLOW__CORE__PLUGINS_FOLDER="$dir/plugins" AIRFLOW__CORE__LOAD_EXAMPLES=False
found=$("$dir/venv/bin/python" "$dir/look.py" | tail -n 1)
echo airflow_local_settings.py > "$dir/plugins/.airflowignore"
ignored=$("$dir/venv/bin/python" "$dir/look.py" | tail -n 1)
printf 'noted once the plugins are loaded: %s\n... with .airflowignore: %s\n' "$found" "$ignored"
test "$found" = later && test "$ignored" = "as Airflow started"
