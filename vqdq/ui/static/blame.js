/* Blame: a rectangle on the picture, drawn with a pointer or moved with the arrow keys; files. */
(() => {
  const LEAST = 0.04;  /* of the picture: what is smaller was a click */
  const START = [0.25, 0.25, 0.75, 0.75];
  const limit = (value, low, high) => Math.max(low, Math.min(high, value));
  const percent = (value) => `${Math.round(100 * value)} %`;
  const stageOf = (element) => element && element.closest && element.closest(".vq-blame-stage");
  const read = (stage) => stage.dataset.region ? stage.dataset.region.split(",").map(Number) : null;

  /* Everything that shows the region follows from data-region; the button carries it to the server. */
  function show(stage, region) {
    stage.dataset.region = region ? region.map((value) => value.toFixed(4)).join(",") : "";
    paint(stage);
  }
  function paint(stage) {
    const region = read(stage);
    stage.dataset.on = region ? "region" : "whole";
    const button = stage.querySelector("[data-act=blame]");
    if (button) button.dataset.region = stage.dataset.region;
    stage.querySelectorAll("[data-where]").forEach((pick) => {
      pick.setAttribute("aria-pressed", String(pick.dataset.where === stage.dataset.on));
    });
    const [left, top, right, bottom] = region || [0, 0, 1, 1];
    const sides = { left, top, width: right - left, height: bottom - top };
    Object.entries(sides).forEach(([name, value]) => stage.style.setProperty(`--vq-${name}`, `${100 * value}%`));
    const words = stage.querySelector(".vq-blame-words");
    const said = region
      ? `From ${percent(left)} to ${percent(right)} across and ${percent(top)} to ${percent(bottom)} down. Arrow keys move it, Shift sizes it.`
      : "Drag over the part that looks wrong, or take the whole picture.";
    if (words && words.textContent !== said) words.textContent = said;
    const box = stage.querySelector("button.vq-blame-box");
    if (box) box.setAttribute("aria-label", region ? `The marked region: ${percent(left)} to ${percent(right)} across, ${percent(top)} to ${percent(bottom)} down` : "The marked region: none");
  }

  let drag = null;
  const at = (pane, event) => {
    const box = pane.getBoundingClientRect();
    return [limit((event.clientX - box.left) / box.width, 0, 1), limit((event.clientY - box.top) / box.height, 0, 1)];
  };
  document.addEventListener("pointerdown", (event) => {
    const pane = event.target.closest && event.target.closest(".vq-blame-pane");
    const stage = stageOf(pane);
    if (!stage || event.button !== 0) return;
    if (event.pointerType !== "mouse" && stage.dataset.on !== "region") return;  /* a finger scrolls */
    const held = read(stage), from = at(pane, event);
    const inside = held && from[0] > held[0] && from[0] < held[2] && from[1] > held[1] && from[1] < held[3];
    drag = { stage, pane, from, held, moving: Boolean(inside), pointer: event.pointerId };
    pane.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.pointer) return;
    const to = at(drag.pane, event), { from, held } = drag;
    if (drag.moving) {
      show(drag.stage, moved(held, to[0] - from[0], to[1] - from[1]));
    } else {
      const region = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
      if (region[2] - region[0] > LEAST && region[3] - region[1] > LEAST) show(drag.stage, region);
    }
  });
  function end(event) {
    if (!drag || event.pointerId !== drag.pointer) return;
    const box = read(drag.stage) && drag.stage.querySelector("button.vq-blame-box");
    if (box) box.focus({ preventScroll: true });
    drag = null;
  }
  document.addEventListener("pointerup", end);
  document.addEventListener("pointercancel", end);

  function moved([left, top, right, bottom], across, down) {
    const x = limit(across, -left, 1 - right), y = limit(down, -top, 1 - bottom);
    return [left + x, top + y, right + x, bottom + y];
  }
  function sized([left, top, right, bottom], across, down) {
    return [left, top, limit(right + across, left + LEAST, 1), limit(bottom + down, top + LEAST, 1)];
  }
  const KEYS = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] };
  document.addEventListener("keydown", (event) => {
    const box = event.target.closest && event.target.closest("button.vq-blame-box");
    const stage = stageOf(box);
    if (!stage || event.ctrlKey || event.metaKey || event.altKey) return;
    const held = read(stage), key = KEYS[event.key];
    if (!held || !(key || event.key === "Escape")) return;
    event.preventDefault();
    event.stopPropagation();
    if (key) return show(stage, (event.shiftKey ? sized : moved)(held, ...key));
    show(stage, null);
    stage.querySelector("[data-where=whole]").focus();
  }, true);

  document.addEventListener("click", (event) => {
    const pick = event.target.closest && event.target.closest("[data-where]");
    const stage = stageOf(pick);
    if (stage) {
      show(stage, pick.dataset.where === "region" ? read(stage) || START : null);
      if (read(stage)) stage.querySelector("button.vq-blame-box").focus({ preventScroll: true });
    }
    const file = event.target.closest && event.target.closest("#vq-inspect-blame-result [data-act=save]");
    if (file) file.dataset.dark = String(document.body.classList.contains("dark"));
    if (event.target.closest && event.target.closest("#vq-inspect-blame-result [data-act=layer]")) reveal();
  }, true);

  /* "Open" leads to the layer above. */
  function reveal() {
    const section = document.getElementById("vq-at-layer");
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (section) section.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }

  /* A stage that arrives, or that the server wrote anew, is painted; a ready file is fetched once. */
  let fetched = "", told = null;
  const phone = matchMedia("(max-width: 720px)");
  function tell() {  /* the width of the window, where no recording above tells it */
    const figure = document.querySelector(".vq-blame-result .vq-figure[data-narrow]");
    const button = document.querySelector(".vq-blame-result [data-act=narrow]");
    if (!figure || !button || document.querySelector("#vq-inspect-bar [data-act=narrow]")) return;
    if (figure.dataset.narrow === String(phone.matches) || told === phone.matches) return;
    told = phone.matches;
    button.dataset.value = String(told);
    button.click();
  }
  phone.addEventListener("change", tell);
  new MutationObserver(() => {
    const stage = document.querySelector(".vq-blame-stage");
    if (stage && !stage.dataset.on) paint(stage);
    tell();
    const link = document.querySelector("#vq-blame-fetched a[data-fetch]");
    if (link && link.dataset.fetch !== fetched) {
      fetched = link.dataset.fetch;
      link.click();
    }
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-region", "data-fetch"] });
})();
