// The page: rows on the left, the row's tokens in the middle, one token on the right. The address holds the state.
import { element, showDetail, visible } from "/detail.js";

const MEASURES = {
  entropy: { name: "entropy", full: 7, unit: "nats" },
  rest: { name: "rest mass", full: 0.6, unit: "" },
  label: { name: "label", full: 10, unit: "nats of surprise at the label" },
  kl: { name: "KL", full: 5, unit: "nats between teacher and student" },
};
const $ = (id) => document.getElementById(id);
const state = { data: "", row: 0, token: null, by: "entropy", q: "", source: "", list: "rows" };
let about, row = null, spans = [], following = null, items = [], listKey = "", rowKey = "", asking = 0, detailing = 0, loading = false;

async function get(path, given) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(given)}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function complain(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const names = about.datasets.map((d) => d.name);
  state.data = names.includes(given.get("data")) ? given.get("data") : names.includes("val") ? "val" : names[0];
  state.row = Number.parseInt(given.get("row") ?? "0", 10) || 0;
  state.token = given.has("token") ? Number.parseInt(given.get("token"), 10) : null;
  state.by = given.get("by") in MEASURES ? given.get("by") : "entropy";
  if (state.by === "kl" && !about.student) state.by = "entropy";
  state.q = given.get("q") ?? "";
  state.source = given.get("source") ?? "";
  state.list = given.get("list") === "worst" ? "worst" : "rows";
}

function go(change, push = false) {
  Object.assign(state, change);
  const kept = Object.entries(state).filter(([, v]) => v !== "" && v !== null);
  history[push ? "pushState" : "replaceState"](null, "", `#${new URLSearchParams(kept)}`);
  return show();
}

async function show() {
  $("data").value = state.data;
  if (document.activeElement !== $("search")) $("search").value = state.q;
  document.body.dataset.by = state.by;
  for (const b of document.querySelectorAll("#measures button")) b.setAttribute("aria-pressed", b.dataset.by === state.by);
  for (const b of document.querySelectorAll(".tabs button")) b.setAttribute("aria-selected", b.dataset.list === state.list);
  showList();
  await showRow();
}

const dataset = () => about.datasets.find((d) => d.name === state.data);

async function showList() {
  const worst = state.list === "worst" && dataset().captures;
  const key = JSON.stringify([state.data, state.list, worst ? state.by : [state.q, state.source]]);
  if (key !== listKey) {
    listKey = key;
    items = [];
    $("list").replaceChildren();
    await (worst ? loadWorst(key) : loadRows(key, state.q || state.source ? 0 : Math.max(0, state.row - 5)));
  }
  markList();
}

async function loadRows(key, from) {
  loading = true;
  try {
    const said = await get("rows", { data: state.data, from, q: state.q, source: state.source });
    if (key !== listKey) return;
    following = said.next;
    const chosen = state.source;
    $("source").replaceChildren(new Option("all sources", ""), ...[...new Set([...said.sources, chosen])].filter(Boolean).map((s) => new Option(s, s)));
    $("source").value = chosen;
    add(said.rows.map((r) => ({ row: r.row, node: rowItem(r) })));
    progress(said, state.q || state.source ? `${items.length.toLocaleString()} found${following === null ? "" : " so far"}` : "");
    if (state.q || state.source) {
      if (items.length < 50 && following !== null) setTimeout(() => key === listKey && loadRows(key, following), said.rows.length ? 0 : 400);
    }
  } catch (e) { complain(e); } finally { loading = false; }
}

async function loadWorst(key) {
  try {
    const said = await get("worst", { data: state.data, by: state.by });
    if (key !== listKey) return;
    const at = $("list").scrollTop;
    items = [];
    $("list").replaceChildren();
    add(said.tokens.map((t) => ({ row: t.row, token: t.position + 1, node: worstItem(t) })));
    $("list").scrollTop = at;
    progress(said, "");
    if (said.ready < said.of && !said.error) setTimeout(() => key === listKey && loadWorst(key), 700);
  } catch (e) { complain(e); }
}

function progress(said, found) {
  const busy = (state.q || state.source || state.list === "worst") && said.ready < said.of;
  const read = busy ? `${said.ready.toLocaleString()} of ${said.of.toLocaleString()} rows read` : "";
  $("progress").textContent = said.error ?? [found, read].filter(Boolean).join(" · ");
}

function add(more) {
  for (const item of more) {
    item.node.addEventListener("click", () => go({ row: item.row, token: item.token ?? null }, true));
    items.push(item);
    $("list").append(item.node);
  }
  markList();
}

const top = (left, right) => element("span", { className: "top" }, element("b", { textContent: left }), element("span", { textContent: right }));

function rowItem(r) {
  const right = [r.source, `${r.tokens} tokens`, r.entropy === null ? "" : `${r.entropy.toFixed(2)} nats`].filter(Boolean).join(" · ");
  return element("button", {}, top(`#${r.row}`, right), element("span", { className: "snippet", textContent: r.text.trim() || "∅" }));
}

function worstItem(t) {
  const text = element("span", { className: "snippet" }, `…${t.context.slice(-60)}`, element("mark", { textContent: visible(t.token) }));
  return element("button", {}, top(t.value.toFixed(3), `#${t.row} · token ${t.position + 1}`), text);
}

const isCurrent = (item) => item.row === state.row && (item.token === undefined || item.token === state.token);

function markList() {
  for (const item of items) item.node.setAttribute("aria-current", isCurrent(item));
  items.find(isCurrent)?.node.scrollIntoView({ block: "nearest" });
}

async function showRow() {
  const key = `${state.data}/${state.row}`;
  if (key !== rowKey) {
    const mine = ++asking;
    rowKey = key;
    try {
      const said = await get("row", { data: state.data, row: state.row });
      if (mine !== asking) return;
      row = said;
      complain(null);
      draw();
    } catch (e) {
      if (mine !== asking) return;
      row = null; spans = [];
      $("text").replaceChildren();
      complain(e);
      return;
    }
  }
  if (!row) return;
  if (state.by === "kl" && !row.kl) askKl(row);
  colour();
  pick();
}

async function askKl(of) {
  if (of.asked) return;
  of.asked = true;
  try {
    Object.assign(of, { kl: (await get("scores", { data: state.data, row: of.row })).kl });
    if (of === row) colour();
  } catch (e) { complain(e); }
}

function draw() {
  $("about").querySelector("h2").textContent = `Row ${row.row.toLocaleString()}` + (row.row_id === row.row ? "" : ` (id ${row.row_id})`);
  $("facts").textContent = [row.source, `${row.pieces.length} tokens`, `${row.positions.length} scored`, `${row.segments.length} segment${row.segments.length === 1 ? "" : "s"}`].filter(Boolean).join(" · ");
  row.at = new Map(row.positions.map((p, n) => [p + 1, n]));
  const starts = new Set(row.segments), inRun = new Set(row.prompt_runs.flatMap(([a, b]) => Array.from({ length: b - a }, (_, i) => a + i)));
  const nodes = [];
  spans = row.pieces.map((piece, t) => {
    if (t && starts.has(t)) nodes.push(element("hr", { title: "a segment begins: context starts anew" }));
    const span = element("span", { className: row.at.has(t) ? "scored" : "plain" });
    span.dataset.token = t;
    if (inRun.has(t)) span.classList.add("run");
    if (piece === "") span.append(element("small", { textContent: "·", title: "part of the next token’s character" }));
    else if (piece.includes("\n")) for (const part of piece.split(/(\n)/)) span.append(...(part === "\n" ? [element("small", { textContent: "⏎" }), "\n"] : [part]));
    else span.textContent = piece;
    nodes.push(span);
    return span;
  });
  markFound();
  $("text").replaceChildren(...nodes);
  document.querySelector("article").scrollTop = 0;
}

function markFound() {
  const needle = state.q.toLowerCase();
  if (!needle || needle.startsWith("#")) return;
  const text = row.pieces.join("").toLowerCase();
  const ends = []; let n = 0;
  for (const p of row.pieces) ends.push((n += p.length));
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length))
    spans.forEach((s, t) => { if (ends[t] > at && ends[t] - row.pieces[t].length < at + needle.length) s.classList.add("found"); });
}

function colour() {
  const { full, unit, name } = MEASURES[state.by], values = row[state.by];
  $("high").textContent = `${full} ${unit}${unit.includes(" ") ? "" : ` ${name}`}`.replace("  ", " ") + (values || !row.entropy ? "" : " (the student is reading…)");
  $("legend").hidden = !row.entropy;
  spans.forEach((span, t) => {
    const n = row.at.get(t), value = values && n !== undefined ? values[n] : undefined;
    span.style.setProperty("--v", value === undefined ? 0 : Math.min(1, Math.max(0, value / full)));
    span.title = value === undefined ? "" : `${name} ${value.toFixed(3)}`;
  });
}

async function pick() {
  document.querySelector("#text .picked")?.classList.remove("picked");
  const mine = ++detailing;
  const token = state.token;
  if (token === null || !row.at.has(token) || !row.entropy) {
    const text = token === null ? "Click a token, or press → , to see what was expected in its place." : "This token was not predicted: nothing is stored for it.";
    $("detail").replaceChildren(element("p", { className: "hint", textContent: text }));
    return;
  }
  spans[token].classList.add("picked");
  spans[token].scrollIntoView({ block: "nearest" });
  const context = row.pieces.slice(Math.max(0, token - 24), token).join("");
  const given = { data: state.data, row: row.row, position: token - 1 };
  try {
    const said = await get("position", given);
    if (mine !== detailing) return;
    showDetail($("detail"), context, said);
    if (!about.student) return;
    const both = await get("position", { ...given, student: 1 });
    if (mine === detailing) showDetail($("detail"), context, both);
  } catch (e) { if (mine === detailing) complain(e); }
}

function step(by) {
  if (!row) return;
  const tokens = row.positions.map((p) => p + 1);
  const next = by > 0 ? tokens.find((t) => state.token === null || t > state.token) : tokens.findLast((t) => state.token !== null && t < state.token);
  if (next !== undefined) go({ token: next });
}

function stepLine(by) {
  const here = spans[state.token]?.getBoundingClientRect();
  if (!here) { step(by); return; }
  const boxes = spans.map((s, t) => ({ t, box: s.getBoundingClientRect() })).filter(({ t, box }) => row.at.has(t) && (by > 0 ? box.top > here.top + 8 : box.top < here.top - 8));
  const line = by > 0 ? Math.min(...boxes.map((b) => b.box.top)) : Math.max(...boxes.map((b) => b.box.top));
  const best = boxes.filter((b) => Math.abs(b.box.top - line) < 8).sort((a, b) => Math.abs(a.box.left - here.left) - Math.abs(b.box.left - here.left))[0];
  if (best) go({ token: best.t });
}

async function move(by) {
  let at = items.findIndex(isCurrent);
  if (at + by >= items.length && state.list === "rows" && following !== null) await loadRows(listKey, following);
  if (at < 0) at = by > 0 ? -1 : 1;
  const to = items[at + by];
  if (to) go({ row: to.row, token: to.token ?? null });
  else if (!state.q && !state.source && state.list === "rows" && state.row + by >= 0 && state.row + by < dataset().rows) { listKey = ""; go({ row: state.row + by, token: null }); }
}

function search(text) {
  const number = /^#(\d+)$/.exec(text.trim());
  if (number) { listKey = ""; go({ q: "", row: Number(number[1]), token: null, list: "rows" }, true); }
  else { rowKey = ""; go({ q: text, list: "rows" }); }
}

function theme() {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
}

const KEYS = {
  j: () => move(1), k: () => move(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowDown: () => stepLine(1), ArrowUp: () => stepLine(-1),
  "/": () => { $("search").focus(); $("search").select(); }, "?": () => $("help").showModal(), t: theme,
  w: () => go({ list: state.list === "worst" ? "rows" : "worst" }),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) { if (event.key === "Escape") event.target.blur(); return; }
  if ($("help").open) return;
  const number = Number(event.key);
  const measure = number >= 1 ? document.querySelectorAll("#measures button")[number - 1] : undefined;
  if (!(event.key in KEYS) && !measure) return;
  event.preventDefault();
  if (measure) measure.click();
  else KEYS[event.key]();
}

async function begin() {
  if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
  about = await get("about", {});
  $("data").append(...about.datasets.map((d) => new Option(`${d.name} · ${d.rows.toLocaleString()} rows`, d.name)));
  for (const [by, { name }] of Object.entries(MEASURES)) {
    if (by === "kl" && !about.student) continue;
    const button = element("button", { textContent: name, onclick: () => go({ by }) });
    button.dataset.by = by;
    $("measures").append(button);
  }
  $("data").onchange = () => go({ data: $("data").value, row: 0, token: null, source: "" }, true);
  $("source").onchange = () => go({ source: $("source").value, list: "rows" }, true);
  let typing;
  $("search").oninput = () => { clearTimeout(typing); typing = setTimeout(() => $("search").value.startsWith("#") || search($("search").value), 250); };
  $("search").onkeydown = (e) => { if (e.key === "Enter") { clearTimeout(typing); search($("search").value); $("search").blur(); } };
  for (const b of document.querySelectorAll(".tabs button")) b.onclick = () => go({ list: b.dataset.list });
  $("text").onclick = (e) => { const t = e.target.closest("[data-token]"); if (t) go({ token: Number(t.dataset.token) }); };
  $("list").onscroll = () => { const l = $("list"); if (state.list === "rows" && !loading && following !== null && l.scrollTop + l.clientHeight > l.scrollHeight - 300) loadRows(listKey, following); };
  $("theme").onclick = theme;
  $("ask").onclick = () => $("help").showModal();
  addEventListener("keydown", onKey);
  addEventListener("popstate", () => { readAddress(); show(); });
  readAddress();
  await show();
}

begin().catch(complain);
