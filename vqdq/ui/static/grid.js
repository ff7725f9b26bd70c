/* The grid: finished cells go to their places, arrow keys move between them, one cell is shown large. */
(() => {
  const table = () => document.getElementById("vq-grid-table");
  const large = () => document.querySelector("dialog.vq-cell-large");
  const cells = () => [...(table()?.querySelectorAll("tbody td") || [])];
  let wanted = "";   /* key of the cell that a person asked to see large */
  let focused = -1;  /* place of the cell that has the keys */
  let scrolled = { run: "", left: 0, top: 0 };
  let saved = "";

  /* Only what differs is written: a cell that is there already keeps its picture and its focus. */
  const written = new WeakMap();
  let seen = ["", null];
  function arrive() {
    const state = document.querySelector("[data-grid-arrivals]");
    const shown = table()?.querySelector("[data-shown-run]");
    if (!state || !shown || (seen[0] === state.dataset.gridArrivals && seen[1] === shown)) return;
    seen = [state.dataset.gridArrivals, shown];
    const known = JSON.parse(state.dataset.gridArrivals);
    if (known.run !== shown.dataset.shownRun) return;
    for (const td of cells()) {
      const content = known.cells[td.dataset.key];
      if (content === undefined || written.get(td) === content) continue;
      written.set(td, content);
      const fresh = document.createElement("template");
      fresh.innerHTML = content;
      if (td.firstElementChild?.isEqualNode(fresh.content.firstElementChild)) continue;
      td.replaceChildren(fresh.content);
    }
  }

  /* The table is sent anew when the grid ends: it stays where it was scrolled to. */
  document.addEventListener("scroll", (event) => {
    if (!event.target.classList?.contains("vq-grid-frame")) return;
    const run = event.target.closest("[data-shown-run]").dataset.shownRun;
    scrolled = { run, left: event.target.scrollLeft, top: event.target.scrollTop };
  }, true);
  function settle() {
    const frame = table()?.querySelector(".vq-grid-frame:not([data-settled])");
    if (!frame) return;
    frame.dataset.settled = "true";
    if (frame.closest("[data-shown-run]").dataset.shownRun !== scrolled.run) return;
    frame.scrollLeft = scrolled.left;
    frame.scrollTop = scrolled.top;
  }

  function present() {
    const dialog = large();
    if (!dialog || dialog.open || !wanted || dialog.dataset.key !== wanted) return;
    dialog.showModal();
    dialog.querySelector("[data-cell-close]").focus({ preventScroll: true });
  }
  function close() {
    wanted = "";
    large()?.close();
    cells()[focused]?.querySelector("button.vq-cell")?.focus();
  }

  /* A link that was just made is followed once: the browser saves the file. */
  function save() {
    const link = document.querySelector("#vq-grid-tools [data-save-now]");
    if (!link || link.dataset.saveNow === saved) return;
    saved = link.dataset.saveNow;
    link.click();
  }

  /* From one cell to the next with a picture in that direction. */
  function next(from, key) {
    const all = cells();
    const columns = all.length ? all[0].parentElement.querySelectorAll("td").length : 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    for (let at = from + step; at >= 0 && at < all.length; at += step) {
      if (Math.abs(step) === 1 && Math.floor(at / columns) !== Math.floor(from / columns)) return null;
      const button = all[at].querySelector("button.vq-cell");
      if (button) return button;
    }
    return null;
  }
  const placeOf = (button) => cells().indexOf(button.closest("td"));

  document.addEventListener("focusin", (event) => {
    const button = event.target.closest?.("button.vq-cell");
    if (button) focused = placeOf(button);
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !event.key.startsWith("Arrow")) return;
    const dialog = event.target.closest("dialog.vq-cell-large");
    const button = event.target.closest("button.vq-cell");
    if ((!dialog && !button) || event.target.matches("input")) return;
    event.preventDefault();
    event.stopPropagation();
    const goal = next(dialog ? focused : placeOf(button), event.key);
    if (!goal) return;
    if (!dialog) { goal.focus(); return; }
    focused = placeOf(goal);
    goal.click();
  }, true);

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.vq-cell");
    if (button) {
      wanted = button.dataset.key;
      focused = placeOf(button);
      present();
      return;
    }
    if (event.target.closest("[data-cell-close]") || event.target === large()) close();
    const duel = event.target.closest("[data-duel]");
    if (duel) {
      const on = duel.getAttribute("aria-pressed") !== "true";
      duel.setAttribute("aria-pressed", String(on));
      const pane = duel.closest("dialog").querySelector(".vq-duel");
      pane.dataset.on = String(on);
      if (on) pane.querySelector("input").focus();
    }
  });
  document.addEventListener("cancel", (event) => {
    if (event.target === large()) { event.preventDefault(); close(); }
  }, true);
  document.addEventListener("input", (event) => {
    if (event.target.matches(".vq-duel-split")) {
      event.target.parentElement.style.setProperty("--vq-split", `${event.target.value}%`);
    }
  });

  new MutationObserver(() => { arrive(); settle(); present(); save(); }).observe(
    document.documentElement,
    { childList: true, subtree: true, attributes: true, attributeFilter: ["data-grid-arrivals"] });
})();
