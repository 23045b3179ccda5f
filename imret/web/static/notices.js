// What is said where there are no pictures, and what to do about it: nothing found, an error, nothing yet.

import { el } from "./dom.js";
import { icon } from "./icons.js";

/** Return a panel: a title, what there is to say, code to type, and [label, action] for each button. */
export function notice({ drawing = "picture", title, text = "", code = null, actions = [] }) {
  return el("div", { class: "notice" },
    icon(drawing),
    el("h2", {}, title),
    text && el("p", {}, text),
    code && el("pre", {}, el("code", {}, code)),
    actions.length > 0 && el("p", { class: "actions" }, ...actions.map(([label, action], at) => el("button", {
      type: "button", class: at ? "button" : "button first", onclick: action }, label))));
}

export const INGEST = "imret ingest photos";

/** There is no collection, or nothing in the one that is open. */
export function nothingYet(name, retry) {
  return notice({
    title: name ? `The collection \u201c${name}\u201d is empty` : "No pictures yet",
    text: "Give imret a folder of pictures, one sub-folder per category if you have categories. They appear here as soon as the command is done.",
    code: name && name !== "photos" ? `${INGEST} --collection ${quoted(name)}` : INGEST,
    actions: [["Look again", retry]],
  });
}

/** Return a word as a shell reads it: what a link names may hold anything. */
function quoted(word) {
  return /^[\w.-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** How the page calls a condition that a search was asked with; null for one that it says in another way. */
function nameOf({ field, value }) {
  return {
    relevant: () => "\u201cOnly good matches\u201d",
    categories: () => `the choice of ${value.join(", ")}`,
    not_categories: () => `leaving out ${value.join(", ")}`,
    where: () => `the condition ${value}`,
  }[field]?.() ?? null;
}

/** Return a sentence for each condition that left nothing: how many there would be without it, and the best. */
function emptied(by) {
  return by.flatMap(({ conditions, kept, of, score }) => {
    const names = conditions.map(nameOf);
    if (names.includes(null)) return [];
    const what = of === "relevant" ? (kept === 1 ? "good match" : "good matches") : kept === 1 ? "picture" : "pictures";
    return [`Without ${names.join(" and ")}: ${kept.toLocaleString()} ${what}, the best with ${score.toFixed(3)}.`];
  });
}

/** A query found nothing: say why, and offer what would find something. */
export function nothingFound({ state, counts, leftOut, emptiedBy }, words, { nearest, identical, everywhere, reset }) {
  const narrowed = state.category.length || state.not_category.length || state.where.length;
  const elsewhere = counts.uncategorised + counts.categories.reduce((sum, { hits }) => sum + hits, 0);
  const said = [];
  const actions = [];
  if (leftOut) {
    const [what, is, it] = leftOut === 1 ? ["identical picture", "is", "it"] : ["identical pictures", "are", "them"];
    said.push(`${leftOut.toLocaleString()} ${what} ${is} left out.`);
    actions.push([`Show ${it}`, identical]);
  }
  if (elsewhere) said.push(`In other categories there ${elsewhere === 1 ? "is 1" : `are ${elsewhere.toLocaleString()}`}.`);
  else if (state.where.length && !emptiedBy.length) said.push("Remove a condition, and there may be some.");
  said.push(...emptied(emptiedBy));
  if (narrowed) actions.push([state.where.length ? "Search in all pictures" : "Search in all categories", everywhere]);
  if (state.relevant) actions.push(["Show the nearest pictures", nearest]);
  actions.push(["See all pictures", reset]);
  return notice({
    drawing: "search",
    title: state.relevant ? `No good matches for ${words}` : leftOut ? `No other picture for ${words}` : `No picture for ${words}`,
    text: said.join(" "),
    actions,
  });
}

/** The collection has pictures, but none that pass what was narrowed. */
export function nothingPasses(everywhere) {
  return notice({
    title: "No picture meets these conditions",
    text: "Remove a category or a condition to see more.",
    actions: [["See all pictures", everywhere]],
  });
}

/** All that was said is what not to look for. */
export function onlySubtracted(words, write) {
  return notice({
    drawing: "minus",
    title: "What are you looking for?",
    text: `Your search only says what you do not want (${words}). Add words or a picture that you want, or click a minus sign to make it a plus.`,
    actions: [["Say what to look for", write]],
  });
}
