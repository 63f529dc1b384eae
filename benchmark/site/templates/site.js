"use strict";
// The pages are complete without this script. It sorts, filters, compares and searches; what is chosen stands in the address.
const html = document.documentElement, root = html.dataset.root, docs = html.dataset.docs;
html.dataset.script = "";

// --- colours: those of the system, or chosen; the documentation beside these pages keeps the same choice
const SCHEMES = ["system", "light", "dark"];
const SLOT = docs === undefined ? "contseg-colours" : new URL(docs, location).pathname + ".__palette";
function chosen() {
  try { return Math.max(0, JSON.parse(localStorage.getItem(SLOT))?.index ?? 0); } catch { return 0; }
}
function paint(index) {
  if (index) html.dataset.scheme = SCHEMES[index]; else delete html.dataset.scheme;
}
paint(chosen());

// --- what is chosen on a page, as the part of the address behind "?"
const given = new URLSearchParams(location.search);
function remember(values) {
  for (const [name, value] of Object.entries(values)) if (value) given.set(name, value); else given.delete(name);
  const query = given.toString();
  try { history.replaceState(null, "", location.pathname + (query ? "?" + query : "") + location.hash); } catch { /* a frame that may not */ }
}
function restore(form) {
  for (const field of form.elements) {
    const value = given.get(field.name);
    if (!field.name || value === null) continue;
    if (field.type === "checkbox") field.checked = value === field.value;
    else if (field.type !== "select-one" || [...field.options].some(o => o.value === value)) field.value = value;
  }
}
function values(form) {
  return Object.fromEntries([...form.elements].filter(f => f.name).map(f => [f.name, f.type === "checkbox" ? (f.checked ? f.value : "") : f.value]));
}

// --- filters
function filter(form) {
  const wanted = values(form), method = (wanted.method || "").trim().toLowerCase();
  for (const item of document.querySelectorAll("[data-item]"))
    item.hidden = ["dataset", "task", "setup", "protocol"].some(k => wanted[k] && k in item.dataset && item.dataset[k] !== wanted[k]);
  for (const row of document.querySelectorAll("[data-row]")) row.hidden = !row.dataset.method.toLowerCase().includes(method);
  for (const table of document.querySelectorAll("table.board")) table.classList.toggle("all", wanted.columns === "all" || !("columns" in wanted));
  for (const part of document.querySelectorAll("[data-published]")) part.hidden = wanted.published === "no";
  for (const line of document.querySelectorAll(".none")) {
    const rows = [...(line.closest("section") || document).querySelectorAll("[data-row], .questions [data-item]")];
    line.hidden = !rows.length || rows.some(r => !r.hidden);
  }
  remember(wanted);
}

// --- sorting: rows without a number come last
function sort(table, column, descending) {
  const heads = [...table.tHead.rows[0].cells], value = row => row.cells[column].dataset.value ?? "";
  heads.forEach((h, i) => i === column ? h.setAttribute("aria-sort", descending ? "descending" : "ascending") : h.removeAttribute("aria-sort"));
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows);
}
function sortBy(name, descending) {
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const column = [...table.tHead.rows[0].cells].findIndex(h => h.querySelector("button")?.dataset.name === name);
    if (column >= 0) sort(table, column, descending);
  }
}
function sortClick(button) {
  const th = button.closest("th"), table = th.closest("table"), now = th.getAttribute("aria-sort");
  const descending = now ? now === "ascending" : th.cellIndex > 0;
  if (button.dataset.name) { sortBy(button.dataset.name, descending); remember({ sort: button.dataset.name + (descending ? "-down" : "-up") }); }
  else sort(table, th.cellIndex, descending);
}

// --- two methods, class by class
const mean = list => { const known = list.filter(v => v !== null); return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null; };
const shown = v => v === null ? "-" : v.toFixed(1);
function node(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  return made;
}
function compare(form, data) {
  const fields = form.elements, table = data[fields.protocol?.value ?? Object.keys(data)[0]];
  const names = table.methods.map(m => m.name);
  for (const [key, other] of [["a", names.find(n => n !== "FT" && n !== "Joint") ?? names[0]], ["b", names.filter(n => n !== "Joint").at(-1) ?? names.at(-1)]]) {
    const before = fields[key].value || given.get(key), field = fields[key];
    field.replaceChildren(...names.map(n => node("option", n)));
    field.value = names.includes(before) ? before : other;
  }
  const [a, b] = ["a", "b"].map(k => table.methods.find(m => m.name === fields[k].value));
  const common = Object.keys(a.seeds).filter(s => s in b.seeds);
  const rows = table.classes.map(([name, step], i) => {
    const [x, y] = [a, b].map(m => mean(Object.values(m.seeds).map(v => v[i])));
    const pairs = common.map(s => [a.seeds[s][i], b.seeds[s][i]]).filter(([u, v]) => u !== null && v !== null).map(([u, v]) => v - u);
    return { name, step, x, y, d: x === null || y === null ? null : y - x, low: Math.min(...pairs), high: Math.max(...pairs), n: pairs.length };
  });
  if (fields.by.value) rows.sort((p, q) => (q.d ?? -Infinity) - (p.d ?? -Infinity));
  const most = Math.max(1, ...rows.map(r => Math.abs(r.d ?? 0)));
  const better = rows.filter(r => r.d > 0).length, worse = rows.filter(r => r.d < 0).length;
  const board = node("table", undefined, { class: "classes" }), head = board.createTHead().insertRow(), body = board.createTBody();
  for (const text of ["class", "step", a.name, b.name, "difference", "by seed", "as a bar"]) head.append(node("th", text, { scope: "col" }));
  for (const r of rows) {
    const line = body.insertRow(), sign = v => (v > 0 ? "+" : "") + v.toFixed(1);
    line.append(node("th", r.name, { scope: "row" }));
    for (const text of [r.step ?? "-", shown(r.x), shown(r.y), r.d === null ? "-" : sign(r.d), r.n > 1 ? `${sign(r.low)} to ${sign(r.high)}` : ""]) line.append(node("td", text));
    const bar = node("span", undefined, { class: "bar", "aria-hidden": "true" }), fill = node("i");
    const wide = 50 * Math.abs(r.d ?? 0) / most;
    fill.style.width = wide + "%";
    fill.style.left = (r.d < 0 ? 50 - wide : 50) + "%";
    if (r.d < 0) fill.className = "less";
    bar.append(fill);
    const cell = line.insertCell();
    cell.append(bar);
  }
  const about = node("p", `${b.name} minus ${a.name}: higher in ${better} classes, lower in ${worse}. "By seed" is the range of the difference over ${common.length} common seed${common.length === 1 ? "" : "s"}; it is no test.`);
  const region = node("div", undefined, { class: "scroll", role: "region", tabindex: "0", "aria-label": "Comparison" });
  region.append(board);
  document.getElementById("compared").replaceChildren(about, region);
  remember(values(form));
}

// --- search
function search(box, list) {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const score = p => {
    const title = p.t.toLowerCase(), text = title + " " + p.k + " " + p.w.toLowerCase();
    if (!words.every(w => text.includes(w))) return 0;
    return 1 + words.filter(w => title.includes(w)).length * 4 + (title === words.join(" ") ? 20 : 0) + (p.k === "run" ? 0 : 2);
  };
  const hits = words.length ? PAGES.map(p => [score(p), p]).filter(([s]) => s).sort((p, q) => q[0] - p[0]).slice(0, 12) : [];
  list.replaceChildren(...hits.map(([, p], i) => {
    const item = node("li", p.t, { role: "option", id: "hit" + i, "aria-selected": "false", "data-href": root + p.h.split("#").map((x, n) => n ? x : x.split("/").map(encodeURIComponent).join("/")).join("#") });
    item.append(node("small", p.k));
    return item;
  }));
  if (words.length && !hits.length) list.append(node("li", "Nothing found", { role: "option", "aria-disabled": "true", "aria-selected": "false" }));
  list.hidden = !words.length;
  box.setAttribute("aria-expanded", String(!list.hidden));
  box.removeAttribute("aria-activedescendant");
}
function move(box, list, by) {
  const items = [...list.querySelectorAll("[data-href]")], now = items.findIndex(i => i.ariaSelected === "true");
  if (!items.length) return;
  const next = items[(now + by + items.length + (now < 0 && by < 0 ? 1 : 0)) % items.length];
  items.forEach(i => i.setAttribute("aria-selected", String(i === next)));
  box.setAttribute("aria-activedescendant", next.id);
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("DOMContentLoaded", () => {
  const scheme = document.getElementById("scheme"), menu = document.getElementById("menu");
  const say = () => { scheme.textContent = SCHEMES[chosen()]; scheme.setAttribute("aria-label", "Colours: " + SCHEMES[chosen()]); };
  say();
  scheme.addEventListener("click", () => {
    const index = (chosen() + 1) % 3, name = ["", "light", "dark"][index];
    const color = { media: `(prefers-color-scheme${name && ": " + name})`, ...(name && { scheme: name === "dark" ? "slate" : "default" }) };
    localStorage.setItem(SLOT, JSON.stringify({ index, color }));
    paint(index);
    say();
  });
  menu.addEventListener("click", () => menu.setAttribute("aria-expanded", String(document.getElementById("nav").classList.toggle("open"))));

  const filters = document.querySelector("[data-filters]"), comparison = document.querySelector("[data-compare]");
  for (const form of document.forms) form.addEventListener("submit", event => event.preventDefault());
  if (filters) {
    restore(filters);
    filter(filters);
    filters.addEventListener("input", () => filter(filters));
  }
  const [, by, way] = /^(.+)-(up|down)$/.exec(given.get("sort") ?? "") ?? [];
  if (by) sortBy(by, way === "down");
  if (comparison) {
    const data = JSON.parse(document.getElementById("values").textContent);
    restore(comparison);
    compare(comparison, data);
    comparison.addEventListener("input", () => compare(comparison, data));
  }
  document.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button?.matches(".sort")) sortClick(button);
    if (button?.matches("[data-clear]")) { filters.reset(); filter(filters); }
  });

  const box = document.getElementById("find"), list = document.getElementById("found");
  const close = () => { list.hidden = true; box.setAttribute("aria-expanded", "false"); };
  box.addEventListener("input", () => search(box, list));
  box.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { move(box, list, event.key === "ArrowDown" ? 1 : -1); event.preventDefault(); }
    else if (event.key === "Escape") close();
    else if (event.key === "Enter") (list.querySelector("[aria-selected=true][data-href]") ?? list.querySelector("[data-href]"))?.click();
  });
  list.addEventListener("click", event => { const hit = event.target.closest("[data-href]"); if (hit) location.href = hit.dataset.href; });
  document.addEventListener("click", event => { if (!event.target.closest("search")) close(); });
  document.addEventListener("keydown", event => {
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { box.focus(); event.preventDefault(); }
  });
});
