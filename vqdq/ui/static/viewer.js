/* The light table: slider, side by side, blink, difference, FLIP, loupe; zoom and pan for all.
   State lives on the component's root, which survives every update of what is inside. */
(() => {
  const MOST_ZOOM = 16;
  const STEP = 1.4;
  const table = (node) => node.closest(".vq-table");
  /* Gradio puts the class on a frame around the component too: the innermost one counts. */
  const innermost = (node) => node && !node.querySelector(".vq-table");
  const visible = (node) => node && node.offsetParent !== null;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const number = (root, name, usual) => Number(root.dataset[name] ?? usual);
  const modeOf = (root) => root.dataset.mode || "slider";
  const live = () => [...document.querySelectorAll(".vq-table")].find(
    (node) => innermost(node) && visible(node) && node.querySelector(".vq-image-b"));

  /* Writes an attribute only when it differs, so that the observer below comes to rest. */
  function mark(node, name, value) {
    if (node && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  function say(node, words) {
    if (node && node.textContent !== words) node.textContent = words;
  }
  function setting(root, name, value) {
    if (root.style.getPropertyValue(name) !== String(value)) root.style.setProperty(name, value);
  }

  function setMode(root, mode) {
    root.dataset.mode = mode;
    root.dataset.flipped = "false";
    root.dataset.playing = String(mode === "blink" && !calm.matches);
    sync(root);
  }

  function flip(root) {
    root.dataset.flipped = String(root.dataset.flipped !== "true");
    sync(root);
  }

  function zoom(root, factor, px = 0.5, py = 0.5) {
    if (modeOf(root) === "loupe") {
      root.dataset.lens = clamp(number(root, "lens", 4) * factor, 2, MOST_ZOOM);
    } else {
      const before = number(root, "zoom", 1);
      const after = factor === 0 ? 1 : clamp(before * factor, 1, MOST_ZOOM);
      move(root, px - (px - number(root, "x", 0)) * after / before, py - (py - number(root, "y", 0)) * after / before, after);
    }
    sync(root);
  }
  /* A place is the picture's corner in squares; the square stays covered. */
  function move(root, x, y, scale = number(root, "zoom", 1)) {
    root.dataset.zoom = scale < 1.01 ? 1 : scale;
    root.dataset.x = clamp(x, 1 - root.dataset.zoom, 0);
    root.dataset.y = clamp(y, 1 - root.dataset.zoom, 0);
    sync(root);
  }
  function lens(root, x, y) {
    root.dataset.lx = clamp(x, 0, 1);
    root.dataset.ly = clamp(y, 0, 1);
    sync(root);
  }
  function split(root, value) {
    root.dataset.split = Math.round(clamp(value, 0, 100));
    sync(root);
  }
  function choose(root, index) {
    const count = root.querySelectorAll(".vq-image-b").length;
    if (count) root.dataset.chosen = (index + count) % count;
    sync(root);
  }

  /* What the markup cannot know: pressed buttons, the divider's and the view's place. */
  function sync(root) {
    const mode = modeOf(root);
    const count = root.querySelectorAll(".vq-image-b").length;
    const chosen = count ? Math.min(number(root, "chosen", 0), count - 1) : number(root, "chosen", 0);
    mark(root, "data-chosen", String(chosen));
    document.querySelectorAll(".vq-follow").forEach((figures) => {
      if (root.closest("[role=tabpanel]") === figures.closest("[role=tabpanel]")) mark(figures, "data-chosen", String(chosen));
    });
    root.querySelectorAll(".vq-mode[data-mode]").forEach((button) => {
      mark(button, "aria-pressed", String(button.dataset.mode === mode));
    });
    root.querySelectorAll("[data-pick]").forEach((button) => {
      mark(button, "aria-pressed", String(Number(button.dataset.pick) === chosen));
    });
    mark(root.querySelector("[data-mode-pixels]"), "aria-pressed", String(root.dataset.pixels === "true"));
    const scale = number(root, "zoom", 1);
    const magnified = mode === "loupe" ? number(root, "lens", 4) : scale;
    say(root.querySelector("[data-zoom=fit]"), `${Number(magnified.toFixed(magnified < 10 ? 1 : 0))}×`);
    mark(root, "data-zoomed", String(scale > 1 && mode !== "loupe"));
    setting(root, "--vq-zoom", scale);
    setting(root, "--vq-x", number(root, "x", 0));
    setting(root, "--vq-y", number(root, "y", 0));
    setting(root, "--vq-lx", number(root, "lx", 0.5));
    setting(root, "--vq-ly", number(root, "ly", 0.5));
    setting(root, "--vq-m", number(root, "lens", 4));
    const place = root.dataset.split || "50";
    setting(root, "--vq-split", place + "%");
    const bar = root.querySelector(".vq-split");
    if (bar) {
      if (bar.value !== place) bar.value = place;
      mark(bar, "aria-valuetext", `${place} percent of the original`);
    }
    say(root.querySelector("[data-blink]"), root.dataset.playing === "true" ? "Pause" : "Play");
    say(root.querySelector("[data-shape]"), root.dataset.shape === "square" ? "Round lens" : "Square lens");
    const rate = root.querySelector("[data-rate]");
    if (rate && rate.value !== (root.dataset.rate || "2")) rate.value = root.dataset.rate || "2";
    say(root.querySelector("[data-rate-words]"), `${root.dataset.rate || "2"} a second`);
  }

  /* Blink: one timer for whatever table is on display. */
  function blink() {
    const root = live();
    if (root && modeOf(root) === "blink" && root.dataset.playing === "true" && !document.hidden) flip(root);
    setTimeout(blink, 1000 / (root ? number(root, "rate", 2) : 2));
  }
  setTimeout(blink, 500);

  document.addEventListener("input", (event) => {
    if (event.target.matches(".vq-split")) split(table(event.target), event.target.value);
    if (event.target.matches("[data-rate]")) {
      const root = table(event.target);
      root.dataset.rate = event.target.value;
      sync(root);
    }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".vq-table button");
    if (!button || button.disabled) return;
    const root = table(button);
    const data = button.dataset;
    if (data.mode) setMode(root, data.mode);
    else if (data.pick) choose(root, Number(data.pick));
    else if (data.zoom) zoom(root, { in: STEP, out: 1 / STEP, fit: 0 }[data.zoom] || (modeOf(root) === "loupe" ? 4 / number(root, "lens", 4) : 0));
    else if ("modePixels" in data) root.dataset.pixels = String(root.dataset.pixels !== "true");
    else if ("blink" in data) root.dataset.playing = String(root.dataset.playing !== "true");
    else if ("shape" in data) root.dataset.shape = root.dataset.shape === "square" ? "round" : "square";
    sync(root);
  });

  /* Pointers: one drags the divider, the view or the lens; two pinch. */
  const held = new Map();
  let drag = null;
  function at(event, pane) {
    const box = pane.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height, width: box.width };
  }
  function paneOf(event) {
    const pane = event.target.closest?.(".vq-pane");
    const root = pane && table(pane);
    return root && root.querySelector(".vq-image-b") && !event.target.closest("button, a, .vq-over") ? pane : null;
  }
  document.addEventListener("pointerdown", (event) => {
    const pane = paneOf(event);
    if (!pane || event.button !== 0) return;
    const root = table(pane);
    held.set(event.pointerId, event);
    if (held.size === 2) {
      drag = { kind: "pinch", root, pane, apart: apart(), zoom: number(root, modeOf(root) === "loupe" ? "lens" : "zoom", 1) };
      return;
    }
    const { x, y, width } = at(event, pane);
    const main = pane.matches(".vq-pane-main");
    const mode = modeOf(root);
    const near = Math.abs(x - number(root, "split", 50) / 100) * width < 24;
    const zoomed = number(root, "zoom", 1) > 1;
    const kind = mode === "loupe" ? (main ? "lens" : "none") : mode === "slider" && main && (near || !zoomed) ? "split" : "pan";
    drag = { kind, root, pane, x, y, fromX: number(root, "x", 0), fromY: number(root, "y", 0), moved: false };
    if (kind === "split" && event.pointerType === "mouse") split(root, 100 * x);
    if (kind === "lens") lens(root, x, y);
    if (kind === "pan" && zoomed) root.dataset.grabbed = "true";
    if (event.pointerType === "mouse") event.preventDefault();
  });
  function apart() {
    const [a, b] = [...held.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  }
  document.addEventListener("pointermove", (event) => {
    if (held.has(event.pointerId)) held.set(event.pointerId, event);
    if (!drag) {
      const pane = paneOf(event);
      if (pane && event.pointerType === "mouse" && pane.matches(".vq-pane-main") && modeOf(table(pane)) === "loupe") {
        const { x, y } = at(event, pane);
        lens(table(pane), x, y);
      }
      return;
    }
    const { root, pane } = drag;
    const { x, y } = at(event, pane);
    if (drag.kind === "pinch" && held.size === 2) {
      const [a, b] = [...held.values()].map((one) => at(one, pane));
      const now = number(root, modeOf(root) === "loupe" ? "lens" : "zoom", 1);
      zoom(root, drag.zoom * apart() / drag.apart / now, (a.x + b.x) / 2, (a.y + b.y) / 2);
      return;
    }
    if (Math.hypot(x - drag.x, y - drag.y) > 0.01) drag.moved = true;
    if (drag.kind === "split" && drag.moved) split(root, 100 * x);
    if (drag.kind === "lens") lens(root, x, y);
    if (drag.kind === "pan" && drag.moved) move(root, drag.fromX + x - drag.x, drag.fromY + y - drag.y);
  });
  function release(event) {
    if (!held.delete(event.pointerId) || !drag) return;
    const { root, kind, moved, pane } = drag;
    root.dataset.grabbed = "false";
    if (event.type === "pointerup" && kind === "split" && !moved) split(root, 100 * at(event, pane).x);
    if (event.type === "pointerup" && kind === "pan" && !moved && modeOf(root) === "blink" && pane.matches(".vq-pane-main")) {
      root.dataset.playing = "false";
      flip(root);
    }
    if (!held.size) drag = null;
  }
  document.addEventListener("pointerup", release);
  document.addEventListener("pointercancel", release);

  /* The wheel zooms over a picture. A page that is being scrolled passes over it undisturbed. */
  let scrolled = 0;
  document.addEventListener("scroll", () => { scrolled = performance.now(); }, { passive: true });
  document.addEventListener("wheel", (event) => {
    const pane = paneOf(event);
    if (!pane || (!event.ctrlKey && performance.now() - scrolled < 300)) return;
    const root = table(pane);
    const loupe = modeOf(root) === "loupe";
    if (!loupe && event.deltaY > 0 && number(root, "zoom", 1) === 1) return;
    event.preventDefault();
    const { x, y } = at(event, pane);
    zoom(root, Math.exp(-clamp(event.deltaY, -120, 120) / (event.ctrlKey ? 100 : 300)), x, y);
  }, { passive: false });

  /* Keys work from anywhere that does not need them itself. */
  const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", " ", "+", "=", "-", "0", "[", "]"];
  const TYPED = "input:not(.vq-split):not([type=range]):not([type=checkbox]):not([type=radio])";
  function busy(target, key) {
    if (target.closest(`${TYPED}, textarea, select, [contenteditable], [role=listbox], dialog[open]`)) return true;
    const own = key.startsWith("Arrow") ? "input:not(.vq-split), [role=tab], [role=radiogroup], [popover]" : key === " " ? "button, a, summary, label, input:not(.vq-split)" : "";
    return own !== "" && target.closest(own) !== null;
  }
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.altKey || event.ctrlKey || event.metaKey || !KEYS.includes(key) || busy(target, key)) return;
    const root = live();
    if (!root) return;
    const mode = modeOf(root);
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const engaged = root.contains(document.activeElement) || root.matches(":hover");
    if (steps && steps[1] && !(engaged && (mode === "loupe" || number(root, "zoom", 1) > 1))) return;
    if (target.matches(".vq-split") && steps && !steps[1] && !event.shiftKey) return;
    event.preventDefault();
    if (key === " ") {
      if (mode !== "blink") setMode(root, "blink");
      root.dataset.playing = "false";
      flip(root);
    } else if (key === "[" || key === "]") choose(root, number(root, "chosen", 0) + (key === "]" ? 1 : -1));
    else if (key === "0") zoom(root, mode === "loupe" ? 4 / number(root, "lens", 4) : 0);
    else if (!steps) zoom(root, key === "-" ? 1 / STEP : STEP);
    else if (mode === "loupe") lens(root, number(root, "lx", 0.5) + 0.02 * steps[0], number(root, "ly", 0.5) + 0.02 * steps[1]);
    else if (number(root, "zoom", 1) > 1 && (steps[1] || event.shiftKey || mode !== "slider")) {
      move(root, number(root, "x", 0) - 0.1 * steps[0], number(root, "y", 0) - 0.1 * steps[1]);
    } else {
      if (mode !== "slider") setMode(root, "slider");
      split(root, number(root, "split", 50) + 2 * steps[0]);
    }
  });

  /* What a number means opens beside its name. */
  document.addEventListener("toggle", (event) => {
    const tip = event.target;
    if (event.newState !== "open" || !tip.matches?.(".vq-tip")) return;
    const box = document.querySelector(`[popovertarget="${tip.id}"]`).getBoundingClientRect();
    tip.style.left = `${clamp(box.left, 8, innerWidth - tip.offsetWidth - 8)}px`;
    const below = box.bottom + 4;
    tip.style.top = `${below + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 4 : below}px`;
  }, true);

  /* A new comparison replaces the markup: put the marks back. */
  new MutationObserver((changes) => {
    const roots = new Set();
    for (const change of changes) {
      const node = change.target.nodeType === 1 ? change.target : change.target.parentElement;
      const root = node && node.closest(".vq-table");
      if (root) roots.add(root);
      for (const added of change.addedNodes) {
        if (added.nodeType !== 1) continue;
        if (added.matches(".vq-table")) roots.add(added);
        added.querySelectorAll(".vq-table").forEach((found) => roots.add(found));
      }
    }
    roots.forEach((root) => {
      if (!innermost(root)) return;
      if (!root.dataset.mode) root.dataset.mode = "slider";
      sync(root);
    });
  }).observe(document.documentElement, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["src", "aria-pressed"],
  });
})();
