// What stands around the pictures and says what is asked for: terms, categories, collections, options, counts.

import * as api from "./api.js";
import { showBox } from "./search-box.js";
import { showCategories, withCategory } from "./categories.js";
import { chipsOf, labelOf, needsChips } from "./chips.js";
import { byId, el, keepFocus } from "./dom.js";
import { change, current } from "./navigation.js";
import * as query from "./query.js";

let collections = null;
let usual = null; // the collection that an address need not name
let listed = { key: null, promise: null };

/** Bring the controls in line with the state; none of this waits for the server. */
export function showControls() {
  const { state } = current;
  showBox();
  byId("relevant").checked = state.relevant;
  byId("unique").checked = state.unique;
  byId("sort").value = state.sort;
  byId("options").hidden = !query.canBeAsked(state.terms);
  showTerms();
  showCollections();
}

/** Show the chips of the query, and the title: anew when the server has said what to call the terms. */
export function showTerms() {
  const { state, answer } = current;
  document.title = state.terms.length ? `${queryInWords()} \u2013 imret` : "imret";
  byId("terms").hidden = !needsChips(state);
  const flip = (term) => ({ ...term, minus: !term.minus });
  const chips = byId("terms").hidden ? [] : chipsOf(state, answer?.terms, {
    flipped: (typed) => change({ terms: state.terms.map((term) => (term.typed === typed ? flip(term) : term)) }),
    removed: (typed) => change({ terms: query.withoutTerm(state.terms, typed) }),
    dropped: (condition) => change({ where: state.where.filter((other) => other !== condition) }),
    cleared: () => change({ terms: [], where: [] }),
  });
  keepFocus(byId("terms"), () => byId("term-list").replaceChildren(...chips), byId("words"));
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
  const order = { score: "", date: ", newest first", path: ", by path" }[state.sort];
  if (answer.cut) return `The best ${shown.toLocaleString()}${order}`;
  if (state.relevant) return answer.more ? `The best ${shown.toLocaleString()} that are about it` : `${number(shown)} about it${order}`;
  if (answer.more) return `The best ${shown.toLocaleString()}`;
  return `${number(shown)}${order || ", best first"}`;
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
  listed = { key: null, promise: null };
}

// --- categories ---------------------------------------------------------------------------------------------

/** The categories of what is searched in; asked for once. */
export function categoriesHere() {
  const { state } = current;
  const key = `${state.collection}\n${state.where.join("\n")}`;
  if (listed.key !== key) listed = { key, promise: api.categories(state) };
  return listed.promise;
}

export async function showCategoryChips() {
  const mine = categoriesHere();
  let said;
  try {
    said = await mine;
  } catch {
    if (listed.promise === mine) listed = { key: null, promise: null };
    said = { categories: [] }; // what is shown besides says what is wrong
  }
  if (listed.key && listed.promise !== mine) return;
  // Where nothing is about the query, how many there are says more than noughts.
  const counts = current.answer?.counts?.hits ? current.answer.counts : null;
  showCategories(said.categories, counts, current.state, (category, how) => change(withCategory(current.state, category, how)));
}
