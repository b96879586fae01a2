"use strict";
// One panel a checkpoint. A plan is a text that the server edits; the page moves boxes.

const COLORS = ["#c62828", "#1565c0", "#2e7d32", "#6a1b9a", "#ad5200", "#00695c", "#5d4037", "#37474f"];
const SVG = "http://www.w3.org/2000/svg";
const CORNERS = [[0, 1], [2, 1], [0, 3], [2, 3]]; // which of x1 y1 x2 y2 a corner moves
const LAST = 999, LEAST = 10; // thousandths of a side: the largest of a box, the shortest box
const LONGEST_LABEL = 40; // characters
const $ = (id) => document.getElementById(id);

function show(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

async function ask(action, values) {
  const response = await fetch(`api/${action}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function element(parent, name, attributes = {}, text = "") {
  const svg = parent instanceof SVGElement;
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

class Panel {
  constructor(checkpoint) {
    const copy = $("panel").content.cloneNode(true);
    this.root = copy.querySelector("section");
    this.find = (selector) => this.root.querySelector(selector);
    this.name = checkpoint.name;
    this.plan = null; // the plan's text
    this.objects = [];
    this.images = [];
    this.chosen = 0;
    this.history = [];
    this.turn = 0; // answers of earlier requests are dropped
    this.requests = Promise.resolve(); // ends with the last one
    this.changes = Promise.resolve();
    this.find("h2").textContent = checkpoint.name;
    $("panels").append(copy);
    this.on(".repaint", "click", () => this.paint());
    this.on(".undo", "click", () => this.undo());
    this.on(".new", "click", () => this.add());
    this.on(".apply", "click", () => {
      const plan = this.find(".text").value;
      return this.edit(() => ({ change: "text", plan }));
    });
    this.on(".boxes", "change", (event) => {
      this.find(".stage").classList.toggle("hidden-boxes", !event.target.checked);
    });
  }

  on(selector, event, action) {
    this.find(selector).addEventListener(event, async (e) => {
      try { await action(e); } catch (error) { show(error); }
    });
  }

  settings() {
    const number = (id) => ($(id).value === "" ? null : Number($(id).value));
    return {
      checkpoint: this.name, prompt: $("prompt").value, seed: Number($("seed").value),
      guidance: number("guidance"), temperature: number("temperature"),
    };
  }

  // One request at a time; of those that wait for it only the last is sent.
  async working(text, request) {
    const turn = ++this.turn, busy = this.find(".busy");
    show(null);
    busy.textContent = text;
    busy.hidden = false;
    const sent = this.requests.then(() => (turn === this.turn ? request() : null));
    this.requests = sent.catch(() => {});
    try {
      const answer = await sent;
      return turn === this.turn ? answer : null;
    } catch (error) {
      if (turn === this.turn) throw error;
      return null;
    } finally {
      if (turn === this.turn) busy.hidden = true;
    }
  }

  async draw() {
    const planned = await this.working("writing a plan …", () => ask("plan", this.settings()));
    if (!planned) return;
    this.changes = this.changes.then(() => {
      this.history = [];
      this.setPlan(planned);
    });
    await this.changes;
    await this.paint();
  }

  async paint() {
    const painted = await this.working("painting …", () => ask("paint", {
      ...this.settings(), plan: this.plan, n: Number($("count").value),
    }));
    if (!painted) return;
    this.images = painted.images;
    this.chosen = Math.min(this.chosen, this.images.length - 1);
    this.showImages();
  }

  // `make` gives the change, or nothing, of the plan that the changes before have made.
  async edit(make, undo = false) {
    const changed = this.changes.then(async () => {
      const before = this.plan, change = make();
      if (!change) return false;
      const edited = await ask("edit", { plan: before, ...change });
      if (undo) this.history.pop();
      else if (before !== null) this.history.push(before);
      this.setPlan(edited);
      return true;
    });
    this.changes = changed.catch(() => {});
    // Not waited for: the next change can be made meanwhile.
    if (await changed && this.find(".auto").checked) this.paint().catch(show);
  }

  undo() {
    return this.edit(() => this.history.length && { change: "text", plan: this.history.at(-1) }, true);
  }

  async add() {
    await this.edit(() => ({ change: "add", name: "green star", box: [350, 350, 650, 650] }));
    const names = this.root.querySelectorAll(".objects input");
    if (names.length) names[names.length - 1].select();
  }

  setPlan({ plan, objects }) {
    const active = document.activeElement;
    const place = this.root.contains(active) ? active.dataset.place : undefined;
    this.plan = plan;
    this.objects = objects;
    this.find(".text").value = plan;
    for (const name of [".repaint", ".new"]) this.find(name).disabled = false;
    this.find(".undo").disabled = !this.history.length;
    this.showBoxes();
    this.showObjects();
    const save = this.find(".save-plan");
    save.href = `data:text/plain;charset=utf-8,${encodeURIComponent(plan)}`;
    save.download = "plan.txt";
    save.hidden = false;
    // The element that had the focus is gone, the one in its place takes it.
    if (place) (this.find(`[data-place="${place}"]`) ?? this.find(".new")).focus();
  }

  color(i) { return COLORS[i % COLORS.length]; }

  showBoxes() {
    const svg = this.find("svg");
    svg.replaceChildren();
    this.objects.forEach((object, i) => {
      if (!object.box) return;
      const group = element(svg, "g", {
        class: "box", tabindex: 0, role: "group", "data-index": i, "data-place": `box ${i}`,
        "aria-label": `${object.name}: arrow keys move, with Shift they resize, Delete removes`,
      });
      group.style.setProperty("--c", this.color(i));
      for (const kind of ["halo", "body"]) element(group, "rect", { class: kind });
      element(group, "rect", { class: "label" });
      element(group, "text", {}, shortened(object.name));
      CORNERS.forEach((corner, c) => element(group, "rect", { class: "corner", "data-corner": c }));
      group.addEventListener("pointerdown", (event) => this.drag(event, i, group));
      group.addEventListener("keydown", (event) => this.key(event, i));
      this.place(group, cleaned(object.box));
    });
  }

  place(group, [x1, y1, x2, y2]) {
    const set = (rect, x, y, width, height) => {
      for (const [key, value] of Object.entries({ x, y, width, height })) rect.setAttribute(key, value);
    };
    for (const kind of [".halo", ".body"]) {
      set(group.querySelector(kind), x1, y1, Math.max(0, x2 - x1), Math.max(0, y2 - y1));
    }
    // Thousandths of the side; no smaller than 12 and 7 pixels, however small the image is shown.
    const pixel = 1000 / Math.max(1, this.find(".stage").clientWidth);
    const size = Math.max(30, 12 * pixel), half = Math.max(13, 7 * pixel), height = 1.4 * size;
    const text = group.querySelector("text"), above = y1 > height + half;
    text.style.fontSize = `${size}px`;
    const width = text.getComputedTextLength() + 16, left = Math.max(0, Math.min(x1, 1000 - width));
    text.setAttribute("x", left + 8);
    const top = above ? y1 - height - half : y1 + half; // clear of the corners
    text.setAttribute("y", top + 1.03 * size);
    set(group.querySelector(".label"), left, top, width, height);
    const corners = [[x1, y1], [x2, y1], [x1, y2], [x2, y2]];
    group.querySelectorAll(".corner").forEach((corner, c) => {
      set(corner, corners[c][0] - half, corners[c][1] - half, 2 * half, 2 * half);
    });
  }

  drag(event, index, group) {
    event.preventDefault();
    group.focus();
    const stage = this.find(".stage").getBoundingClientRect();
    const corner = event.target.dataset.corner, from = cleaned(this.objects[index].box);
    let box = from;
    const move = (e) => {
      const dx = Math.round(((e.clientX - event.clientX) * 1000) / stage.width);
      const dy = Math.round(((e.clientY - event.clientY) * 1000) / stage.height);
      box = corner === undefined ? shifted(from, dx, dy) : resized(from, CORNERS[corner], dx, dy);
      this.place(group, box);
    };
    const end = async (e) => {
      group.removeEventListener("pointermove", move);
      try {
        if (e.type === "pointerup" && String(box) !== String(from)) {
          await this.edit(() => ({ change: "box", index, box }));
        } else this.place(group, from);
      } catch (error) { show(error); this.place(group, from); }
    };
    group.setPointerCapture(event.pointerId);
    group.addEventListener("pointermove", move);
    group.addEventListener("pointerup", end, { once: true });
    group.addEventListener("pointercancel", end, { once: true });
  }

  async key(event, index) {
    const steps = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
    try {
      if (event.key in steps) {
        event.preventDefault();
        const [dx, dy] = steps[event.key];
        await this.edit(() => {
          if (!this.objects[index]?.box) return null;
          const box = cleaned(this.objects[index].box);
          const moved = event.shiftKey ? resized(box, [2, 3], dx, dy) : shifted(box, dx, dy);
          return { change: "box", index, box: moved };
        });
      } else if (event.key === "Delete" && !event.repeat) {
        await this.edit(() => ({ change: "remove", index }));
      }
    } catch (error) { show(error); }
  }

  showObjects() {
    const table = this.find(".objects"), body = table.querySelector("tbody");
    body.replaceChildren();
    table.hidden = !this.objects.length;
    this.objects.forEach((object, i) => {
      const row = element(body, "tr"), name = element(row, "td"), box = element(row, "td");
      const input = element(name, "input", {
        value: object.name, "aria-label": `name of object ${i + 1}`, "data-place": `name ${i}`,
      });
      input.addEventListener("change", () => {
        const name = input.value;
        this.edit(() => ({ change: "rename", index: i, name })).catch((error) => {
          show(error);
          input.value = object.name;
        });
      });
      const swatch = element(box, "span", { class: "swatch" });
      swatch.style.setProperty("--c", this.color(i));
      box.append(object.box ? object.box.join(", ") : "none");
      const remove = element(element(row, "td"), "button", {
        type: "button", "aria-label": `delete ${object.name || "object"}`, "data-place": `delete ${i}`,
      }, "✕");
      remove.addEventListener("click", () => {
        this.edit(() => ({ change: "remove", index: i })).catch(show);
      });
    });
  }

  showImages() {
    const thumbs = this.find(".thumbs"), image = this.images[this.chosen];
    thumbs.replaceChildren();
    this.images.forEach((one, i) => {
      if (this.images.length < 2) return;
      const button = element(thumbs, "button", {
        type: "button", "aria-pressed": i === this.chosen, "aria-label": `image ${i + 1}`,
      });
      element(button, "img", { src: one.image, alt: "" });
      button.addEventListener("click", () => { this.chosen = i; this.showImages(); });
    });
    const shown = this.find(".stage img");
    shown.src = image.image;
    shown.alt = `image of: ${$("prompt").value}`;
    shown.hidden = false;
    const save = this.find(".save-image");
    save.href = image.image;
    save.download = "image.png";
    save.hidden = false;
    const scores = Object.entries(image.scores), table = this.find(".scores");
    table.hidden = !scores.length;
    table.querySelector("tbody").replaceChildren();
    for (const [term, score] of scores) {
      const row = element(table.querySelector("tbody"), "tr", { "data-term": term });
      element(row, "td", {}, term);
      const cell = element(row, "td");
      const bar = element(cell, "span", { class: "bar" });
      bar.style.width = `${60 * Math.max(0, Math.min(1, score ?? 0))}%`;
      cell.append(score === null ? "not scored" : score.toFixed(2));
    }
    this.find(".rationale").textContent = image.rationale;
  }
}

// As `Box.clean` does: a plan may hold any numbers.
function cleaned(box) {
  const [x1, y1, x2, y2] = box.map((value) => clamp(value, 0, LAST));
  return [x1, y1, Math.max(x1, x2), Math.max(y1, y2)];
}

function shortened(name) {
  const letters = [...name];
  return letters.length > LONGEST_LABEL ? `${letters.slice(0, LONGEST_LABEL).join("")}…` : name;
}

function shifted([x1, y1, x2, y2], dx, dy) {
  dx = Math.max(-x1, Math.min(LAST - x2, dx));
  dy = Math.max(-y1, Math.min(LAST - y2, dy));
  return [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
}

function resized(box, [x, y], dx, dy) {
  const found = [...box];
  found[x] = x === 0 ? clamp(box[0] + dx, 0, box[2] - LEAST) : clamp(box[2] + dx, box[0] + LEAST, LAST);
  found[y] = y === 1 ? clamp(box[1] + dy, 0, box[3] - LEAST) : clamp(box[3] + dy, box[1] + LEAST, LAST);
  return found;
}

function clamp(value, least, most) { return Math.max(least, Math.min(most, value)); }

async function start() {
  const state = await ask("state", {});
  const panels = state.checkpoints.map((checkpoint) => new Panel(checkpoint));
  for (const id of ["guidance", "temperature"]) {
    const values = new Set(state.checkpoints.map((checkpoint) => checkpoint[id]));
    $(id).placeholder = [...values].join(" and ");
    $(id).title = "empty: as the checkpoint says";
  }
  const draw = () => Promise.all(panels.map((panel) => panel.draw())).catch(show);
  $("request").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  await draw();
}

start().catch(show);
