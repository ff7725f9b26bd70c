/* The page itself: light and dark, keys, help, the window's title, links that keep their settings. */
(() => {
  const STORE = "vqdq-theme";
  const asked = new URLSearchParams(location.search).get("__theme");
  const read = () => { try { return localStorage.getItem(STORE); } catch { return null; } };

  function paint(mode) {
    if (document.body) document.body.classList.toggle("dark", mode === "dark");
  }
  function wanted() {
    if (asked === "dark" || asked === "light") return asked;
    return read() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  }
  let mode = wanted();

  function toggle() {
    mode = document.body.classList.contains("dark") ? "light" : "dark";
    try { localStorage.setItem(STORE, mode); } catch { /* private window: not remembered */ }
    paint(mode);
  }

  const help = () => document.querySelector("dialog.vq-help");
  const tabs = () => [...document.querySelectorAll("#vq-tabs [role=tab]")].filter((tab) => tab.offsetParent);

  function copy(text, button) {
    const said = button.textContent;
    navigator.clipboard.writeText(text).then(
      () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = said; }, 1200); },
      () => { window.prompt("Copy this:", text); });
  }

  /* Details that a person opened stay open when the history is brought up to date. */
  const opened = new Set();
  const keyOf = (details) => details.closest("[data-run-row]").dataset.runRow;
  function remember(details) {
    if (details.open) opened.delete(keyOf(details)); else opened.add(keyOf(details));
  }
  function reopen() {
    document.querySelectorAll("#vq-history details").forEach((details) => {
      if (details.open !== opened.has(keyOf(details))) details.open = !details.open;
    });
  }

  /* The first press arms a button that destroys something; it rests again after four seconds. */
  function confirm(button) {
    if (button.dataset.act) return;
    const said = button.textContent;
    button.dataset.act = button.dataset.confirm;
    button.textContent = button.dataset.sure;
    button.classList.add("vq-button-danger");
    setTimeout(() => {
      delete button.dataset.act;
      button.textContent = said;
      button.classList.remove("vq-button-danger");
    }, 4000);
  }

  document.addEventListener("click", (event) => {
    const target = event.target;
    if (target.closest("[data-theme-toggle]")) toggle();
    else if (target.closest("[data-help-open]")) help()?.showModal();
    else if (target.closest("[data-help-close]")) help()?.close();
    else if (target === help()) help().close();
    const sure = target.closest("[data-confirm]");
    if (sure) confirm(sure);
    const summary = target.closest("#vq-history summary");
    if (summary) remember(summary.parentElement);
    const copier = target.closest("[data-copy]");
    if (copier) copy(copier.dataset.copy, copier);
    const word = target.closest("[data-word]");
    if (word) insert(word.dataset.word);
    const whole = target.closest("[data-prompt]");
    if (whole) write(whole.dataset.prompt);
  });

  /* Words of the demo model: a click types them into the prompt. */
  const prompt = () => document.querySelector("#vq-prompt textarea");
  function write(text) {
    const field = prompt();
    if (!field) return;
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  }
  function insert(word) {
    const field = prompt();
    if (!field) return;
    const start = field.selectionStart ?? field.value.length;
    const end = field.selectionEnd ?? start;
    /* A click on a word of the same kind replaces the word under the cursor's selection only. */
    const before = field.value.slice(0, start).replace(/\s*$/, "");
    const after = field.value.slice(end).replace(/^\s*/, "");
    field.value = [before, word, after].filter(Boolean).join(" ");
    const place = (before ? before.length + 1 : 0) + word.length;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
    field.setSelectionRange(place, place);
  }

  /* A link that works tomorrow: the tab and the run are in the address. */
  function link(name, value) {
    const url = new URL(location.href);
    if (value) url.searchParams.set(name, value); else url.searchParams.delete(name);
    history.replaceState(history.state, "", url);
  }

  let settings = null;
  function keep(wanted) {
    const url = new URL(location.href);
    ["recipe", "rules", "seed", "calibrate", "finetune", "attention", "ranges", "also", "target", "model"].forEach((name) => url.searchParams.delete(name));
    new URLSearchParams(wanted).forEach((value, name) => url.searchParams.set(name, value));
    if (url.href !== location.href) history.replaceState(history.state, "", url);
  }

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target.closest("input:not([type=range]):not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]")) return;
    if (event.key === "?") { event.preventDefault(); help()?.showModal(); return; }
    if (help()?.open) return;
    if (/^[1-6]$/.test(event.key)) {
      const tab = tabs()[Number(event.key) - 1];
      if (tab) { event.preventDefault(); tab.click(); }
    }
  });

  /* The server was closed: say it once, wait for it, and come back by itself. */
  let lost = false;
  let leaving = false;
  window.addEventListener("beforeunload", () => { leaving = true; });
  function watchServer() {
    if (lost || leaving || ![...document.querySelectorAll(".toast-body")].some(
      (toast) => /Connection (errored out|to the server was lost)/.test(toast.textContent))) return;
    lost = true;
    document.body.classList.add("vq-lost");
    const banner = document.createElement("p");
    banner.className = "vq-banner";
    banner.setAttribute("role", "alert");
    banner.textContent = "The studio was closed. Start it again and this page comes back by itself.";
    document.querySelector(".gradio-container").append(banner);
    setInterval(() => {
      fetch("config", { cache: "no-store" }).then((answer) => { if (answer.ok) location.reload(); }, () => {});
    }, 2000);
  }

  /* What arrives in the markup and belongs elsewhere: the title and the run in the address. */
  function gather() {
    watchServer();
    reopen();
    const pill = document.querySelector(".vq-pill[data-title]");
    if (pill && document.title !== pill.dataset.title) document.title = pill.dataset.title;
    const linked = document.querySelector("[data-link]");
    if (pill && linked && linked.dataset.link !== settings) keep(settings = linked.dataset.link);
    const tab = document.querySelector("#vq-tabs [role=tab][aria-selected=true]");
    const open = tab ? tab.textContent.trim().toLowerCase().split(" ")[0] : "";
    if (pill && open && open !== (new URLSearchParams(location.search).get("tab") || "compress")) link("tab", open);
    const shown = [...document.querySelectorAll("[data-shown-run]")].find((one) => one.offsetParent);
    const run = shown ? shown.dataset.shownRun : "";
    if ((new URLSearchParams(location.search).get("run") || "") !== run && shown) link("run", run);
  }
  new MutationObserver(gather).observe(document.documentElement, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["data-title", "data-shown-run", "data-link", "data-run-row", "aria-selected"],
  });

  /* Gradio paints the mode itself when it starts: ours is applied again right after. */
  const start = () => {
    paint(mode);
    const ready = new MutationObserver(() => {
      const dark = document.body.classList.contains("dark");
      if (dark !== (mode === "dark")) paint(mode);
    });
    ready.observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };
  if (document.body) start(); else document.addEventListener("DOMContentLoaded", start);
})();
