"use strict";

// Tables: a header's button sorts by its column; again, the other way. Numbers begin with the largest.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const isNumber = header.classList.contains("number");
      const before = header.getAttribute("aria-sort");
      const isAscending = before === "none" ? !isNumber : before === "descending";
      for (const other of headers) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].map((row) => ({ row, value: value(row) }));
      rows.sort((one, other) => {
        if (!isNumber) return (isAscending ? 1 : -1) * one.value.localeCompare(other.value, undefined, { numeric: true });
        // What has no number comes last, whichever way.
        if (one.value === "" || other.value === "") return (one.value === "") - (other.value === "");
        return (isAscending ? 1 : -1) * (Number(one.value) - Number(other.value));
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}

// Clips: a strip of frames that CSS moves along, as long as its button is pressed.
function play(film, isPlaying) {
  film.setAttribute("aria-pressed", String(isPlaying));
}
for (const film of document.querySelectorAll(".film:not(.still)")) {
  film.addEventListener("click", () => play(film, film.getAttribute("aria-pressed") !== "true"));
}
for (const button of document.querySelectorAll(".play-all")) {
  button.addEventListener("click", () => {
    const isPlaying = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isPlaying));
    button.textContent = isPlaying ? "Pause all" : "Play all";
    for (const film of button.closest(".player").querySelectorAll(".film:not(.still)")) play(film, isPlaying);
  });
}

// Charts: what a mark is, when it is pointed at, touched, or reached with the Tab key.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
function show(mark) {
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const box = mark.getBoundingClientRect();
  const left = Math.min(box.right + 8, window.innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
}
function hide() {
  tip.hidden = true;
}
for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.querySelector("title")?.remove(); // the browser's own tip, for where there is no JavaScript
  mark.addEventListener("pointerenter", () => show(mark));
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("blur", hide);
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});
