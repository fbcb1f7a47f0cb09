// The page: tabs, the query and its results, the dialogs.

import { Adding } from "./add.js";
import * as api from "./api.js";
import { Compare } from "./compare.js";
import { filterOf } from "./filter.js";
import { Picker, imageIn } from "./picker.js";
import * as results from "./results.js";

const by = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const PAGE = 48;

// The query: {image} or {id}, or null while browsing.
let query = null;
let browsed = null;
let shown = new Set();
let running = null;

// --- messages -------------------------------------------------------------------------------------------------

function trouble(error) {
  if (error.name === "AbortError") return;
  by("trouble").textContent = error.message;
  by("trouble").hidden = false;
  if (error.status === 401 || error.status === 403) askKey(error.message);
}

function say(text) {
  by("trouble").hidden = true;
  by("say").textContent = text;
}

document.addEventListener("trouble", (event) => trouble(new Error(event.detail)));

// --- tabs -----------------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];

function select(tab, { focus = false } = {}) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", String(chosen));
    one.tabIndex = chosen ? 0 : -1;
    by(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  by("trouble").hidden = true;
  if (focus) tab.focus();
}

for (const [at, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(tabs[(at + step + tabs.length) % tabs.length], { focus: true });
  });
}

const active = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true").id;

// --- search ---------------------------------------------------------------------------------------------------

const picker = new Picker(document.querySelector('[data-picker="query"]'), (image) => {
  history.pushState(null, "", "#");
  if (image) run({ image });
  else browse();
});

// The conditions of both browsing and searching.
function conditions() {
  return { label: by("label").value.trim(), filter: filterOf(by("filter").value) };
}

function options() {
  return {
    ...conditions(),
    k: by("k").value,
    min_similarity: by("floor").value,
    group_by: by("group").checked ? "label" : "",
  };
}

// The results show the answer to the latest request; an earlier request in progress is aborted.
function onlyThis() {
  running?.abort();
  running = new AbortController();
  by("results").setAttribute("aria-busy", "true");
  return running.signal;
}

function finished(signal) {
  if (!signal.aborted) by("results").removeAttribute("aria-busy");
}

async function run(next) {
  query = next;
  const signal = onlyThis();
  const started = performance.now();
  try {
    const answer = query.image
      ? await api.searchImage(query.image, options(), signal)
      : await api.searchSimilar(query.id, options(), signal);
    const roundTrip = performance.now() - started;
    results.draw(answer.hits, { onSearch: searchBy, onAbout: about });
    results.explain(answer, roundTrip);
    const count = answer.hits.length;
    by("heading").textContent = count ? `${count} nearest` : "Nothing near enough";
    by("more").hidden = by("empty").hidden = true;
    say(`${count} results in ${roundTrip.toFixed(0)} milliseconds`);
  } catch (error) {
    trouble(error);
  } finally {
    finished(signal);
  }
}

function searchBy(item) {
  select(tabs[0]);
  history.pushState(null, "", `#${encodeURIComponent(api.idText(item.id))}`);
  showQuery(item.id);
  run({ id: item.id });
  window.scrollTo({ top: 0 });
}

async function showQuery(id) {
  try {
    picker.show(await api.thumbnail(id));
  } catch {
    picker.show(null);
  }
}

// Shows a mixture of all labels, or what passes the conditions, page by page. `more` adds a page.
async function browse({ more = false } = {}) {
  query = null;
  const signal = onlyThis();
  try {
    const { label, filter } = conditions();
    const narrowed = Boolean(label || filter);
    if (!more) shown = new Set();
    const page = narrowed
      ? await api.listItems(more ? browsed : null, PAGE, { label, filter }, signal)
      : await api.sampleItems(PAGE, signal);
    const fresh = page.items.filter((item) => !shown.has(api.idText(item.id)));
    for (const item of fresh) shown.add(api.idText(item.id));
    results.draw(fresh, { onSearch: searchBy, onAbout: about, append: more });
    results.explain(null);
    browsed = page.next;
    by("more").hidden = narrowed ? page.next === null : page.items.length < PAGE || !fresh.length;
    by("empty").hidden = page.items.length > 0 || more || narrowed;
    by("heading").textContent = narrowed && !page.items.length ? "Nothing passes the filter" : "Have a look around";
    if (!more) say(`${page.items.length} items shown`);
  } catch (error) {
    trouble(error);
  } finally {
    finished(signal);
  }
}

by("more").addEventListener("click", () => browse({ more: true }));
by("options").addEventListener("submit", (event) => event.preventDefault());
by("options").addEventListener("change", (event) => {
  if (event.target.type === "file" || event.target.id === "collection") return;
  if (query) run(query);
  else browse();
});

function followAddress() {
  const text = decodeURIComponent(location.hash.slice(1));
  if (!text) {
    picker.show(null);
    browse();
    return;
  }
  const id = api.idOf(text);
  showQuery(id);
  run({ id });
}

window.addEventListener("popstate", followAddress);

// --- paste and drop anywhere ------------------------------------------------------------------------------------

function takeAnywhere(image) {
  if (!image) return;
  if (active() === "tab-compare") compare.take(image);
  else if (active() === "tab-add") adding.take(image);
  else picker.take(image);
}

document.addEventListener("paste", (event) => takeAnywhere(imageIn(event.clipboardData)));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  takeAnywhere(imageIn(event.dataTransfer));
});

// --- details, compare, delete -----------------------------------------------------------------------------------

const compare = new Compare(trouble);

function about(item) {
  const dialog = by("details");
  by("details-title").textContent = item.label ?? String(item.id);
  by("details-image").classList.remove("none");
  api.showThumbnail(by("details-image"), item.id);
  results.describe(item, by("details-facts"));
  const erase = by("delete");
  erase.textContent = "Delete";
  erase.onclick = () => {
    if (erase.textContent === "Delete") erase.textContent = "Really delete?";
    else dialog.close("delete");
  };
  dialog.returnValue = "";
  dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue === "similar") searchBy(item);
    if (dialog.returnValue === "compare") compareWith(item);
    if (dialog.returnValue === "delete") remove(item);
  };
}

async function compareWith(item) {
  try {
    const image = await api.thumbnail(item.id);
    select(tabs[1], { focus: true });
    if (picker.image && !compare.first.image) compare.first.show(picker.image);
    compare.take(image);
  } catch (error) {
    trouble(error);
  }
}

async function remove(item) {
  try {
    await api.deleteItem(item.id);
    await refresh();
    if (query && query.id !== item.id) await run(query);
    else followAddressAfresh();
    say(`${item.label ?? item.id} deleted`);
  } catch (error) {
    trouble(error);
  }
}

function followAddressAfresh() {
  history.replaceState(null, "", "#");
  followAddress();
}

// --- add --------------------------------------------------------------------------------------------------------

const adding = new Adding(async () => {
  say("");
  await refresh();
  if (!query) browse();
}, trouble);

// --- key, theme -------------------------------------------------------------------------------------------------

function askKey(why) {
  const dialog = by("keys");
  if (dialog.open) return;
  if (why) by("keys-why").textContent = why;
  by("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue !== "use") return;
    api.setKey(by("key").value.trim());
    by("trouble").hidden = true;
    start();
  };
}

by("key-open").addEventListener("click", () => askKey(""));

const root = document.documentElement;
const saved = localStorage.getItem("kindred-theme");
if (saved) root.dataset.theme = saved;
by("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("kindred-theme", root.dataset.theme);
});

// --- start ------------------------------------------------------------------------------------------------------

async function refresh() {
  const [figures, known] = await Promise.all([api.stats(), api.labels()]);
  const names = Object.entries(known.labels);
  by("labels").replaceChildren(...names.map(([label, count]) => new Option(`${number.format(count)}`, label)));
  const classes = names.length >= 1000 ? "1,000+" : number.format(names.length);
  by("facts").textContent = `${number.format(figures.items)} images · ${classes} labels`;
}

// Shown only where there are several. Aliases come first, because people should use them.
async function offerCollections() {
  const known = await api.collections();
  const names = [...Object.keys(known.aliases), ...known.collections.map((one) => one.name)];
  by("collection").replaceChildren(...names.map((name) => new Option(name)));
  by("collection").value = known.default;
  by("collection-field").hidden = known.collections.length < 2;
}

by("collection").addEventListener("change", async () => {
  api.setCollection(by("collection").value);
  try {
    await refresh();
    if (query?.image) run(query);
    else followAddressAfresh();
  } catch (error) {
    trouble(error);
  }
});

async function start() {
  try {
    await offerCollections();
    await Promise.all([refresh(), compare.load()]);
    if (!query) followAddress();
  } catch (error) {
    trouble(error);
  }
}

start();
