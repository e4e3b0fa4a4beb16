// Follows Airflow's theme as it changes; links to Airflow's pages open outside the frame that shows this page.
"use strict";
(() => {
  const root = document.documentElement;
  const framed = window.parent !== window;

  function airflow() {
    try {
      return framed && window.parent.document ? window.parent : window;
    } catch {
      return window; // framed by another site, which the CSP forbids
    }
  }

  function follow() {
    const outer = airflow();
    let theme = outer === window ? null : ["dark", "light"].find((one) => outer.document.documentElement.classList.contains(one));
    try {
      theme = theme || window.localStorage.getItem("theme");
    } catch {
      // no storage: fall back to the system's theme
    }
    if (theme !== "dark" && theme !== "light") {
      theme = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    }
    root.dataset.theme = theme;
  }

  follow();
  window.addEventListener("storage", follow);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", follow);
  if (airflow() !== window) {
    new MutationObserver(follow).observe(airflow().document.documentElement, { attributes: true, attributeFilter: ["class"] });
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-airflow]");
    const outer = airflow();
    if (!link || outer === window || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const opener = outer.document.createElement("a");
    opener.href = link.href;
    outer.document.body.append(opener);
    opener.click();
    opener.remove();
  });

  document.addEventListener("DOMContentLoaded", () => {
    if (document.querySelector("[data-running]")) setTimeout(() => window.location.reload(), 2000);
    const sql = document.querySelector("form[data-answered] textarea[name=sql]");
    if (sql && sql.value.length < 8000) window.history.replaceState(null, "", `${window.location.pathname}?sql=${encodeURIComponent(sql.value)}`);
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea[name=sql]")) {
      event.target.form.requestSubmit(event.target.form.querySelector("button.primary"));
    }
  });
})();
