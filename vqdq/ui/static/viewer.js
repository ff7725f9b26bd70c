/* The light table: slider, side by side, flip, difference, pixels.
   State lives on the component's root, which survives every update of what is inside. */
(() => {
  const MODES = ["slider", "side", "flip", "difference"];
  const table = (node) => node.closest(".vq-table");
  /* Gradio puts the class on a frame around the component too: the innermost one counts. */
  const innermost = (node) => node && !node.querySelector(".vq-table");
  const visible = (node) => node && node.offsetParent !== null;

  /* Writes an attribute only when it differs, so that the observer below comes to rest. */
  function mark(node, name, value) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }

  function setMode(root, mode) {
    root.dataset.mode = mode;
    root.dataset.flipped = "false";
    sync(root);
  }

  function flip(root) {
    if (root.dataset.mode !== "flip") setMode(root, "flip");
    root.dataset.flipped = root.dataset.flipped === "true" ? "false" : "true";
    sync(root);
  }

  /* What the markup cannot know: pressed buttons and the divider's place. */
  function sync(root) {
    const mode = root.dataset.mode || "slider";
    root.querySelectorAll(".vq-mode[data-mode]").forEach((button) => {
      mark(button, "aria-pressed", String(button.dataset.mode === mode));
    });
    const pixels = root.querySelector("[data-mode-pixels]");
    if (pixels) mark(pixels, "aria-pressed", String(root.dataset.pixels === "true"));
    const split = root.querySelector(".vq-split");
    if (split) {
      const place = root.dataset.split || "50";
      if (split.value !== place) split.value = place;
      root.style.setProperty("--vq-split", place + "%");
      mark(split, "aria-valuetext", `${place} percent of the original`);
    }
  }

  document.addEventListener("input", (event) => {
    if (!event.target.matches(".vq-split")) return;
    const root = table(event.target);
    root.dataset.split = event.target.value;
    root.style.setProperty("--vq-split", event.target.value + "%");
    event.target.setAttribute("aria-valuetext", `${event.target.value} percent of the original`);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".vq-mode");
    if (button) {
      const root = table(button);
      if (button.dataset.mode) setMode(root, button.dataset.mode);
      else {
        root.dataset.pixels = root.dataset.pixels === "true" ? "false" : "true";
        sync(root);
      }
      return;
    }
    const pane = event.target.closest(".vq-pane-main");
    if (pane && table(pane)?.dataset.mode === "flip") flip(table(pane));
  });

  /* Arrow keys move the divider and Space flips from anywhere that does not need those keys itself. */
  function busy(target) {
    return target.closest("input:not(.vq-split), textarea, select, [contenteditable], [role=listbox], [role=radiogroup], dialog[open]");
  }
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (!["ArrowLeft", "ArrowRight", " "].includes(event.key)) return;
    const target = event.target;
    if (busy(target)) return;
    if (target.closest("[role=tab]")) return;
    if (event.key === " " && target.closest("button, a, summary")) return;
    const root = [...document.querySelectorAll(".vq-table")].find(
      (node) => innermost(node) && visible(node) && node.querySelector(".vq-image-b"));
    if (!root) return;
    if (event.key === " ") {
      event.preventDefault();
      flip(root);
      return;
    }
    const split = root.querySelector(".vq-split");
    if (target === split) return;
    event.preventDefault();
    if (root.dataset.mode !== "slider") setMode(root, "slider");
    split.value = Number(split.value) + (event.key === "ArrowLeft" ? -2 : 2);
    split.dispatchEvent(new Event("input", { bubbles: true }));
  });

  /* A new comparison replaces the markup: put the marks back. */
  new MutationObserver((changes) => {
    const roots = new Set();
    for (const change of changes) {
      const node = change.target.nodeType === 1 ? change.target : change.target.parentElement;
      const root = node && (node.closest(".vq-table") || null);
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
