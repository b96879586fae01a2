"use strict";

// Samples while training: one step at a time. Without a script all of them stay visible.
const stepButtons = [...document.querySelectorAll("#step-tools button")];
function showStep(step) {
  for (const b of stepButtons) b.setAttribute("aria-pressed", String(b.dataset.step === step));
  for (const s of document.querySelectorAll("section.step")) s.hidden = s.dataset.step !== step;
}
for (const b of stepButtons) b.addEventListener("click", () => showStep(b.dataset.step));
if (stepButtons.length) showStep(stepButtons[stepButtons.length - 1].dataset.step);

// Before and after: order, and the first few or all.
const pairs = document.getElementById("pairs");
const all = document.getElementById("pair-all");
const order = document.getElementById("pair-order");
function arrangePairs() {
  const sign = { up: -1, down: 1 }[order.value];
  const key = (p) => (sign ? sign * Number(p.dataset.gain) : Number(p.dataset.order));
  const sorted = [...pairs.children].sort((a, b) => key(a) - key(b));
  const limit = all && all.getAttribute("aria-pressed") === "false" ? Number(all.dataset.first) : Infinity;
  pairs.append(...sorted);
  sorted.forEach((p, i) => { p.hidden = i >= limit; });
}
if (pairs) {
  order.addEventListener("change", arrangePairs);
  if (all) all.addEventListener("click", () => {
    all.setAttribute("aria-pressed", String(all.getAttribute("aria-pressed") === "false"));
    arrangePairs();
  });
  arrangePairs();
}

// Boxes on the images: each kind can be hidden, the same on the whole page.
const boxKinds = [...document.querySelectorAll("input[data-boxes]")];
const selectors = { planned: ".card .planned, .card .halo", own: ".card svg > .detection, .card svg > .under" };
for (const box of boxKinds) {
  const kind = box.dataset.boxes;
  box.hidden = false;
  box.addEventListener("change", () => {
    for (const twin of boxKinds) if (twin.dataset.boxes === kind) twin.checked = box.checked;
    const marks = document.querySelectorAll(selectors[kind] ?? `g[data-judge="${kind}"]`);
    for (const mark of marks) mark.style.display = box.checked ? "" : "none";
  });
}
