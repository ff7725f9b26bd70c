/* Voting: both pictures appear at one moment, five keys answer, and a closer look moves both alike.
   Nothing here knows more than the page shows. */
(() => {
  const HERE = "vqdq-blind";      // of this browser tab: who votes on which test
  const NAME = "vqdq-assessor";   // of this browser: the name that was typed last
  const LOCK = 4000;              // ms after which an answer that brought nothing new may be given again

  const kept = (store, key) => { try { return store.getItem(key); } catch { return null; } };
  const keep = (store, key, value) => {
    try { if (value) store.setItem(key, value); else store.removeItem(key); } catch { /* private window */ }
  };
  const visible = (node) => node && node.getClientRects().length > 0;  // fixed at the bottom of a phone, too
  const pair = () => document.querySelector("[data-blind-pair]");
  const answers = () => document.querySelector(".vq-blind-answers");
  let locked = "";
  let began = 0;

  /* Pictures stay hidden until every one is decoded: which file came first says nothing. */
  function show(node) {
    if (node.dataset.seen) return;
    node.dataset.seen = "true";
    const images = [...node.querySelectorAll("img")];
    Promise.all(images.map((image) => image.decode())).then(
      () => requestAnimationFrame(() => { node.dataset.ready = "true"; began = performance.now(); }),
      () => { node.dataset.ready = "failed"; });
  }

  /* Who votes: the button carries the name that is in the field. */
  function join(form) {
    const field = form.querySelector("[data-blind-name]");
    const button = form.querySelector("[data-act=join]");
    if (!field.value && kept(localStorage, NAME)) field.value = kept(localStorage, NAME);
    button.dataset.person = field.value;
    if (form.dataset.seen) return;
    form.dataset.seen = "true";
    const run = form.dataset.blindJoin;
    const [test, person] = (kept(sessionStorage, HERE) || "\n").split("\n");
    if (test === run && person) {  /* the page was reloaded in the middle: go on */
      field.value = person;
      button.dataset.person = person;
      setTimeout(() => button.click(), 0);
    }
  }

  document.addEventListener("input", (event) => {
    const form = event.target.closest("[data-blind-join]");
    if (form) form.querySelector("[data-act=join]").dataset.person = event.target.value;
  });

  /* Before Gradio's own listener: an answer counts once, and only to what is seen. */
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) { look(event); return; }
    const act = button.dataset.act;
    if (act === "join" && button.closest(".vq-blind")) {
      const person = button.dataset.person || "";
      keep(sessionStorage, HERE, person.trim() ? `${button.dataset.run}\n${person}` : "");
      if (person.trim()) keep(localStorage, NAME, person);
    } else if (act === "stop" || act === "unblind") {
      keep(sessionStorage, HERE, "");
    } else if (act === "vote") {
      const key = `${button.dataset.ballot} ${button.dataset.question}`;
      if (locked === key || pair()?.dataset.ready !== "true") { event.stopImmediatePropagation(); return; }
      locked = key;
      setTimeout(() => { if (locked === key) locked = ""; }, LOCK);
      answers().dataset.given = button.dataset.choice;
      button.dataset.viewport = `${innerWidth}x${innerHeight}@${devicePixelRatio}`;
      button.dataset.zoom = pair().dataset.looked ? "closer" : "fit";
      button.dataset.seconds = ((performance.now() - began) / 1000).toFixed(2);
    } else if (act === "undo") locked = "";
  }, true);

  /* A closer look: one pixel of the picture on one of the screen, or four times as large. */
  function zoom(node, x, y) {
    if (node.dataset.zoom === "true") { node.dataset.zoom = "false"; return; }
    const image = node.querySelector("img");
    const fit = image.getBoundingClientRect().width;
    const real = image.naturalWidth / devicePixelRatio;
    node.style.setProperty("--vq-blind-scale", real > 1.2 * fit ? real / fit : 4);
    node.dataset.zoom = "true";
    node.dataset.looked = "true";
    pan(node, x, y);
  }
  function pan(node, x, y) {
    node.style.setProperty("--vq-blind-x", `${100 * Math.min(1, Math.max(0, x))}%`);
    node.style.setProperty("--vq-blind-y", `${100 * Math.min(1, Math.max(0, y))}%`);
  }
  function place(frame, event) {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }
  function look(event) {
    const frame = event.target.closest(".vq-blind-frame");
    if (frame && frame.closest("[data-ready=true]")) zoom(frame.closest("[data-blind-pair]"), ...place(frame, event));
  }
  document.addEventListener("pointermove", (event) => {
    const frame = event.target.closest?.(".vq-blind-frame");
    const node = frame && frame.closest("[data-zoom=true]");
    if (node) pan(node, ...place(frame, event));
  });

  /* Keys, before those of the page: digits here answer, they do not open tabs. */
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const field = event.target.closest("[data-blind-name]");
    if (field && event.key === "Enter") {
      field.closest("[data-blind-join]").querySelector("[data-act=join]").click();
      return;
    }
    if (event.target.closest("input, textarea, select, dialog[open], [role=tab]")) return;
    if (!visible(answers()) && !visible(document.querySelector(".vq-blind-done"))) return;
    if (event.key === " " && visible(pair())) {
      if (event.target.closest("button")) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      zoom(pair(), 0.5, 0.5);
      return;
    }
    const key = event.key.toLowerCase();
    const button = [...document.querySelectorAll(".vq-blind [data-keys]")].find(
      (one) => visible(one) && one.dataset.keys.split(" ").includes(key));
    if (!button) {
      if (/^[1-6]$/.test(key) && visible(answers())) { event.preventDefault(); event.stopImmediatePropagation(); }
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!event.repeat && !button.disabled) button.click();
  }, true);

  new MutationObserver(() => {
    const now = pair();
    if (now) show(now);
    document.querySelectorAll("[data-blind-join]").forEach(join);
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
