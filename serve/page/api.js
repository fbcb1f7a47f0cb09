// Talks to the service. Every failure is an Error whose message the page can show as it is.

import * as exact from "./exact.js";

let key = sessionStorage.getItem("kindred-key") || "";

// The service's address. A proxy may serve it below a path, so no address begins with a slash.
const root = new URL("../", import.meta.url);

// The collection in use; "" is the service's default.
let collection = "";

export function setCollection(name) {
  collection = name;
}

function here(fields = {}) {
  const given = Object.entries({ ...fields, collection }).filter(([, value]) => value !== "" && value !== null);
  const query = new URLSearchParams(given).toString();
  return query ? `?${query}` : "";
}

export function setKey(value) {
  key = value;
  if (value) sessionStorage.setItem("kindred-key", value);
  else sessionStorage.removeItem("kindred-key");
}

export class ServiceError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(new URL(path, root), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "The service does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let detail = `The service answered ${response.status}.`;
  try {
    detail = (await response.json()).detail || detail;
  } catch {
    // Not a problem document: only the status is known.
  }
  throw new ServiceError(response.status, detail);
}

async function json(path, options) {
  return exact.parse(await (await request(path, options)).text());
}

function form(fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== null && value !== undefined && value !== "") data.append(name, value);
  }
  return data;
}

const INTEGER = /^(0|-?[1-9]\d{0,18})$/;

// The integer 7 is `7` in a path, the string "7" is `"7"`: see the API's description.
export function idText(id) {
  if (typeof id !== "string") return String(id);
  return INTEGER.test(id) || id.startsWith('"') || id.includes("/") || /^\.\.?$/.test(id) ? `"${id}"` : id;
}

// The inverse of `idText`.
export function idOf(text) {
  return INTEGER.test(text) ? exact.parse(text) : text.replace(/^"(.*)"$/s, "$1");
}

function itemPath(id) {
  return `v1/items/${encodeURIComponent(idText(id))}`;
}

export function searchImage(image, options, signal) {
  return json("v1/search", { method: "POST", body: form({ image, collection, ...options }), signal });
}

export function searchSimilar(id, options, signal) {
  return json(`${itemPath(id)}/similar${here(options)}`, { signal });
}

export function verify(first, second, rate) {
  return json("v1/verify", { method: "POST", body: form({ first, second, false_accept_rate: rate }) });
}

export function addItem(image, id, label, metadata) {
  const fields = { image, id, label, collection, metadata: exact.write(metadata) };
  return json("v1/items", { method: "POST", body: form(fields) });
}

export function deleteItem(id) {
  return json(`${itemPath(id)}${here()}`, { method: "DELETE" });
}

export function listItems(after, limit, options, signal) {
  return json(`v1/items${here({ after, limit, ...options })}`, { signal });
}

export function sampleItems(limit, signal) {
  return json(`v1/items${here({ sample: true, limit })}`, { signal });
}

export const stats = () => json(`v1/stats${here()}`);
export const labels = () => json(`v1/labels${here()}`);
export const collections = () => json("v1/collections");
export const model = () => json("v1/model");

export async function thumbnail(id) {
  return (await request(`${itemPath(id)}/thumbnail${here()}`)).blob();
}

// Shows an item's thumbnail. With a key the picture has to be fetched: an <img> cannot send headers.
export async function showThumbnail(img, id) {
  img.addEventListener("error", () => img.classList.add("none"), { once: true });
  if (!key) {
    img.src = new URL(`${itemPath(id)}/thumbnail${here()}`, root);
    return;
  }
  try {
    const url = URL.createObjectURL(await thumbnail(id));
    img.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    img.src = url;
  } catch {
    img.classList.add("none");
  }
}
