// The galleries of a page. All text of a run is put in by textContent, never as markup.
const data = JSON.parse(document.getElementById("gallery-data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const FIRST = 12; // items that are shown until the reader asks for more
const JUDGE_STYLES = 3;

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function svg(tag, properties, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const signed = (value) => (value === null ? "–" : (value <= -0.005 ? "−" : "+") + Math.abs(value).toFixed(2));

// One sample.
function rectangles(box, kind, by) {
  const [x, y, width, height, color, name] = box;
  const at = { x, y, width, height };
  const title = document.createElementNS(SVG, "title");
  title.textContent = (kind === "planned" ? "" : by ? `found by ${by}: ` : "found: ") + name;
  return [
    svg("rect", { class: kind === "planned" ? "halo" : "under", ...at }),
    svg("rect", { class: `${kind} c${color ?? "x"}`, ...at }, title),
  ];
}
function picture(sample, caption) {
  const [width, height] = sample.size;
  const marks = (sample.planned ?? []).flatMap((box) => rectangles(box, "planned"));
  for (const judge of sample.judges) {
    const found = (judge.boxes ?? []).flatMap((box) => rectangles(box, "detection", judge.letter));
    if (judge.judge < 0) marks.push(svg("g", { class: "own" }, ...found));
    else marks.push(svg("g", { class: `by j${judge.style}`, "data-judge": judge.judge }, ...found));
  }
  return svg(
    "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `image of: ${caption}` },
    svg("image", { href: data.images[sample.image], width, height }), ...marks,
  );
}
function plan(sample) {
  const text = el("p", { class: sample.isText ? "plan text" : "plan", dir: "auto" });
  for (const part of sample.plan) {
    if (typeof part === "string") { text.append(part); continue; }
    const [name, color, box] = part;
    text.append(el("mark", { class: color === null ? "" : `boxed c${color}` }, el("bdi", {}, name || "(no name)")));
    if (box) text.append(" ", el("small", {}, box));
  }
  if (!sample.plan.length) text.append("(empty plan)");
  if (sample.isCut) text.append(" …");
  return text;
}
function scores(sample) {
  const judges = sample.judges.slice(1);
  const label = Math.min(Math.max(...sample.scores.map(([term]) => term.length)), 13);
  const table = el("div", {
    class: judges.length ? "scores judged" : "scores", style: `--label:minmax(0, ${label}ch);--numbers:${1 + judges.length}`,
  });
  if (judges.length) {
    const letters = judges.map((judge) => el("i", { class: "letter" }, judge.letter));
    table.append(el("div", { class: "score head" }, el("b"), el("div"), el("i", {}, "run"), ...letters));
  }
  sample.scores.forEach(([term, ...values], row) => {
    const bars = values.map(([text, share], i) => text === "" ? null : el(
      "div", { class: i ? "other" : "own" }, el("div", { style: `width:${(100 * share).toFixed(1)}%` }),
    ));
    const numbers = values.map(([text]) => el("i", {}, text));
    table.append(el(
      "div", { class: row ? "score" : "score total" }, el("b", { title: term }, term), el("div", {}, ...bars), ...numbers,
    ));
  });
  return table;
}
function answers(judge, judges) {
  if (!judge.rationale && !judge.answers) return null;
  const name = judge.judge < 0 ? el("b", {}, judges > 1 ? "Run’s judge:" : "Judge:") : el("b", { class: "letter" }, judge.letter);
  const found = el("div", { class: "rationale" }, el("p", { dir: "auto" }, name, " ", (judge.rationale ?? "").replaceAll(" | ", "\n")));
  if (judge.answers) {
    const list = el("dl");
    for (const [term, text] of judge.answers) list.append(el("dt", {}, term), el("dd", { dir: "auto" }, text));
    found.append(el("details", { class: "raw-answers" }, el("summary", {}, "raw answers"), list));
  }
  return found;
}
function details(sample) {
  const parts = [];
  for (const [label, text, share] of sample.advantages ?? []) {
    const depth = text === "–" ? 0 : (0.08 + 0.42 * Math.abs(share)).toFixed(2);
    parts.push(el(
      "div", { class: "advantage", style: `background:rgba(var(--${share >= 0 ? "plus" : "minus"}),${depth})` },
      el("span", {}, label), el("b", {}, text),
    ));
  }
  parts.push(scores(sample), sample.plan ? plan(sample) : null);
  for (const judge of sample.judges) parts.push(answers(judge, sample.judges.length));
  return parts.filter((part) => part !== null);
}
function card(sample, caption, label) {
  const link = el(
    "a", { class: "open", href: `#${encodeURI(sample.key)}`, "aria-label": `Open the sample ${sample.key}: ${caption}` },
    picture(sample, caption),
  );
  return el(
    "div", { class: "card", "data-key": sample.key },
    label ? el("p", { class: "side" }, label) : null, link, ...details(sample),
  );
}
// What scrolls can be reached by the keyboard.
function reachScrolling(root) {
  for (const box of root.querySelectorAll(".plan, .rationale p, .raw-answers dl")) {
    if (box.scrollHeight > box.clientHeight + 1) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches(".plan") ? "plan" : "the judge's answer");
    }
  }
}

// A gallery: its tools, and the items that they leave.
for (const root of document.querySelectorAll(".gallery")) {
  const gallery = data.galleries.find(({ name }) => name === root.dataset.gallery);
  const state = { stage: gallery.stages.length - 1, words: [], ranges: new Map(), failure: "", gain: null, order: "", limit: FIRST };
  const hasColumns = gallery.items.some((item) => item.columns);
  const isFew = gallery.items.every((item) => (item.cards ?? []).length < 5);
  const rowClass = hasColumns ? "side-by-side" : `cards${data.isWide ? " wide" : isFew ? " few" : ""}`;
  const count = el("span", { class: "soft", role: "status" });
  const list = el("div", { class: `${hasColumns ? "pairs" : "groups"}${data.isWide ? " wide" : ""}` });
  const more = el("button", { type: "button", onclick: () => { state.limit += 4 * FIRST; draw(); } });

  function cellsOf(item) {
    if (item.columns) return item.columns.map((column) => ({
      label: column.label || gallery.stages[state.stage], isFixed: column.fixed,
      sample: column.at[state.stage] === null ? null : data.samples[column.at[state.stage]],
    }));
    if (item.stage !== state.stage) return [];
    return item.cards.map((number) => ({ label: "", isFixed: false, sample: data.samples[number] }));
  }
  function passes(sample) {
    for (const [term, { low, high }] of state.ranges) {
      const value = sample.values[term] ?? null;
      if ((low !== null || high !== null) && value === null) return false;
      if (low !== null && value < low) return false;
      if (high !== null && value > high) return false;
    }
    if (state.failure === "lost") return sample.isLost === true;
    if (state.failure) return sample.values[state.failure.slice(1)] === 0;
    return true;
  }
  function gainOf(cells) {
    const [first, last] = [cells[0]?.sample, cells[cells.length - 1]?.sample];
    if (!hasColumns || cells.length < 2 || !first || !last) return null;
    const [old, now] = [first.values[data.total], last.values[data.total]];
    return old === null || now === null ? null : now - old;
  }
  function meanOf(cells) {
    const totals = cells.map((cell) => cell.sample?.values[data.total] ?? null).filter((t) => t !== null);
    return totals.length ? totals.reduce((a, b) => a + b) / totals.length : null;
  }
  function textOf(item, cells) {
    const plans = cells.flatMap((cell) => (cell.sample?.plan ?? []).map((part) => typeof part === "string" ? part : part[0]));
    return [item.caption, ...plans].join(" ").toLowerCase();
  }
  function chosen() {
    const found = [];
    for (const item of gallery.items) {
      let cells = cellsOf(item);
      if (!cells.some((cell) => cell.sample)) continue;
      if (state.words.length) {
        const text = textOf(item, cells);
        if (!state.words.every((word) => text.includes(word))) continue;
      }
      const passed = cells.filter((cell) => cell.sample && !cell.isFixed && passes(cell.sample));
      const isFiltered = state.failure || [...state.ranges.values()].some((r) => r.low !== null || r.high !== null);
      if (isFiltered && !passed.length) continue;
      if (isFiltered && !item.columns) cells = passed;
      const gain = gainOf(cells);
      if (state.gain !== null && (gain === null || gain < state.gain)) continue;
      found.push({ item, cells, gain, key: hasColumns ? gain : meanOf(cells) });
    }
    const sign = { up: -1, down: 1 }[state.order];
    if (sign) found.sort((a, b) => (a.key === null) - (b.key === null) || sign * (a.key - b.key));
    return found;
  }
  function article({ item, cells, gain }) {
    const shown = gain === null ? 0 : Number(gain.toFixed(2));
    const tone = shown > 0 ? "gain" : shown < 0 ? "loss" : "soft";
    const said = hasColumns ? el("span", { class: tone }, signed(gain)) : el("span", { class: "soft" }, item.note);
    const cards = cells.map(({ label, sample }) => sample
      ? card(sample, item.caption, label)
      : el("div", { class: "card" }, el("p", { class: "side" }, label), el("p", { class: "soft" }, "no sample here")));
    return el(
      "article", { class: `panel ${hasColumns ? "pair" : "group"}` },
      el("header", {}, el("h3", { dir: "auto" }, item.caption), said),
      el("div", { class: rowClass }, ...cards),
    );
  }
  function draw() {
    const found = chosen();
    const all = gallery.items.filter((item) => item.columns || item.stage === state.stage).length;
    list.replaceChildren(...found.slice(0, state.limit).map(article));
    reachScrolling(list);
    count.textContent = found.length === all ? `${all} caption${all === 1 ? "" : "s"}` : `${found.length} of ${all} captions`;
    more.hidden = found.length <= state.limit;
    more.textContent = `Show more (${found.length - state.limit} left)`;
  }
  function change(update) { update(); state.limit = FIRST; draw(); }

  const tools = el("div", { class: "tools" });
  if (gallery.stages.length > 1) {
    const label = el("output", {}, gallery.stages[state.stage]);
    const slider = el("input", {
      type: "range", min: 0, max: gallery.stages.length - 1, value: state.stage,
      "aria-label": "step of training", "aria-valuetext": gallery.stages[state.stage],
      oninput: () => {
        state.stage = Number(slider.value);
        label.textContent = gallery.stages[state.stage];
        slider.setAttribute("aria-valuetext", gallery.stages[state.stage]);
        draw();
      },
    });
    tools.append(el("label", { class: "stage" }, slider, label));
  }
  const search = el("input", {
    type: "search", placeholder: "Search captions and plans", "aria-label": "Search captions and plans",
    oninput: () => change(() => { state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); }),
  });
  const orders = hasColumns
    ? [["", "in order"], ["up", "largest gain first"], ["down", "largest loss first"]]
    : [["", "in order"], ["up", `highest ${data.total} first`], ["down", `lowest ${data.total} first`]];
  const order = el(
    "select", { "aria-label": "Order", onchange: () => change(() => { state.order = order.value; }) },
    ...orders.map(([value, text]) => el("option", { value }, text)),
  );
  const failures = [["", "all samples"], ["lost", "not scored"], ...data.binary.map((term) => [`=${term}`, `${term} is 0`])];
  const failure = el(
    "select", { "aria-label": "Failures", onchange: () => change(() => { state.failure = failure.value; }) },
    ...failures.map(([value, text]) => el("option", { value }, text)),
  );
  function bound(term, side) {
    const input = el("input", {
      type: "number", step: "any", placeholder: side, "aria-label": `${term}: ${side}`,
      oninput: () => change(() => {
        const range = state.ranges.get(term) ?? { low: null, high: null };
        range[side === "least" ? "low" : "high"] = input.value === "" ? null : Number(input.value);
        state.ranges.set(term, range);
      }),
    });
    return input;
  }
  const rows = data.terms.map((term) => el("div", { class: "range" }, el("span", {}, term), bound(term, "least"), bound(term, "most")));
  if (hasColumns) {
    const gain = el("input", {
      type: "number", step: "any", placeholder: "least", "aria-label": "gain: least",
      oninput: () => change(() => { state.gain = gain.value === "" ? null : Number(gain.value); }),
    });
    rows.push(el("div", { class: "range" }, el("span", {}, "gain"), gain));
  }
  const filters = el("details", { class: "filters" }, el("summary", {}, "Filter by score"), el("div", { class: "ranges" }, ...rows));
  tools.append(search, order, failure, filters, ...data.boxes.map(legend), count);
  root.append(tools, list, more);
  draw();
}

// Boxes on the images: each kind can be hidden, the same on the whole page.
function legend({ kind, label }) {
  const isPlanned = kind === "planned";
  const at = { x: 3, y: 3, width: 20, height: 10 };
  const key = svg(
    "svg", { viewBox: "0 0 26 16", "aria-hidden": "true", class: isPlanned || kind === "own" ? "" : `by j${kind % JUDGE_STYLES}` },
    svg("rect", { class: isPlanned ? "halo" : "under", ...at }),
    svg("rect", { class: `${isPlanned ? "planned" : "detection"} c0`, ...at }),
  );
  const box = el("input", { type: "checkbox", "data-boxes": kind, onchange: () => {
    for (const twin of document.querySelectorAll("input[data-boxes]")) if (twin.dataset.boxes === kind) twin.checked = box.checked;
    hidden.textContent = [...document.querySelectorAll("input[data-boxes]:not(:checked)")]
      .map((twin) => ({ planned: ".planned, .halo", own: "g.own" })[twin.dataset.boxes] ?? `g[data-judge="${Number(twin.dataset.boxes)}"]`)
      .map((selector) => `.open :is(${selector}), .zoom :is(${selector}) { display: none; }`).join("\n");
  } });
  box.checked = true;
  return el("label", { class: "legend" }, box, key, label);
}
const hidden = document.head.appendChild(el("style"));

// A sample by itself, large: the page's address names it.
const byKey = new Map(data.samples.map((sample, number) => [sample.key, number]));
const zoom = el("dialog", { class: "zoom", "aria-label": "a sample", onclose: leave });
zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
zoom.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") zoom.querySelector(".previous")?.click();
  if (event.key === "ArrowRight") zoom.querySelector(".next")?.click();
});
document.body.append(zoom);

function leave() {
  history.replaceState(null, "", location.pathname + location.search);
}
// The item that shows a sample, and the samples beside it or at other steps.
function placeOf(number) {
  for (const { items } of data.galleries) for (const item of items) {
    const columns = item.columns ?? [{ fixed: false, at: item.cards }];
    const own = columns.filter((column) => column.at.includes(number));
    if (!own.length) continue;
    // With what it is compared with first, and then over the steps.
    const shown = columns.filter((column) => column.fixed || own[0].fixed || column === own[0]);
    const series = shown.flatMap((column) => column.at).filter((n) => n !== null);
    return { caption: item.caption, series: [...new Set(series)] };
  }
  return null;
}
function openSample() {
  let key = location.hash.slice(1);
  try { key = decodeURIComponent(key); } catch { /* not an address of a sample */ }
  const number = byKey.get(key);
  if (number === undefined) { if (zoom.open) zoom.close(); return; }
  const sample = data.samples[number];
  const { caption, series } = placeOf(number);
  const at = series.indexOf(number);
  const step = (to, name, text) => el("button", {
    type: "button", class: name, disabled: series[to] === undefined, "aria-label": `${name} sample`,
    onclick: () => { history.replaceState(null, "", `#${encodeURI(data.samples[series[to]].key)}`); openSample(); },
  }, text);
  const copy = el("button", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(location.href); copy.textContent = "Copied"; }
    catch { copy.textContent = "Copy the address of this page"; }
  } }, "Copy link");
  zoom.replaceChildren(
    el("header", {}, el("h3", { dir: "auto" }, caption), el("button", { type: "button", onclick: () => zoom.close() }, "Close")),
    el("p", { class: "soft" }, [sample.place, sample.key].filter(Boolean).join(" · ")),
    el("div", { class: "large" }, picture(sample, caption), el("div", { class: "card" }, ...details(sample))),
    el("div", { class: "tools" }, step(at - 1, "previous", "‹ Previous"), step(at + 1, "next", "Next ›"), copy),
  );
  if (!zoom.open) zoom.showModal();
  reachScrolling(zoom);
}
window.addEventListener("hashchange", openSample);
openSample();
