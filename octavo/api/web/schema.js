// Does a value follow a JSON schema? Knows the keywords that schemas for answers use, and says which it did not look at.

const SILENT = new Set([
  "$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples", "$comment",
]);
const MOST = 20; // problems named

/** {problems: [text], unknown: [keyword]} */
export function check(value, schema) {
  const found = { problems: [], unknown: new Set(), root: schema };
  visit(value, schema, "the answer", found, 0);
  return { problems: found.problems.slice(0, MOST), unknown: [...found.unknown] };
}

function visit(value, schema, place, found, depth) {
  if (schema === true || depth > 100) return;
  if (schema === false) return void found.problems.push(`${place} must not be there`);
  if (typeof schema !== "object" || schema === null) return;
  for (const [keyword, wanted] of Object.entries(schema)) {
    const rule = RULES[keyword];
    if (rule) {
      const problem = rule(value, wanted, { schema, place, found, depth });
      if (problem) found.problems.push(`${place} ${problem}`);
    } else if (!SILENT.has(keyword)) found.unknown.add(keyword);
  }
}

const show = (value) => JSON.stringify(value).slice(0, 60);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const length = (text) => [...text].length;
const own = (object, key) => Object.hasOwn(object, key);

function fits(value, type) {
  if (type === "integer") return Number.isInteger(value);
  if (type === "array") return Array.isArray(value);
  if (type === "object") return isObject(value);
  if (type === "null") return value === null;
  return typeof value === type;
}

const passes = (value, schema, { found, depth }) => {
  const inner = { ...found, problems: [] };
  visit(value, schema, "", inner, depth + 1);
  return inner.problems.length === 0;
};

const bound = (test, words) => (value, limit) =>
  (typeof value === "number" && !test(value, limit) ? `${words} ${limit}` : null);
const sized = (is, size, test, words) => (value, limit) =>
  (is(value) && !test(size(value), limit) ? `${words} ${limit}` : null);
const isText = (value) => typeof value === "string";
const atLeast = (a, b) => a >= b;
const atMost = (a, b) => a <= b;
const items = (value) => value.length;
const keys = (value) => Object.keys(value).length;

const RULES = {
  type: (value, wanted) => {
    const types = [].concat(wanted);
    return types.some((type) => fits(value, type)) ? null : `must be of type ${types.join(" or ")}, not ${show(value)}`;
  },
  enum: (value, values) =>
    values.some((each) => same(each, value)) ? null : `must be one of ${show(values)}, not ${show(value)}`,
  const: (value, wanted) => (same(value, wanted) ? null : `must be ${show(wanted)}`),
  minimum: bound(atLeast, "must be at least"),
  maximum: bound(atMost, "must be at most"),
  exclusiveMinimum: bound((a, b) => a > b, "must be above"),
  exclusiveMaximum: bound((a, b) => a < b, "must be below"),
  multipleOf: bound((a, b) => Number.isInteger(Number((a / b).toFixed(9))), "must be a multiple of"),
  minLength: sized(isText, length, atLeast, "must have a length of at least"),
  maxLength: sized(isText, length, atMost, "must have a length of at most"),
  minItems: sized(Array.isArray, items, atLeast, "must have at least this many items:"),
  maxItems: sized(Array.isArray, items, atMost, "must have at most this many items:"),
  minProperties: sized(isObject, keys, atLeast, "must have at least this many fields:"),
  maxProperties: sized(isObject, keys, atMost, "must have at most this many fields:"),
  uniqueItems: (value, wanted) => {
    const all = wanted && Array.isArray(value) ? value.map((each) => JSON.stringify(each)) : [];
    return new Set(all).size < all.length ? "must not repeat items" : null;
  },
  pattern: (value, pattern) => {
    try {
      return isText(value) && !new RegExp(pattern, "u").test(value) ? `must match ${pattern}` : null;
    } catch {
      return null; // another dialect of regular expressions
    }
  },
  required: (value, names) => {
    const missing = isObject(value) ? names.filter((name) => !own(value, name)) : [];
    return missing.length ? `lacks ${missing.join(", ")}` : null;
  },
  properties: (value, schemas, { place, found, depth }) => {
    if (!isObject(value)) return;
    for (const [name, schema] of Object.entries(schemas))
      if (own(value, name)) visit(value[name], schema, `${place} › ${name}`, found, depth + 1);
  },
  additionalProperties: (value, schema, { schema: whole, place, found, depth }) => {
    if (!isObject(value)) return;
    const patterns = Object.keys(whole.patternProperties ?? {}).map((each) => new RegExp(each, "u"));
    for (const name of Object.keys(value))
      if (!own(whole.properties ?? {}, name) && !patterns.some((each) => each.test(name)))
        visit(value[name], schema, `${place} › ${name}`, found, depth + 1);
  },
  items: (value, schema, { schema: whole, place, found, depth }) => {
    if (!Array.isArray(value)) return;
    for (let i = whole.prefixItems?.length ?? 0; i < value.length; i += 1)
      visit(value[i], schema, `${place} › ${i + 1}`, found, depth + 1);
  },
  prefixItems: (value, schemas, { place, found, depth }) => {
    if (!Array.isArray(value)) return;
    for (const [i, schema] of schemas.slice(0, value.length).entries())
      visit(value[i], schema, `${place} › ${i + 1}`, found, depth + 1);
  },
  $ref: (value, reference, { place, found, depth }) => {
    let target = found.root;
    for (const step of reference.replace(/^#\/?/, "").split("/").filter(Boolean))
      target = target?.[decodeURIComponent(step).replaceAll("~1", "/").replaceAll("~0", "~")];
    if (target === undefined || !reference.startsWith("#")) found.unknown.add(`$ref ${reference}`);
    else visit(value, target, place, found, depth + 1);
  },
  allOf: (value, schemas, { place, found, depth }) => {
    for (const schema of schemas) visit(value, schema, place, found, depth + 1);
  },
  anyOf: (value, schemas, how) =>
    schemas.some((schema) => passes(value, schema, how)) ? null : "fits none of the alternatives",
  oneOf: (value, schemas, how) => {
    const fitting = schemas.filter((schema) => passes(value, schema, how)).length;
    return fitting === 1 ? null : "must fit exactly one of the alternatives";
  },
  not: (value, schema, how) => (passes(value, schema, how) ? "must not be what it is" : null),
};
