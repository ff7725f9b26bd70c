/* The model panel opens from the model's name, takes the focus, and gives it back. */
(() => {
  const panel = () => document.querySelector("#vq-model-panel");
  const opener = () => document.querySelector(".vq-model[data-act=model]");
  const field = () => document.querySelector("#vq-model-field :is(input, textarea)");
  const open = () => document.body.classList.contains("vq-model-open");

  function mark() {
    const it = panel();
    if (it && it.getAttribute("role") !== "dialog") {
      it.setAttribute("role", "dialog");
      it.setAttribute("aria-label", "Model");
    }
    const state = String(open());
    if (opener() && opener().getAttribute("aria-expanded") !== state) opener().setAttribute("aria-expanded", state);
  }
  function show() {
    document.body.classList.add("vq-model-open");
    mark();
    field()?.focus();
  }
  function hide(back) {
    document.body.classList.remove("vq-model-open");
    mark();
    if (back) opener()?.focus();
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest(".vq-model[data-act=model]")) { if (open()) hide(false); else show(); return; }
    if (open() && event.target.isConnected && !event.target.closest("#vq-model-panel, .toast-wrap")) hide(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && open() && !document.querySelector("dialog[open]")) { event.preventDefault(); hide(true); }
  });
  new MutationObserver(mark).observe(document.documentElement, { childList: true, subtree: true });
})();
