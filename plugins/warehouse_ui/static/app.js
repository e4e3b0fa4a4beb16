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

  // Whoever types, or has opened something, must not lose it.
  function inUse(part) {
    const active = document.activeElement;
    const fields = [...part.querySelectorAll("input:not([type=hidden]), textarea")];
    return (
      (active !== part && part.contains(active)) ||
      part.querySelector("details[open]:not([data-open])") ||
      fields.some((one) => one.value !== one.defaultValue) ||
      !window.getSelection().isCollapsed
    );
  }

  // What is computed in the background, and what a run changes, come without a reload, which would lose the place on the page.
  function refresh() {
    const waiting = [...document.querySelectorAll("[data-running]")];
    if (!waiting.length) return;
    const seconds = Math.min(...waiting.map((one) => Number(one.dataset.running)));
    setTimeout(async () => {
      const answer = document.hidden ? null : await fetch(window.location.href, { headers: { Accept: "text/html" } }).catch(() => null);
      if (answer && answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of waiting) {
          const found = page.getElementById(part.id);
          if (!found || inUse(part)) continue;
          part.replaceChildren(...[...found.childNodes].map((one) => document.importNode(one, true)));
          if (!found.dataset.running) delete part.dataset.running;
        }
      }
      refresh();
    }, 1000 * seconds);
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
    refresh();
    const answered = document.querySelector("form[data-address]");
    if (answered) window.history.replaceState(null, "", answered.dataset.address);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button[data-insert]");
    const sql = document.querySelector("textarea[name=sql]");
    if (!button || !sql) return;
    const before = sql.value.slice(0, sql.selectionStart);
    const space = before && !/[\s(.]$/.test(before) ? " " : "";
    sql.setRangeText(space + button.dataset.insert, sql.selectionStart, sql.selectionEnd, "end");
    sql.focus();
  });

  document.addEventListener("input", (event) => {
    const id = event.target.dataset && event.target.dataset.filter;
    if (!id) return;
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(id).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });

  // A download leaves the page as it is, so only an answer is waited for.
  document.addEventListener("submit", (event) => {
    const busy = event.target.querySelector("[data-busy]");
    if (busy && !(event.submitter && event.submitter.hasAttribute("formaction"))) busy.hidden = false;
  });
  window.addEventListener("pageshow", () => document.querySelectorAll("[data-busy]").forEach((one) => (one.hidden = true)));

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea[name=sql]")) {
      event.target.form.requestSubmit(event.target.form.querySelector("button.primary"));
    }
  });
})();
