/* Inspect: cells of the map under the pointer and the arrow keys, parts drawn when they are seen, files, focus that stays. */
(() => {
  const inside = (element) => element && element.closest && element.closest(".vq-inspect");
  const phone = matchMedia("(max-width: 720px)");

  /* The map: which cell is meant, and its value in the line below. */
  const known = new WeakMap();
  function cells(grid) {
    if (!known.has(grid)) known.set(grid, JSON.parse(grid.parentElement.querySelector("[data-cells]").dataset.cells));
    return known.get(grid);
  }
  const minus = (text) => text.replace("-", "−");
  function digits(value) {
    if (value === null) return "not recorded";
    if (value === 0) return "0";
    const places = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
    return minus(value.toLocaleString("en-US", { minimumFractionDigits: Math.min(places, 6), maximumFractionDigits: Math.min(places, 6) }));
  }
  function point(grid, row, column) {
    const { layers, values, label } = cells(grid);
    row = Math.max(0, Math.min(layers.length - 1, row));
    column = Math.max(0, Math.min(values[0].length - 1, column));
    Object.assign(grid.dataset, { row, step: column, layer: layers[row] });
    const focus = grid.querySelector(".vq-map-focus");
    focus.hidden = false;
    focus.style.setProperty("--row", row);
    focus.style.setProperty("--column", column);
    const read = document.getElementById("vq-map-read");
    read.textContent = `${layers[row]} · step ${column + 1} · ${digits(values[row][column])} · ${label}`;
  }
  function under(grid, event) {
    const box = grid.getBoundingClientRect();
    const { layers, values } = cells(grid);
    const part = (at, from, size) => Math.min(0.9999, Math.max(0, (at - from) / size));
    point(grid, Math.floor(part(event.clientY, box.top, box.height) * layers.length),
      Math.floor(part(event.clientX, box.left, box.width) * values[0].length));
  }
  const gridOf = (event) => event.target.closest && event.target.closest(".vq-map-grid");
  document.addEventListener("pointermove", (event) => { const grid = gridOf(event); if (grid) under(grid, event); });
  document.addEventListener("focusin", (event) => {
    const grid = gridOf(event);
    if (grid && grid.matches(":focus-visible")) point(grid, Number(grid.dataset.row), Number(grid.dataset.step));
  });
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0] };
  document.addEventListener("keydown", (event) => {
    const grid = gridOf(event), move = MOVES[event.key];
    if (!grid || !move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    point(grid, Number(grid.dataset.row) + move[0], Number(grid.dataset.step) + move[1]);
  }, true);

  /* Before a click is sent: the cell that was hit, and the colours of the page for a file. */
  document.addEventListener("click", (event) => {
    const grid = gridOf(event);
    if (grid) {
      if (event.detail > 0) under(grid, event);
      reveal("layer");
    }
    const file = event.target.closest && event.target.closest("[data-act=save]");
    if (file) file.dataset.dark = String(document.body.classList.contains("dark"));
    const anchor = event.target.closest && event.target.closest(".vq-anchors a");
    if (anchor) {
      event.preventDefault();
      reveal(anchor.dataset.section);
    }
  }, true);
  let travelling = 0;
  addEventListener("scrollend", () => { travelling = 0; });
  function reveal(name) {
    const section = document.getElementById(`vq-at-${name}`);
    if (!section) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    travelling = performance.now() + 1500;
    section.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }

  /* A part is drawn when it comes near the window. */
  const seen = new Set();
  let asked = 0;
  function want() {
    if (performance.now() < travelling) { setTimeout(want, 200); return; }  // not what is passed by
    const part = [...document.querySelectorAll(".vq-inspect .vq-waiting")].find((each) => seen.has(each));
    if (!part || performance.now() < asked) return;
    asked = performance.now() + 4000;  // one at a time: two clicks at once would undo each other
    part.querySelector("[data-act=want]").click();
    setTimeout(want, 4100);
  }
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) seen.add(target); else seen.delete(target);
    }
    want();
  }, { rootMargin: "160px 0px" });

  /* Which part is in sight, for the row of anchors. */
  function locate() {
    const links = [...document.querySelectorAll(".vq-anchors a")];
    if (!links.length || !links[0].offsetParent) return;
    let now = links[0];
    for (const link of links) {
      const section = document.getElementById(`vq-at-${link.dataset.section}`);
      if (section && section.getBoundingClientRect().top < innerHeight / 3) now = link;
    }
    for (const link of links) link.setAttribute("aria-current", String(link === now));
  }
  addEventListener("scroll", () => requestAnimationFrame(locate), { passive: true });

  /* Markup that arrives again takes the focus back that it had. */
  let held = null;
  document.addEventListener("focusin", (event) => {
    const button = inside(event.target) && event.target.closest("[data-act]");
    const region = button && button.closest("[id^=vq-inspect-]");
    held = region && { region: region.id, data: { ...button.dataset } };
  });
  document.addEventListener("pointerdown", (event) => { if (!inside(event.target)) held = null; });
  const CHANGING = new Set(["dark", "row", "layer", "step", "run"]);
  function refocus() {
    if (!held || document.activeElement !== document.body) return;
    const region = document.getElementById(held.region);
    const same = (button) => Object.entries(held.data).every(([key, value]) => CHANGING.has(key) || button.dataset[key] === value);
    const again = region && [...region.querySelectorAll(`[data-act="${held.data.act}"]`)].find(same);
    if (again) again.focus({ preventScroll: true });
  }

  /* The server says once that a file lies ready. */
  let fetched = "";
  function fetchFile() {
    const link = document.querySelector("#vq-inspect-fetched a[data-fetch]");
    if (!link || link.dataset.fetch === fetched) return;
    fetched = link.dataset.fetch;
    link.click();
  }

  /* The server is told when the page is as narrow as a phone, once and when that changes. */
  let told = false;
  function tell() {
    const button = document.querySelector("#vq-inspect-bar [data-act=narrow]");
    if (!button || told === phone.matches) return;
    told = phone.matches;
    button.dataset.value = String(told);
    button.click();
  }
  phone.addEventListener("change", tell);

  let waiting = false, left = 0;
  function settle() {
    waiting = false;
    const parts = document.querySelectorAll(".vq-inspect .vq-waiting");
    parts.forEach((part) => near.observe(part));
    if (parts.length !== left) { left = parts.length; asked = 0; }  // what was asked for is here
    want();
    tell();
    fetchFile();
    refocus();
    locate();
  }
  new MutationObserver((changes) => {
    if (waiting || !changes.some((change) => inside(change.target))) return;
    waiting = true;
    requestAnimationFrame(settle);
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
