// JSON whose integers may have more digits than a JavaScript number keeps (about 16): these are BigInt here.
// Rounded, the id of one item would become that of another.

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const LONG = /^-?[1-9]\d{15,}$/;
// Stands before the digits of a long integer inside a string; no other string begins with it.
const MARK = `long${Math.random().toString(36).slice(2)}:`;
const MARKED = new RegExp(`"${MARK}(-?\\d+)"`, "g");

export function parse(text) {
  const marked = text.replace(TOKEN, (token) => (LONG.test(token) ? `"${MARK}${token}"` : token));
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}

export function write(value) {
  const marked = JSON.stringify(value, (_, one) => (typeof one === "bigint" ? `${MARK}${one}` : one));
  return marked.replace(MARKED, "$1");
}
