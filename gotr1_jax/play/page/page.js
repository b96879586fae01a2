"use strict";
// One panel a checkpoint. A plan is a text that the server edits; the page moves boxes.

const COLORS = ["#c62828", "#1565c0", "#2e7d32", "#6a1b9a", "#ad5200", "#00695c", "#5d4037", "#37474f"];
const SVG = "http://www.w3.org/2000/svg";
const CORNERS = [[0, 1], [2, 1], [0, 3], [2, 3]]; // which of x1 y1 x2 y2 a corner moves
const LEAST = 10; // thousandths of a side
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
    this.find("h2").textContent = checkpoint.name;
    $("panels").append(copy);
    this.on(".repaint", "click", () => this.paint());
    this.on(".undo", "click", () => this.undo());
    this.on(".new", "click", () => this.add());
    this.on(".apply", "click", () => this.edit({ change: "text", plan: this.find(".text").value }));
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

  async working(text, request) {
    const turn = ++this.turn, busy = this.find(".busy");
    show(null);
    busy.textContent = text;
    busy.hidden = false;
    try {
      const answer = await request();
      return turn === this.turn ? answer : null;
    } finally {
      if (turn === this.turn) busy.hidden = true;
    }
  }

  async draw() {
    const planned = await this.working("writing a plan …", () => ask("plan", this.settings()));
    if (!planned) return;
    this.history = [];
    this.setPlan(planned);
    await this.paint();
  }

  async paint() {
    const values = { ...this.settings(), plan: this.plan, n: Number($("count").value) };
    const painted = await this.working("painting …", () => ask("paint", values));
    if (!painted) return;
    this.images = painted.images;
    this.chosen = Math.min(this.chosen, this.images.length - 1);
    this.showImages();
  }

  async edit(change) {
    const before = this.plan;
    const edited = await ask("edit", { plan: this.plan, ...change });
    if (before !== null) this.history.push(before);
    this.setPlan(edited);
    if (this.find(".auto").checked) await this.paint();
  }

  async undo() {
    const plan = this.history.pop();
    this.setPlan(await ask("edit", { plan, change: "text" }));
    if (this.find(".auto").checked) await this.paint();
  }

  async add() {
    await this.edit({ change: "add", name: "green star", box: [350, 350, 650, 650] });
    const names = this.root.querySelectorAll(".objects input");
    if (names.length) names[names.length - 1].select();
  }

  setPlan({ plan, objects }) {
    this.plan = plan;
    this.objects = objects;
    this.find(".text").value = plan;
    for (const name of [".repaint", ".new"]) this.find(name).disabled = false;
    this.find(".undo").disabled = !this.history.length;
    this.showBoxes();
    this.showObjects();
    const save = this.find(".save-plan");
    save.href = URL.createObjectURL(new Blob([plan], { type: "text/plain" }));
    save.download = "plan.txt";
    save.hidden = false;
  }

  color(i) { return COLORS[i % COLORS.length]; }

  showBoxes() {
    const svg = this.find("svg");
    svg.replaceChildren();
    this.objects.forEach((object, i) => {
      if (!object.box) return;
      const group = element(svg, "g", {
        class: "box", tabindex: 0, role: "group", "data-index": i,
        "aria-label": `${object.name}: arrow keys move, with Shift they resize, Delete removes`,
      });
      group.style.setProperty("--c", this.color(i));
      for (const kind of ["halo", "body"]) element(group, "rect", { class: kind });
      element(group, "rect", { class: "label" });
      element(group, "text", {}, object.name);
      CORNERS.forEach((corner, c) => element(group, "rect", { class: "corner", "data-corner": c }));
      group.addEventListener("pointerdown", (event) => this.drag(event, i, group));
      group.addEventListener("keydown", (event) => this.key(event, i));
      this.place(group, object.box);
    });
  }

  place(group, [x1, y1, x2, y2]) {
    const set = (rect, x, y, width, height) => {
      for (const [key, value] of Object.entries({ x, y, width, height })) rect.setAttribute(key, value);
    };
    for (const kind of [".halo", ".body"]) {
      set(group.querySelector(kind), x1, y1, Math.max(0, x2 - x1), Math.max(0, y2 - y1));
    }
    const text = group.querySelector("text"), above = y1 > 44;
    text.setAttribute("x", x1 + 8);
    text.setAttribute("y", above ? y1 - 12 : y1 + 32);
    const width = text.getComputedTextLength ? text.getComputedTextLength() : 100;
    set(group.querySelector(".label"), x1, above ? y1 - 42 : y1, width + 16, 42);
    const corners = [[x1, y1], [x2, y1], [x1, y2], [x2, y2]];
    group.querySelectorAll(".corner").forEach((corner, c) => {
      set(corner, corners[c][0] - 13, corners[c][1] - 13, 26, 26);
    });
  }

  drag(event, index, group) {
    event.preventDefault();
    group.focus();
    const stage = this.find(".stage").getBoundingClientRect();
    const corner = event.target.dataset.corner, from = [...this.objects[index].box];
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
        if (e.type === "pointerup" && String(box) !== String(from)) await this.moveTo(index, box);
        else this.place(group, from);
      } catch (error) { show(error); this.place(group, from); }
    };
    group.setPointerCapture(event.pointerId);
    group.addEventListener("pointermove", move);
    group.addEventListener("pointerup", end, { once: true });
    group.addEventListener("pointercancel", end, { once: true });
  }

  async moveTo(index, box) {
    await this.edit({ change: "box", index, box });
    this.root.querySelector(`.box[data-index="${index}"]`)?.focus();
  }

  async key(event, index) {
    const steps = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
    const box = this.objects[index].box;
    try {
      if (event.key in steps) {
        event.preventDefault();
        const [dx, dy] = steps[event.key];
        await this.moveTo(index, event.shiftKey ? resized(box, [2, 3], dx, dy) : shifted(box, dx, dy));
      } else if (event.key === "Delete") {
        await this.edit({ change: "remove", index });
      }
    } catch (error) { show(error); }
  }

  showObjects() {
    const table = this.find(".objects"), body = table.querySelector("tbody");
    body.replaceChildren();
    table.hidden = !this.objects.length;
    this.objects.forEach((object, i) => {
      const row = element(body, "tr"), name = element(row, "td"), box = element(row, "td");
      const input = element(name, "input", { value: object.name, "aria-label": `name of object ${i + 1}` });
      input.addEventListener("change", () => {
        this.edit({ change: "rename", index: i, name: input.value }).catch((error) => {
          show(error);
          input.value = object.name;
        });
      });
      const swatch = element(box, "span", { class: "swatch" });
      swatch.style.setProperty("--c", this.color(i));
      box.append(object.box ? object.box.join(", ") : "none");
      const remove = element(element(row, "td"), "button", {
        type: "button", "aria-label": `delete ${object.name || "object"}`,
      }, "✕");
      remove.addEventListener("click", () => this.edit({ change: "remove", index: i }).catch(show));
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

function shifted([x1, y1, x2, y2], dx, dy) {
  dx = Math.max(-x1, Math.min(1000 - x2, dx));
  dy = Math.max(-y1, Math.min(1000 - y2, dy));
  return [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
}

function resized(box, [x, y], dx, dy) {
  const found = [...box];
  found[x] = x === 0 ? clamp(box[0] + dx, 0, box[2] - LEAST) : clamp(box[2] + dx, box[0] + LEAST, 1000);
  found[y] = y === 1 ? clamp(box[1] + dy, 0, box[3] - LEAST) : clamp(box[3] + dy, box[1] + LEAST, 1000);
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
