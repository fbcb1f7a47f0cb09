// Lists every endpoint of the OpenAPI document, with its parameters, body and answer.

const place = document.getElementById("endpoints");

function make(tag, text = "", kind = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return options.map(nameOf).join(" or ");
  if (schema.type === "array") return `list of ${nameOf(schema.items) || "values"}`;
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  return schema.format === "binary" ? "file" : schema.type ?? "value";
}

function fieldTable(rows) {
  const list = make("dl", "", "fieldlist");
  for (const [name, kind, note] of rows) {
    const pair = make("div");
    const value = make("dd", kind);
    if (note) value.append(make("span", ` · ${note}`, "hint"));
    pair.append(make("dt", name), value);
    list.append(pair);
  }
  return list;
}

function resolve(document_, schema) {
  return schema?.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function properties(document_, schema) {
  const whole = resolve(document_, schema);
  const needed = new Set(whole?.required ?? []);
  return Object.entries(whole?.properties ?? {}).map(([name, one]) => {
    const fallback = one.default === undefined || one.default === null ? "" : `${JSON.stringify(one.default)} by default`;
    return [name, nameOf(one), needed.has(name) ? "needed" : fallback];
  });
}

function endpoint(document_, path, method, operation) {
  const whole = make("details", "", "endpoint");
  const head = make("summary");
  head.append(make("span", method.toUpperCase(), `method ${method}`), make("code", path), make("span", operation.summary ?? ""));
  whole.append(head, make("p", operation.description ?? ""));
  const parameters = (operation.parameters ?? []).map((one) => [one.name, nameOf(one.schema), `in the ${one.in}`]);
  if (parameters.length) whole.append(make("h3", "Parameters"), fieldTable(parameters));
  for (const [kind, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    whole.append(make("h3", `Body, ${kind}`));
    const rows = properties(document_, schema);
    whole.append(rows.length ? fieldTable(rows) : make("p", nameOf(schema)));
  }
  const done = Object.entries(operation.responses).find(([status]) => status.startsWith("2"));
  for (const [kind, { schema }] of Object.entries(done?.[1].content ?? {})) {
    whole.append(make("h3", `Answer ${done[0]}, ${kind}${schema ? `: ${nameOf(schema)}` : ""}`));
    const rows = properties(document_, schema);
    if (rows.length) whole.append(fieldTable(rows));
  }
  return whole;
}

const answer = await fetch(new URL("../v1/openapi.json", import.meta.url));
const document_ = await answer.json();
document.getElementById("about").textContent = document_.info.description;
const groups = new Map();
for (const [path, methods] of Object.entries(document_.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const tag = operation.tags?.[0] ?? "other";
    if (!groups.has(tag)) groups.set(tag, []);
    groups.get(tag).push(endpoint(document_, path, method, operation));
  }
}
place.replaceChildren(
  ...[...groups].flatMap(([tag, entries]) => [make("h2", tag.charAt(0).toUpperCase() + tag.slice(1)), ...entries]),
);
