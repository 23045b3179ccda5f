// What stands around the pictures and says what is asked for: terms, categories, collections, options, counts.

import * as api from "./api.js";
import { showBox } from "./search-box.js";
import { inWords, showCategories, withCategory } from "./categories.js";
import { chipsOf, labelOf, needsChips } from "./chips.js";
import { byId, el, keepFocus } from "./dom.js";
import { change, current } from "./navigation.js";
import * as query from "./query.js";

let collections = null;
let usual = null; // the collection that an address need not name
let shownTerms = null; // what the chips of the query were made of

/** Bring the controls in line with the state; none of this waits for the server. */
export function showControls() {
  const { state } = current;
  showBox();
  byId("relevant").checked = state.relevant;
  byId("unique").checked = state.unique;
  byId("sort").value = state.group_by ?? state.sort;
  byId("options").hidden = !query.canBeAsked(state.terms);
  showTerms();
  showCollections();
}

/** Show the chips of the query, and the title: anew when the server has said what to call the terms. */
export function showTerms() {
  const { state, answer } = current;
  document.title = state.terms.length ? `${queryInWords()} \u2013 imret` : "imret";
  byId("terms").hidden = !needsChips(state);
  // A slider that somebody holds would be let go by one that takes its place.
  const names = answer?.terms?.map(({ kind, value, label }) => [kind, value, label]);
  const made = JSON.stringify([state.terms, state.where, state.collection, names]);
  if (made === shownTerms) return;
  shownTerms = made;
  const flip = (term) => ({ ...term, minus: !term.minus });
  const chips = byId("terms").hidden ? [] : chipsOf(state, answer?.terms, {
    flipped: (typed) => change({ terms: state.terms.map((term) => (term.typed === typed ? flip(term) : term)) }),
    weighed: weigh,
    removed: (typed) => change({ terms: query.withoutTerm(state.terms, typed) }),
    dropped: (condition) => change({ where: state.where.filter((other) => other !== condition) }),
    cleared: () => change({ terms: [], where: [] }),
  });
  keepFocus(byId("terms"), () => byId("term-list").replaceChildren(...chips), byId("words"));
}

const WAIT_MS = 300; // after a key that moved a slider: more may follow
let wanted = new Map(); // weights that are to be asked for, by typed term
let waiting = 0;

function weigh(typed, weight) {
  wanted.set(typed, weight);
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const terms = current.state.terms.map((term) => (wanted.has(term.typed) ? { ...term, typed: query.weighted(term.typed, wanted.get(term.typed)) } : term));
    wanted = new Map();
    if (JSON.stringify(terms) !== JSON.stringify(current.state.terms)) change({ terms });
  }, WAIT_MS);
}

/** The query in a few words, for titles and messages. */
export function queryInWords() {
  const shown = current.state.terms.map(({ typed, minus }, at) => {
    const term = query.parseTerm(typed);
    const label = labelOf(term, current.answer?.terms);
    const name = term.kind === "text" ? `\u201c${label}\u201d` : label;
    return minus ? `\u2212 ${name}` : at ? `+ ${name}` : name;
  });
  return shown.join(" ");
}

/** How many pictures there are, or how many of the best are shown. */
export function showCount() {
  byId("count").textContent = countInWords(current);
}

function countInWords({ state, answer }) {
  const shown = answer.pictures.length;
  const number = (count) => `${count.toLocaleString()} ${count === 1 ? "picture" : "pictures"}`;
  if (!answer.isSearch) return shown ? number(answer.images) : "";
  if (!shown) return "Nothing found";
  const counts = { ...answer.counts, isSearch: true };
  const order = { score: ", best first", date: ", newest first", path: ", by path" }[state.sort];
  if (state.group_by) return `The best ${api.PER_GROUP} of each category`;
  if (answer.cut && !answer.more) return `The best ${shown.toLocaleString()} of ${inWords(counts.hits, counts, state)}${order}`;
  if (answer.more) return `${capitalized(inWords(counts.hits, counts, state))}${order}`;
  const all = inWords(shown, { ...counts, complete: true }, { ...state, unique: false });
  const hidden = counts.hits - shown;
  if (!state.unique || hidden <= 0) return `${all}${order}`;
  // Where a search looked no further, what it did not show is not all duplicates.
  if (answer.notes.length) return `${all} of ${inWords(counts.hits, counts, state)}${order}`;
  return `${all}${order}, ${hidden.toLocaleString()} ${hidden === 1 ? "duplicate" : "duplicates"} hidden`;
}

const capitalized = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Say that the very picture that is asked with is left out, and let it in. */
export function showLeftOut() {
  const { state, answer } = current;
  const place = byId("left-out");
  const said = [];
  const button = (label, include_self) => el("button", { type: "button", class: "quiet", "data-key": "self",
    onclick: () => change({ include_self }) }, label);
  if (answer?.leftOut && answer.pictures.length) { // where there are none, the notice says it
    said.push(`${answer.leftOut.toLocaleString()} identical ${answer.leftOut === 1 ? "picture" : "pictures"} left out`,
      button(answer.leftOut === 1 ? "Show it" : "Show them", true));
  } else if (answer?.isSearch && state.include_self && state.terms.some(({ typed }) => query.parseTerm(typed).kind !== "text")) {
    said.push("Identical pictures are shown", button("Leave them out", false));
  }
  keepFocus(place, () => place.replaceChildren(...said), byId("words"));
  place.hidden = !said.length;
}

/** Say which words were asked as they were learnt from pictures, and let the words alone be asked. */
export function showLearnt() {
  const { state, answer } = current;
  const place = byId("learnt");
  const said = [];
  const button = (label, concepts) => el("button", { type: "button", class: "quiet", "data-key": "learnt",
    onclick: () => change({ concepts }) }, label);
  if (answer?.concepts?.length) {
    const uses = answer.concepts.map(({ name, images }) => `\u201c${name}\u201d as learnt from ${images.toLocaleString()} ${images === 1 ? "picture" : "pictures"}`);
    said.push(uses.join(", "), button("Ask the words alone", false));
  } else if (answer?.isSearch && !state.concepts) {
    said.push("The words alone are asked", button("Use what was learnt", true));
  }
  keepFocus(place, () => place.replaceChildren(...said), byId("words"));
  place.hidden = !said.length;
}

/** Say what the server left undone; of duplicates the count says it. */
export function showNotes() {
  const { state, answer } = current;
  const notes = state.unique ? [] : answer?.notes ?? [];
  byId("notes").textContent = notes.map((note) => note.charAt(0).toUpperCase() + note.slice(1)).join(" ");
  byId("notes").hidden = !notes.length;
}

// --- collections --------------------------------------------------------------------------------------------

/** What the server says of its collections, {default, collections}; asked for once, or `anew`. */
export async function knownCollections({ anew = false } = {}) {
  if (anew || !collections) collections = await api.collections();
  usual = collections.default;
  return collections;
}

async function showCollections() {
  let known;
  try {
    known = await knownCollections();
  } catch {
    return; // what is asked for besides says what is wrong
  }
  const names = known.collections.map(({ name }) => name);
  const here = current.state.collection ?? usual;
  // One that is not there can still be what the address asks for.
  const shown = names.includes(here) ? names : [here, ...names];
  byId("collection-label").hidden = shown.length < 2;
  byId("collection").replaceChildren(...shown.map((name) => el("option", { value: name, selected: name === here }, name)));
}

/** Pictures and categories of one collection mean nothing in another; words and sent pictures do. */
export function openCollection(name) {
  const terms = current.state.terms.filter(({ typed }) => !["id", "stored"].includes(query.parseTerm(typed).kind));
  change({ collection: name === usual ? null : name, terms, category: [], not_category: [] });
}

/** Forget what was learnt of the server's collections: they may have changed. */
export function forgetCollections() {
  collections = null;
}

// --- categories ---------------------------------------------------------------------------------------------

/** Show the chips of what is shown; where nothing is, those that can be chosen, without a number. */
export async function showCategoryChips() {
  const { state, answer } = current;
  const changed = (category, how) => {
    // A click on a category shows all of it, not the best few.
    const grouped = how === "only" ? null : current.state.group_by;
    change({ ...withCategory(current.state, category, how), group_by: grouped });
  };
  if (answer) {
    showCategories(answer.counts && { ...answer.counts, isSearch: answer.isSearch }, [], state, changed);
    return;
  }
  const said = await api.categories(state).catch(() => null); // what is shown besides says what is wrong
  if (current.state === state && !current.answer) showCategories(null, said?.categories ?? [], state, changed);
}
