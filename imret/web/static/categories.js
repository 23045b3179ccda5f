// Categories with counts: a click narrows to one, a second leaves it out, a third takes it as it comes.

import { byId, el, keepFocus } from "./dom.js";

/** So many are shown before somebody asks for all. */
const FEW = 24;

let all = false;

/** Which comes when: decided once for a query, so that no chip moves away from below the finger. */
let order = { key: null, names: [] };

/**
 * Show the chips. `counts` is {categories: [{category, hits, images}], uncategorised, complete}: what each of
 * them shows when it is clicked; or null where that is not known, and `listed` the categories that there are.
 * `changed(category, how)` is told what somebody wants: "only", "not" or "any".
 */
export function showCategories(counts, listed, state, changed) {
  const entries = (counts?.categories ?? listed).map((entry) => ({ ...entry }));
  // What the address names may be gone from the collection; it can still be taken back.
  for (const category of [...state.category, ...state.not_category]) {
    if (!entries.some((entry) => entry.category === category)) entries.push({ category, images: 0, hits: 0 });
  }
  const chosen = (entry) => state.category.includes(entry.category) || state.not_category.includes(entry.category);
  arrange(entries, chosen, JSON.stringify([state.collection, state.terms, state.where, state.relevant, Boolean(counts)]));
  const shown = all ? entries : entries.filter((entry, at) => at < FEW || chosen(entry));

  const list = byId("categories");
  const filter = byId("category-filter");
  const section = byId("category-section");
  section.hidden = !entries.length;
  const again = () => showCategories(counts, listed, state, changed);
  keepFocus(list, () => {
    list.replaceChildren(...shown.map((entry) => chip(entry, counts, state, changed)));
    // With them, the numbers add up to how many pictures there are.
    if (counts?.uncategorised > 0 && !state.category.length) {
      list.append(el("li", { class: "uncategorised" }, `${counts.uncategorised.toLocaleString()} without a category`));
    }
    if (entries.length > FEW) {
      list.append(el("li", {}, el("button", { type: "button", class: "quiet", "data-key": "all", "aria-expanded": String(all),
        onclick: () => {
          all = !all;
          again();
        } }, all ? "Fewer" : `All ${entries.length.toLocaleString()} categories`)));
    }
  });
  section.classList.toggle("all", all);
  filter.hidden = !all || entries.length <= FEW;
  if (filter.hidden) filter.value = "";
  filter.oninput = () => {
    const wanted = filter.value.trim().toLocaleLowerCase();
    for (const item of list.querySelectorAll(".category-chip")) {
      item.parentElement.hidden = !item.dataset.category.toLocaleLowerCase().includes(wanted);
    }
  };
  filter.oninput();
}

/** Sort entries: what an address narrows to or leaves out first, where it is seen, then most hits, most pictures. */
function arrange(entries, chosen, key) {
  if (order.key !== key) {
    entries.sort((a, b) => chosen(b) - chosen(a) || (b.hits ?? 0) - (a.hits ?? 0) || b.images - a.images
      || (a.category < b.category ? -1 : 1));
    order = { key, names: entries.map(({ category }) => category) };
    return;
  }
  const places = new Map(order.names.map((name, at) => [name, at]));
  const place = ({ category }) => places.get(category) ?? places.size;
  entries.sort((a, b) => place(a) - place(b));
}

function chip({ category, hits }, counts, state, changed) {
  const how = state.category.includes(category) ? "only" : state.not_category.includes(category) ? "not" : "any";
  const adds = how === "any" && state.category.length > 0;
  const next = { any: "only", only: "not", not: "any" }[how];
  const does = { any: adds ? "Click to see these too" : "Click to see only these", only: "Click to leave these out", not: "Click to show these again, with the others" }[how];
  const said = { any: "", only: "Only these. ", not: "Left out. " }[how];
  const count = counts ? `${inWords(hits, counts, state)}. ` : "";
  return el("li", {}, el("button", {
    type: "button", class: `category-chip ${how}${counts && hits === 0 ? " none" : ""}`, "data-key": category, "data-category": category, "data-how": how,
    title: `${category}: ${count}${does}.`,
    "aria-label": `${category}, ${count}${said}${does}`,
    onclick: () => changed(category, next),
    onkeydown: (event) => {
      const wish = { "+": "only", "-": "not", Delete: "any", Backspace: "any" }[event.key];
      if (!wish || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      changed(category, wish === how ? "any" : wish);
    },
  },
  el("span", { class: "label" }, category),
  counts && el("span", { class: "count" }, `${hits && adds ? "+" : SIGNS[exactness(hits, counts, state)]}${hits.toLocaleString()}`)));
}

const SIGNS = { exact: "", most: "\u2264\u2009", least: "\u2265\u2009" };
const BOUNDS = { exact: "", most: "up to ", least: "at least " };

/** How exact a number is: duplicates count, but are not shown; of very many, only the best are counted. */
function exactness(number, { isSearch, complete }, { unique }) {
  if (!number) return "exact";
  return unique && isSearch ? "most" : complete ? "exact" : "least";
}

/** Say how many pictures there are: all that a category, or a whole query, shows. */
export function inWords(number, counts, state) {
  const [one, many] = state.relevant && counts.isSearch ? ["good match", "good matches"] : ["picture", "pictures"];
  return `${BOUNDS[exactness(number, counts, state)]}${number.toLocaleString()} ${number === 1 ? one : many}`;
}

/** Return a state that asks for a category only, not at all, or any way. */
export function withCategory(state, category, how) {
  const without = (list) => list.filter((other) => other !== category);
  return {
    ...state,
    category: how === "only" ? [...without(state.category), category] : without(state.category),
    not_category: how === "not" ? [...without(state.not_category), category] : without(state.not_category),
  };
}
