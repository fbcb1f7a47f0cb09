// "year >= 1900, shop = Ulm" as the API's filter: one condition each, separated by commas, all of which must hold.

const OPERATORS = { "=": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte" };
// Names as the API writes them: one that is not of plain characters stands in double quotes.
const CONDITION = /^((?:[\w-]+|"[^"\\]+")(?:\.(?:[\w-]+|"[^"\\]+"))*)\s*(!=|<=|>=|=|<|>)\s*(.+)$/s;

import * as exact from "./exact.js";

// The filter as JSON text, "" for none. Throws an Error whose message can be shown.
export function filterOf(text) {
  const conditions = text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean)
    .map(condition);
  return conditions.length ? exact.write({ and: conditions }) : "";
}

function condition(text) {
  const match = CONDITION.exec(text);
  if (!match) throw new Error(`“${text}” is no condition: write for example year >= 1900, shop = Ulm`);
  const [, name, operator, value] = match;
  const field = name === "id" || name === "label" ? name : `metadata.${name.replace(/^metadata\./, "")}`;
  return { [field]: { [OPERATORS[operator]]: plain(value.trim()) } };
}

// "3" is the number 3 and "true" is true; what is no JSON is text.
export function plain(text) {
  try {
    return exact.parse(text);
  } catch {
    return text;
  }
}
