"""Compile a template's text once in a process that runs several dbt commands.

What: dbt's Jinja environments keep what `compile` made of a text.
Why: dbt keeps the compiled text of macros only. Hooks, the comment of each query and profiles.yml are compiled again in
    each command.
Reported: no; a process runs one command in dbt.
Since: dbt-common 1.39.
Remove once dbt keeps them.
"""

from typing import Any

from dbt_common.clients.jinja import MacroFuzzEnvironment

from include.patches import fits

_MOST = 1000


def apply() -> None:
    """Change dbt in this process."""
    compile_text = MacroFuzzEnvironment.compile
    if not fits(compile_text, "self", "source", "name", "filename", "raw", "defer_init"):
        return
    kept: dict[tuple[type, str], Any] = {}

    def compile_once(self: MacroFuzzEnvironment, source: Any, *words: Any, **options: Any) -> Any:
        if words or options or not isinstance(source, str):
            return compile_text(self, source, *words, **options)
        key = (type(self), source)  # all of a class have the same extensions and filters
        if key not in kept:
            if len(kept) >= _MOST:
                kept.clear()
            kept[key] = compile_text(self, source)
        return kept[key]

    MacroFuzzEnvironment.compile = compile_once  # type: ignore[method-assign, assignment]
