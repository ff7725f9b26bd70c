/* Lays pictures of a set over each other. Without this script they stand stacked. */
(() => {
  const MODES = [["side", "Side by side"], ["slider", "Slider"], ["difference", "Difference"]];
  document.querySelectorAll(".set").forEach((set) => {
    const reference = set.querySelector(".reference img");
    const pictures = [...set.querySelectorAll(".variant")];
    if (!reference || !pictures.length) return;
    const bar = document.createElement("div");
    bar.className = "modes";
    const choose = (mode) => {
      set.dataset.mode = mode;
      bar.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.to === mode)));
      set.querySelectorAll(".maps").forEach((maps) => { maps.open = mode === "difference"; });
    };
    MODES.forEach(([mode, words]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.to = mode;
      button.textContent = words;
      button.addEventListener("click", () => choose(mode));
      bar.append(button);
    });
    pictures.forEach((picture) => {
      const frame = picture.querySelector(".frame");
      if (!frame || !frame.querySelector("img")) return;
      const under = reference.cloneNode();
      under.className = "under";
      frame.append(under);
      const split = document.createElement("input");
      split.type = "range";
      split.className = "split";
      split.min = 0;
      split.max = 100;
      split.value = 50;
      split.setAttribute("aria-label", "Share of the original");
      split.addEventListener("input", () => frame.style.setProperty("--split", split.value + "%"));
      frame.after(split);
    });
    set.before(bar);
    choose("side");
  });
})();
