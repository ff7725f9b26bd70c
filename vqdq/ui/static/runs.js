/* The history: what is chosen stays chosen when rows are brought up to date; names are written in place. */
(() => {
  const chosen = new Set();
  const rows = () => [...document.querySelectorAll("#vq-history [data-pick]")];

  const units = ["B", "kB", "MB", "GB", "TB"];
  function size(bytes) {
    let at = 0;
    while (bytes >= 999.5 && at < units.length - 1) { bytes /= 1000; at += 1; }
    return `${at ? bytes.toPrecision(3) : bytes} ${units[at]}`;
  }

  /* Puts the marks back after an update and says what a press would delete. */
  function sync() {
    const bar = document.querySelector("#vq-history .vq-chosen");
    if (!bar) return;
    const shown = rows();
    let bytes = 0;
    const here = shown.filter((box) => {
      const on = chosen.has(box.dataset.pick);
      if (box.checked !== on) box.checked = on;
      if (on) bytes += Number(box.dataset.bytes);
      return on;
    });
    const button = bar.querySelector("[data-delete-chosen]");
    const runs = here.map((box) => box.dataset.pick).join(" ");
    if (button.hidden !== !here.length) button.hidden = !here.length;
    if (button.dataset.runs !== runs) {
      button.dataset.runs = runs;
      const what = `${here.length} run${here.length === 1 ? "" : "s"}, ${size(bytes)}`;
      button.dataset.sure = `Delete ${what}, for good?`;
      if (!button.dataset.act) button.textContent = `Delete ${what}`;
    }
    const all = bar.querySelector("[data-pick-all]");
    all.checked = here.length > 0 && here.length === shown.length;
    all.indeterminate = here.length > 0 && here.length < shown.length;
  }

  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.matches("#vq-history [data-pick]")) {
      if (box.checked) chosen.add(box.dataset.pick); else chosen.delete(box.dataset.pick);
    } else if (box.matches("#vq-history [data-pick-all]")) {
      rows().forEach((row) => { if (box.checked) chosen.add(row.dataset.pick); else chosen.delete(row.dataset.pick); });
    } else return;
    sync();
  });

  /* A name is written in the row itself: Enter keeps it, Escape leaves it as it was. An update of
     the rows takes the field away; it is put back with what was typed. */
  let writing = null;
  function rename(run, before) {
    const button = document.querySelector(`#vq-history [data-rename="${CSS.escape(run)}"]`);
    const title = button?.closest(".vq-run").querySelector(".vq-run-name");
    if (!title) { writing = null; return; }
    const field = document.createElement("input");
    field.type = "text";
    field.maxLength = 80;
    field.value = before ?? button.dataset.now;
    field.placeholder = title.textContent;
    field.setAttribute("aria-label", "Name of this run");
    writing = { run, field };
    title.hidden = true;
    title.after(field);
    field.focus();
    const end = (keep) => {
      if (writing?.field !== field) return;
      writing = null;
      field.remove();
      title.hidden = false;
      if (!keep || field.value.trim() === button.dataset.now) return;
      Object.assign(button.dataset, { act: "rename", run, name: field.value.trim() });
      button.click();
      delete button.dataset.act;
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") { end(false); button.focus(); }
    });
    field.addEventListener("blur", () => setTimeout(() => { if (field.isConnected) end(true); }, 0));
  }
  function rewrite() {
    if (writing && !writing.field.isConnected) rename(writing.run, writing.field.value);
  }

  /* A report takes a moment: when its link arrives, it is followed once. */
  let asked = null;
  function fetchReport() {
    const link = asked && document.querySelector(`#vq-history [data-report-of="${CSS.escape(asked)}"]`);
    if (link) { asked = null; link.click(); }
  }

  document.addEventListener("click", (event) => {
    const wanted = event.target.closest("#vq-history [data-act=report]");
    if (wanted) {
      asked = wanted.dataset.run;
      wanted.textContent = "Writing";
      wanted.disabled = true;
    }
    const link = event.target.closest("a[data-act]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) event.preventDefault();
    const renamed = event.target.closest("[data-rename]");
    if (renamed && !renamed.dataset.act) rename(renamed.dataset.rename);
    const copier = event.target.closest("[data-copy-link]");
    if (copier) {
      const address = new URL(copier.dataset.copyLink, location.href).href;
      const said = copier.textContent;
      navigator.clipboard.writeText(address).then(
        () => { copier.textContent = "Copied"; setTimeout(() => { copier.textContent = said; }, 1200); },
        () => { window.prompt("Copy this:", address); });
    }
  });

  new MutationObserver(() => { sync(); rewrite(); fetchReport(); }).observe(document.documentElement, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["data-pick", "data-bytes"],
  });
})();

/* A picture dropped anywhere on the page is opened where its recipe is read. */
(() => {
  const holdsFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  const elsewhere = (event) => event.target.closest?.("input[type=file], [data-testid=file-upload], .upload-container, [aria-dropeffect]");
  const input = () => document.querySelector("input[type=file]:has(+ #vq-picture)");
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-open-picture]")) input()?.click();
  });
  const mark = (on) => document.body.classList.toggle("vq-dropping", on);
  let depth = 0;
  document.addEventListener("dragenter", (event) => { if (holdsFiles(event)) { depth += 1; mark(true); } });
  document.addEventListener("dragleave", (event) => { if (holdsFiles(event)) { depth = Math.max(0, depth - 1); mark(depth > 0); } });
  document.addEventListener("dragover", (event) => { if (holdsFiles(event) && !elsewhere(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    mark(false);
    if (!holdsFiles(event) || elsewhere(event)) return;
    event.preventDefault();
    const field = input();
    if (!field || !event.dataTransfer.files.length) return;
    const first = new DataTransfer();
    first.items.add(event.dataTransfer.files[0]);
    field.files = first.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });

  /* What the picture said stands below the pictures: it is brought into sight once. */
  let told = "";
  new MutationObserver(() => {
    const note = document.querySelector("#vq-picture-note :is(.vq-picture-found, .vq-fault)");
    const text = note ? note.textContent : "";
    if (text === told) return;
    told = text;
    if (note?.offsetParent) note.scrollIntoView({ block: "nearest" });
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
