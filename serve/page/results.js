// Draws neighbours as a grid of cards, and explains how they were found.

import { showThumbnail } from "./api.js";
import * as exact from "./exact.js";

const grid = document.getElementById("results");
const card = document.getElementById("card");
const how = document.getElementById("how");

const number = new Intl.NumberFormat("en");
const STRATEGIES = {
  exact: (count) => `Compared with all ${count} images`,
  exact_subset: (count) => `Compared with each of the ${count} images that pass the filter`,
  approximate: (count, index) => `Approximate index ${index} over ${count} images`,
  approximate_then_exact: (count, index) => `Index ${index} found too few, so all ${count} were compared`,
  empty: () => "There was nothing to compare with",
};
const STAGES = ["decode", "network", "embed", "search"];

export function draw(items, { onSearch, onAbout, append = false }) {
  const cards = items.map((item) => drawCard(item, onSearch, onAbout));
  if (append) grid.append(...cards);
  else grid.replaceChildren(...cards);
}

function drawCard(item, onSearch, onAbout) {
  const entry = card.content.cloneNode(true).firstElementChild;
  const button = entry.querySelector(".card");
  const about = entry.querySelector(".about");
  const name = item.label ?? String(item.id);
  entry.querySelector(".name").textContent = name;
  entry.querySelector(".name").title = `${name} (${item.id})`;
  const extra = summary(item.metadata);
  if (extra) entry.querySelector(".extra").textContent = extra;
  else entry.querySelector(".extra").remove();
  showThumbnail(entry.querySelector("img"), item.id);
  let spoken = `${name}, find similar`;
  if (item.similarity === undefined) {
    entry.querySelector(".closeness").remove();
  } else {
    entry.querySelector(".number").textContent = item.similarity.toFixed(3);
    entry.querySelector(".bar").style.setProperty("--part", Math.max(0, item.similarity).toFixed(3));
    spoken = `${name}, similarity ${item.similarity.toFixed(2)}, find similar`;
  }
  button.setAttribute("aria-label", spoken);
  about.setAttribute("aria-label", `About ${name}`);
  button.addEventListener("click", () => onSearch(item));
  about.addEventListener("click", () => onAbout(item));
  return entry;
}

// What fits under a name: the first values that are short.
function summary(metadata) {
  const values = Object.values(metadata ?? {}).filter((value) => value !== null && typeof value !== "object");
  return values.slice(0, 3).join(" · ");
}

// The arrow keys move through the grid by rows and columns.
grid.addEventListener("keydown", (event) => {
  const cards = [...grid.querySelectorAll(".card")];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) return;
  const top = cards[0].getBoundingClientRect().top;
  const columns = Math.max(1, cards.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 2).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const to = event.key === "Home" ? 0 : event.key === "End" ? cards.length - 1 : at + (step ?? NaN);
  if (cards[to]) {
    event.preventDefault();
    cards[to].focus();
  }
});

export function explain(answer, roundTrip) {
  if (!answer) {
    how.hidden = true;
    return;
  }
  const bar = document.createElement("div");
  bar.className = "stages";
  bar.setAttribute("aria-hidden", "true");
  const list = document.createElement("dl");
  for (const stage of STAGES) {
    const milliseconds = answer.timings_ms[stage];
    if (milliseconds === undefined) continue;
    const part = document.createElement("span");
    part.className = `stage ${stage}`;
    part.style.flexGrow = Math.max(milliseconds, 0.01);
    bar.append(part);
    list.append(fact(stage, `${milliseconds.toFixed(1)} ms`, stage));
  }
  list.append(fact("in the service", `${answer.timings_ms.total.toFixed(1)} ms`));
  list.append(fact("round trip", `${roundTrip.toFixed(0)} ms`));
  const { plan } = answer;
  const text = document.createElement("p");
  const count = plan.candidates === null ? "" : number.format(plan.candidates);
  text.textContent = STRATEGIES[plan.strategy]?.(count, plan.index) ?? plan.strategy;
  text.className = "plan";
  how.replaceChildren(bar, list, text);
  how.hidden = false;
}

function fact(name, value, kind = "") {
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = name;
  if (kind) term.className = `stage-name ${kind}`;
  description.textContent = value;
  const pair = document.createElement("div");
  pair.append(term, description);
  return pair;
}

export function describe(item, list) {
  const rows = [["id", exact.write(item.id)]];
  if (item.similarity !== undefined) rows.push(["similarity", item.similarity.toFixed(4)]);
  for (const [name, value] of Object.entries(item.metadata ?? {})) {
    rows.push([name, typeof value === "string" ? value : exact.write(value)]);
  }
  list.replaceChildren(...rows.map(([name, value]) => fact(name, value)));
}
