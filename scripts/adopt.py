"""Put a dbt project in the place of the sample shop, or nothing.

    make adopt PROJECT=/path/to/dbt_project     copy it to include/dbt_project; the original is only read
    make remove-sample                          remove the shop: its models, contracts, files, queries and dashboard

All that changes is tracked by git, and either all of it happens or nothing: the new project is put together and parsed
beside the old one first.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from include.errors import PipelineError
from include.runs.build_graph import BuildGraph
from include.settings import DBT_PROJECT, dbt_target, warehouse_name
from include.settings import REPOSITORY_ROOT as ROOT
from include.warehouse import guard

_SOURCE = "jaffle_shop"
# What the sample shop consists of.
SAMPLE = (
    *(f"include/data/raw_{name}.csv" for name in ("customers", "orders", "payments")),
    f"include/dlt_pipelines/{_SOURCE}_pipeline.py",
    *(f"include/queries/{name}.sql" for name in ("inactive_customers", "orders_by_status", "revenue_by_month")),
    *(f"include/dbt_project/models/{name}" for name in ("docs.md", "exposures.yml", "groups.yml")),
    "include/dbt_project/models/staging/sources.yml",
    *(f"include/dbt_project/models/staging/stg_{name}" for name in ("customers.sql", "orders.sql", "payments.sql")),
    *(f"include/dbt_project/models/staging/stg_{name}" for name in ("customers.yml", "orders.yml", "payments.yml")),
    *(f"include/dbt_project/models/marts/core/{name}" for name in ("customers.sql", "customers.yml")),
    *(f"include/dbt_project/models/marts/core/{name}" for name in ("orders.sql", "orders.yml")),
    *(f"include/dbt_project/tests/payments_reconcile_with_marts.{kind}" for kind in ("sql", "yml")),
    "include/dbt_project/macros/money.sql",
    "bi/assets/dashboards/customer-value.yaml",
    *(f"bi/assets/datasets/warehouse/{name}.yaml" for name in ("customers", "orders")),
    *(f"bi/assets/charts/{name}.yaml" for name in ("average_order", "customers", "customers_by_value", "orders")),
    *(f"bi/assets/charts/{name}.yaml" for name in ("orders_by_status", "payment_methods_by_month", "revenue")),
    *(f"bi/assets/charts/{name}.yaml" for name in ("revenue_by_month", "top_customers")),
)
# Of the project without the sample's nodes; `adopt` replaces them.
_KEPT = (
    "dbt_project.yml",
    "packages.yml",
    "package-lock.yml",
    "profiles.yml",
    ".gitignore",
    "macros/generate_schema_name.sql",
)
_DEFAULT = "main"  # of profiles.yml, as plain dbt has it on DuckDB
_SETTINGS = ROOT / "airflow.env"
_LISTED = 10
_PACKAGE = "../dbt_warehouse"
# Not read by dbt, or made by it.
_LEFT_OUT = (
    "target",
    "logs",
    "dbt_packages",
    "dbt_modules",
    "node_modules",
    "__pycache__",
    "profiles.yml",
)
# Files beside the project's folders that dbt or a source may read.
_READ = (".yml", ".yaml", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
# Settings of a DuckDB profile that the warehouse's own says in its place.
_OF_PROFILE = ("type", "path", "threads", "schema", "database", "keep_open", "retries")


class AdoptError(PipelineError):
    """Nothing was changed; says why."""


def adopt(given: str) -> list[str]:
    """Replace the sample by a dbt project; return what to say.

    Args:
        given: the project's folder.

    Raises:
        AdoptError: it cannot be taken over.
    """
    source = Path(given).expanduser().resolve()
    if not (source / "dbt_project.yml").is_file():
        raise AdoptError(f"{source} has no dbt_project.yml.")
    if source.is_relative_to(ROOT) or ROOT.is_relative_to(source):
        raise AdoptError(f"{source} is within this checkout, or around it: choose a project elsewhere.")
    mine = {path.relative_to(DBT_PROJECT).as_posix() for path in _files(DBT_PROJECT)}
    of_sample = {name.removeprefix("include/dbt_project/") for name in SAMPLE}
    if others := sorted(mine - of_sample - set(_KEPT)):
        raise AdoptError(
            f"include/dbt_project has files that are not the sample's: {_few(others)}. Only the sample is replaced: "
            "adopt in a fresh clone, or merge the projects by hand."
        )
    with tempfile.TemporaryDirectory(prefix=".adopt-", dir=DBT_PROJECT.parent) as scratch:
        # Beside the project, where the relative path of the package is the same.
        new = Path(tempfile.mkdtemp(prefix=".adopted-", dir=DBT_PROJECT.parent))
        try:
            notes = _copy(source, new)
            notes += _edit(new, source)
            manifest, more = _parse_storing_failures(new, Path(scratch))
            notes += more
            BuildGraph(manifest).tasks()  # raises if a node cannot be run
            marts = _marts(manifest)
            report = _report(source, manifest, notes, marts)
            settings = Path(scratch) / "airflow.env"
            settings.write_text(
                re.sub(r"(?m)^MARTS_SCHEMA=.*", lambda _: f"MARTS_SCHEMA={marts}", _SETTINGS.read_text())
            )
            with _changes(Path(scratch) / "old") as move:
                for name in SAMPLE:
                    if not name.startswith("include/dbt_project/"):
                        move(ROOT / name, None)
                _remove_from_dag(move, Path(scratch))
                move(_SETTINGS, settings)
                move(DBT_PROJECT, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    _link_packages(new)
    return report


def remove_sample() -> list[str]:
    """Remove the sample; return what to say."""
    with tempfile.TemporaryDirectory(prefix=".adopt-", dir=DBT_PROJECT.parent) as scratch:
        settings = DBT_PROJECT / "dbt_project.yml"
        text = re.sub(
            r"^ *\+(group: data_platform|contract: \{enforced: true\})\n", "", settings.read_text(), flags=re.M
        )
        new = Path(scratch) / "dbt_project.yml"
        new.write_text(text)
        with _changes(Path(scratch) / "old") as move:
            for name in SAMPLE:
                move(ROOT / name, None)
            _remove_from_dag(move, Path(scratch))
            move(settings, new)
    return ["The sample shop is removed. Next: make new-source FILES=path/to/stores.csv, then models on it."]


@contextlib.contextmanager
def _changes(old: Path) -> Iterator[Any]:
    """Give a function that replaces a path, or removes it; all is put back if the block fails."""
    done: list[tuple[Path, Path, Path | None]] = []

    def move(path: Path, new: Path | None) -> None:
        if path.exists():
            kept = old / path.relative_to(ROOT)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
            done.append((path, kept, new))
        if new:
            new.rename(path)

    try:
        yield move
    except BaseException:
        for path, kept, new in reversed(done):
            if new and path.exists():
                path.rename(new)
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.rename(path)
        raise
    for path, _, new in done:  # folders that are empty now
        for folder in () if new else path.parents:
            with contextlib.suppress(FileNotFoundError):
                if folder in (ROOT / "include", ROOT / "bi" / "assets", DBT_PROJECT) or any(folder.iterdir()):
                    break
                folder.rmdir()


def _remove_from_dag(move: Any, scratch: Path) -> None:
    for path in sorted((ROOT / "dags").glob("*.py")):
        text = path.read_text()
        match = re.search(r"^SOURCES = \(([^)#]*)\)", text, re.MULTILINE)
        if match and f'"{_SOURCE}"' in match[1]:
            sources = [one.strip() for one in match[1].split(",") if one.strip() not in ("", f'"{_SOURCE}"')]
            declared = f"SOURCES = ({', '.join(sources)}{',' * (len(sources) == 1)})"
            new = scratch / path.name
            new.write_text(text[: match.start()] + declared + text[match.end() :])
            move(path, new)


def _files(folder: Path) -> Iterator[Path]:
    """Return the files of a dbt project that belong to it."""
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT and path.name != "profiles.yml":
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.name != ".user.yml":
            yield path


def _paths(source: Path) -> list[Path]:
    """Return the project's folders as dbt_project.yml names them.

    Raises:
        AdoptError: one is not within the project, so its files would be lost.
    """
    given = _yaml((source / "dbt_project.yml").read_text(), "dbt_project.yml")
    found = []
    for key, value in given.items():
        for one in value if key.endswith("-paths") and isinstance(value, list) else ():
            found.append((source / str(one)).resolve())
            if not found[-1].is_relative_to(source):
                raise AdoptError(f"dbt_project.yml: {one} in {key} is outside of the project. Move it into it first.")
    return found


def _copy(source: Path, new: Path) -> list[str]:
    """Copy what dbt may read; return what was left out."""
    notes = []
    # dbt reads any file of its folders, and the project's may be one of them.
    reads_all = source in _paths(source)

    def left_out(folder: str, names: list[str]) -> set[str]:
        found = set()
        for name in names:
            path = Path(folder, name)
            if (
                (name.startswith(".") and name != ".dbtignore")
                or name.endswith((".duckdb", ".duckdb.wal"))
                or (path / "pyvenv.cfg").exists()
                or (Path(folder) == source and name in _LEFT_OUT)
            ) or (
                Path(folder) == source
                and path.is_file()
                and not (reads_all or path.suffix in _READ or name == ".dbtignore")
            ):
                found.add(name)
            elif path.is_symlink() and not path.resolve().is_relative_to(source):
                found.add(name)
                notes.append(f"{path.relative_to(source)}: a link to {path.resolve()}, outside of the project")
        return found

    try:
        shutil.copytree(source, new, ignore=left_out, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise AdoptError(f"The project could not be copied: {error}") from error
    return notes


def _edit(new: Path, source: Path) -> list[str]:
    """Add what the pipeline needs to the copy; return what it could not take over."""
    notes = []
    settings = new / "dbt_project.yml"
    text = settings.read_text()
    given = _yaml(text, settings.name)
    name = given.get("name")
    if name in ("warehouse", "dbt"):
        raise AdoptError(f"The project's name is {name}, which is also the pipeline's package: rename it.")
    for folder in ("target-path", "log-path", "packages-install-path", "modules-path"):
        if folder in given:  # the pipeline knows dbt's own names only
            text = re.sub(rf"^{folder}\s*:.*\n?", "", text, flags=re.MULTILINE)
    if not given.get("profile"):
        text = f"profile: {name}\n{text}"
    settings.write_text(text)
    _add_package(new)
    profile = _yaml(text, settings.name)["profile"]
    notes += _profile_notes(source, profile)
    profiles = (DBT_PROJECT / "profiles.yml").read_text()
    profiles = re.sub(r"\A[\w-]+:", f"{json.dumps(profile)}:", profiles)
    (new / "profiles.yml").write_text(profiles)
    shutil.copy(DBT_PROJECT / ".gitignore", new / ".gitignore")
    return notes


def _parse_storing_failures(new: Path, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """Have failing rows stored, if the project says nothing of it, and parse it.

    Returns:
        The manifest, and what could not be taken over.
    """
    settings, notes = new / "dbt_project.yml", []
    before = text = settings.read_text()
    given = _yaml(text, settings.name)
    tests = "data_tests" if "data_tests" in given or "tests" not in given else "tests"
    if tests not in given:
        text = f"{text.rstrip()}\n\n{tests}:\n  +store_failures: true # in the Warehouse section, and in alerts\n"
    elif not _has(given[tests], "store_failures"):
        text = re.sub(rf"^{tests}\s*:[ \t]*(#.*)?$", f"{tests}:\n  +store_failures: true", text, flags=re.MULTILINE)
        if not _has(_yaml(text, settings.name)[tests], "store_failures"):
            notes.append(f"dbt_project.yml: add `+store_failures: true` to {tests}, to see the rows that fail them")
    settings.write_text(text)
    try:
        return _parse(new, scratch), notes
    except AdoptError as error:
        if text == before or "two resources with the database representation" not in str(error):
            raise
    settings.write_text(before)
    why = "two tests would have the same table: give one of them an alias, and add `+store_failures: true`"
    return _parse(new, scratch), [f"dbt_project.yml: the rows that fail {tests} are not stored, as {why}"]


def _has(value: Any, setting: str) -> bool:
    return isinstance(value, dict) and (setting in value or f"+{setting}" in value)


def _add_package(new: Path) -> None:
    """List the pipeline's package where the project lists its own."""
    found = {name: new / name for name in ("packages.yml", "dependencies.yml") if (new / name).exists()}
    given = {name: _yaml(path.read_text(), name) for name, path in found.items()}
    name = next((name for name, value in given.items() if "packages" in value), "packages.yml")
    listed = given.get(name, {}).get("packages") or []
    for one in listed:
        if (local := one.get("local")) and not (new / local).resolve().is_relative_to(new):
            raise AdoptError(f"{name}: the package {local} is outside of the project. Move it into it first.")
    wanted = [{"local": _PACKAGE}, *listed]
    text = found[name].read_text() if name in found else ""
    indent = re.search(r"^packages\s*:[^\n]*\n(?:\s*#[^\n]*\n|\s*\n)*( *)- ", text, flags=re.MULTILINE)
    if not listed:
        text = re.sub(r"^packages\s*:.*\n?", "", text, flags=re.MULTILINE)
        text = f"{text}packages:\n  - local: {_PACKAGE}\n"
    elif indent:
        text = re.sub(r"^(packages\s*:[^\n]*)\n", rf"\1\n{indent[1]}- local: {_PACKAGE}\n", text, flags=re.MULTILINE)
    if _yaml(text, name).get("packages") != wanted:
        text = yaml.safe_dump({**given.get(name, {}), "packages": wanted}, sort_keys=False)
    (new / name).write_text(text)


def _profile_notes(source: Path, profile: str) -> list[str]:
    """Return what the project's own profile says and the warehouse's does not."""
    try:
        found = yaml.safe_load((source / "profiles.yml").read_text())[profile]["outputs"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return []
    notes = []
    for name, output in found.items():
        if output.get("type") != "duckdb":
            notes.append(f"profiles.yml, {name}: the pipeline runs on DBT_TARGET, not on {output.get('type')}")
        elif other := [key for key in output if key not in _OF_PROFILE]:
            notes.append(
                f"profiles.yml, {name}: {', '.join(other)}: add what you need to include/dbt_project/profiles.yml"
            )
    return notes


def _yaml(text: str, name: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(text) or {})
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise AdoptError(f"{name} cannot be read as YAML: {' '.join(str(error).split())}") from error


def _parse(new: Path, scratch: Path) -> dict[str, Any]:
    """Install the packages, and return the manifest."""
    options = ["--project-dir", str(new), "--profiles-dir", str(new), "--target", dbt_target()]
    written = ["--write-json", "--target-path", str(scratch / "target")]
    for command in (["deps"], ["parse", "--no-partial-parse", *written]):
        run = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "--quiet", "--log-path", str(scratch)]
        env = os.environ | {"WAREHOUSE_NAME": warehouse_name(), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
        env |= {"DBT_LOG_LEVEL_FILE": "none", "NO_COLOR": "1"}
        done = subprocess.run([*run, *command, *options], cwd=new, env=env, capture_output=True, text=True)
        if done.returncode:
            text = " ".join((done.stdout + done.stderr).replace(str(new), "the project").split())
            raise AdoptError(f"dbt {command[0]}: {text[-1500:]}")
    return dict(json.loads((scratch / "target" / "manifest.json").read_text()))


def _link_packages(new: Path) -> None:
    """Let links to packages within the project lead to where it is now."""
    packages = DBT_PROJECT / "dbt_packages"
    for link in packages.iterdir() if packages.exists() else ():
        if link.is_symlink() and (target := link.readlink()).is_relative_to(new):
            link.unlink()
            link.symlink_to(DBT_PROJECT / target.relative_to(new))


def _marts(manifest: Mapping[str, Any]) -> str:
    """Return the schema whose tables are the marts: dbt's default one, if it has a model, else that of most models."""
    name = manifest["metadata"]["project_name"]
    nodes = [one for one in manifest["nodes"].values() if one["resource_type"] in ("model", "snapshot", "seed")]
    own = [one for one in nodes if one["package_name"] == name] or nodes
    models = Counter(one["schema"] for one in own if one["resource_type"] == "model")
    found = models or Counter(one["schema"] for one in own)
    return _DEFAULT if _DEFAULT in found or not found else found.most_common(1)[0][0]


def _report(source: Path, manifest: Mapping[str, Any], notes: Sequence[str], marts: str) -> list[str]:
    """Return what was taken over, and what was not and why."""
    name = manifest["metadata"]["project_name"]
    nodes = [one for one in manifest["nodes"].values() if one["package_name"] == name]
    kinds = Counter(one["resource_type"] for one in nodes)
    kinds["unit test"] = len(manifest.get("unit_tests") or {})
    counted = ", ".join(f"{number} {kind}{'s' * (number > 1)}" for kind, number in kinds.items() if number)
    schemas = Counter(one["schema"] for one in nodes if one["resource_type"] in ("model", "seed", "snapshot"))
    lines = [f"{name} from {source} is now include/dbt_project: {counted}."]
    lines.append(
        f"Schemas: {', '.join(sorted(schemas))}. Dashboards and servers get `{marts}` (MARTS_SCHEMA in airflow.env)."
    )
    missing = [*notes, *_source_notes(manifest)]
    for one in manifest["nodes"].values():
        config = one.get("config") or {}
        if config.get("materialized") == "external":
            missing.append(f"{one['name']}: writes files, of which publish keeps no releases")
        elif config.get("database") and one["resource_type"] != "test":
            missing.append(f"{one['name']}: is built in the database {config['database']}, which publish leaves alone")
    if missing:
        lines += ["Left to do:", *(f"  - {one}" for one in missing)]
    lines.append(
        "Next: git add -A && git commit, then make run. WAREHOUSE_NAME in airflow.env names the DAG and the database."
    )
    return lines


def _source_notes(manifest: Mapping[str, Any]) -> list[str]:
    """Return how to load the sources that dbt does not read by itself."""
    graph = BuildGraph(manifest)
    wanted: dict[tuple[str, str], list[str]] = {}
    for id_, one in (manifest.get("sources") or {}).items():
        if (one.get("config") or {}).get("enabled", True) and graph.is_loaded(id_):
            wanted.setdefault((one["source_name"], one["schema"]), []).append(one["name"])
    notes = []
    for (name, schema), tables in wanted.items():
        new = schema.removesuffix("_raw") if schema.endswith("_raw") else name
        how = f"for files: make new-source FILES=... NAME={new}, which loads the schema {new}_raw"
        notes.append(f"source {name} (schema {schema}; {_few(tables)}): nothing loads it; {how}")
    return notes


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _check_checkout() -> None:
    """Refuse where git could not bring back what is replaced."""
    done = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise AdoptError(
            "This folder is no git checkout, so nothing could bring the sample back: git init, and commit."
        )
    if changed := [line[3:] for line in done.stdout.splitlines()]:
        raise AdoptError(f"There are changes that are not committed: {_few(changed)}. Commit or stash them first.")
    if guard.is_served():
        raise AdoptError("This checkout's Airflow is running: stop it first.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("project", nargs="?", help="folder of a dbt project")
    group.add_argument("--remove-sample", action="store_true", help="start empty")
    options = parser.parse_args(arguments)
    with (ROOT / "Makefile").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_checkout()
            print(*(remove_sample() if options.remove_sample else adopt(options.project)), sep="\n")
        except BlockingIOError:
            print("error: another make adopt or remove-sample is running.", file=sys.stderr)
            return 1
        except PipelineError as error:
            print(f"error: {error} Nothing was changed.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
