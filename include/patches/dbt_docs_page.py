"""dbt's documentation page without its requests for files that don't exist.

What: two pieces of the page's HTML.
Why: its templates request their URLs before they are filled in: three requests that always fail.
Reported: no.
Since: dbt-core 1.11.
Remove once the page has neither; `without_failing_requests` then returns it as it is.
"""

ICON = '<link rel="shortcut icon" href="${require(\'./assets/favicons/favicon.ico\')}"/>'
UNFILLED = 'xlink:href="{{ getIcon('


def without_failing_requests(page: str) -> str:
    """Return the page's HTML with an icon less, and images that are requested once their URL is known."""
    return page.replace(ICON, "").replace(UNFILLED, f"ng-attr-{UNFILLED}")
