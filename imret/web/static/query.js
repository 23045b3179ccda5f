// What is looked for: terms that are added and subtracted, and how they are typed.
//
// A term is {typed, minus}; `typed` is what the server reads ("red mushroom", "2:fruit", "id:...",
// "upload:..."), so that it can stand in the address. The search box holds the main words, the first words
// that are added. Enter asks for other main words and leaves all else as it is; "+" and "-" add or subtract
// what stands in the box, and so do words that begin with + or -. A whole sum, as in "dog + cat - grass",
// takes the place of all words; pictures stay.

const KIND = /^(text|image|url|id|stored|upload):([^]*)$/;
const WEIGHT = /^([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?):([^]*)$/i;
const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Return {kind, value, weight} of a typed term, as the server reads it (imret.retrieval.query.parse_term). */
export function parseTerm(typed) {
  let weight = 1;
  let rest = typed;
  const weighted = WEIGHT.exec(typed);
  if (weighted && Number(weighted[1]) > 0) {
    weight = Number(weighted[1]);
    rest = weighted[2];
  }
  const named = KIND.exec(rest);
  if (named) return { kind: named[1], value: named[2], weight };
  if (/^https?:\/\//i.test(rest)) return { kind: "url", value: rest, weight };
  return { kind: ID.test(rest) ? "id" : "text", value: rest, weight };
}

const isWords = (term) => parseTerm(term.typed).kind === "text";
const isMain = (term) => !term.minus && isWords(term);

/** Return the main words as they were typed, or "". */
export function mainWords(terms) {
  return terms.find(isMain)?.typed ?? "";
}

/** Return the terms of what somebody typed: separate + and - stand between terms. */
export function parseTyped(text) {
  const terms = [];
  let minus = false;
  let words = [];
  const end = () => {
    if (words.length) terms.push({ typed: words.join(" "), minus });
    words = [];
  };
  for (const word of text.trim().split(/\s+/)) {
    if (word === "+" || word === "-" || word === "\u2212") {
      end();
      minus = word !== "+";
    } else if (word) {
      words.push(word);
    }
  }
  end();
  return terms;
}

/** Return the terms after Enter in the search box. */
export function asked(terms, text) {
  const typed = parseTyped(text);
  if (/^\s*[-+\u2212]\s/.test(text)) return typed.reduce(withTerm, terms);
  if (typed.length > 1) return typed.reduce(withTerm, terms.filter((term) => !isWords(term)));
  if (typed.length === 1 && !isWords(typed[0])) return withTerm(terms, typed[0]);
  const main = terms.find(isMain);
  if (!typed.length) return terms.filter((term) => term !== main);
  const others = terms.filter((term) => term !== main && !isSame(term.typed, typed[0].typed));
  return [typed[0], ...others];
}

/** Whether two typed terms are the same words or the same picture, whatever they weigh. */
export function isSame(typed, other) {
  const [a, b] = [parseTerm(typed), parseTerm(other)];
  return a.kind === b.kind && a.value === b.value;
}

/** Return the terms with one more; a term that was there gets the new sign and the new weight. */
export function withTerm(terms, term) {
  const at = terms.findIndex((other) => isSame(other.typed, term.typed));
  return at < 0 ? [...terms, term] : terms.with(at, term);
}

export function withoutTerm(terms, typed) {
  return terms.filter((term) => term.typed !== typed);
}

/** Return a typed term with another weight. */
export function weighted(typed, weight) {
  const found = WEIGHT.exec(typed);
  const rest = found && Number(found[1]) > 0 ? found[2] : typed;
  if (weight !== 1) return `${weight}:${rest}`;
  return WEIGHT.test(rest) ? `text:${rest}` : rest; // words that begin like a weight
}

/** Return 1 where a stored picture is added, -1 where it is subtracted, else 0. */
export function signOf(terms, id) {
  const term = terms.find((other) => {
    const { kind, value } = parseTerm(other.typed);
    return kind === "id" && value === id;
  });
  return term ? (term.minus ? -1 : 1) : 0;
}

/** Whether there is something to look for: a query of subtractions alone finds nothing. */
export const canBeAsked = (terms) => terms.some((term) => !term.minus);
