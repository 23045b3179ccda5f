// The terms of a query and the conditions on it, as chips: a click on the sign adds or subtracts, x removes.

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { parseTerm } from "./query.js";
import { thumbnailUrl, uploadUrl } from "./api.js";

/** What a slider leads to; the middle is what a term counts by itself. */
export const WEIGHTS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5];

/**
 * Return the chips of a state. `named` are the terms as the server calls them; `flipped(typed)`,
 * `weighed(typed, weight)`, `removed(typed)`, `dropped(condition)` and `cleared()` are told what somebody does.
 */
export function chipsOf(state, named, { flipped, weighed, removed, dropped, cleared }) {
  const chips = state.terms.map((term) => termChip(term, state, named, { flipped, weighed, removed }));
  chips.push(...state.where.map((condition) => el("li", { class: "chip" },
    el("span", { class: "label" }, condition),
    removeButton(condition, () => dropped(condition), `where:${condition}`))));
  if (chips.length > 2) {
    chips.push(el("li", {}, el("button", { type: "button", class: "quiet", "data-key": "clear", onclick: cleared }, "Clear")));
  }
  return chips;
}

/** Whether a query says more than the words in the search box, and so needs chips to be seen. */
export function needsChips(state) {
  if (state.where.length || state.terms.length > 1) return true;
  return state.terms.some(({ typed, minus }) => {
    const { kind, weight } = parseTerm(typed);
    return minus || kind !== "text" || weight !== 1;
  });
}

function termChip({ typed, minus }, state, named, { flipped, weighed, removed }) {
  const term = parseTerm(typed);
  const label = labelOf(term, named);
  const verb = minus ? "Subtracted" : "Added";
  return el("li", { class: minus ? "chip minus" : "chip" },
    el("button", { type: "button", class: "sign", "data-key": `sign:${typed}`, onclick: () => flipped(typed),
      title: minus ? "Subtracted: click to add" : "Added: click to subtract",
      "aria-label": `${verb}: ${label}. ${minus ? "Add" : "Subtract"} it instead` }, icon(minus ? "minus" : "plus")),
    preview(term, state),
    el("span", { class: "label", title: label }, label),
    ...weightOf(typed, term, label, state.terms.length > 1, weighed),
    removeButton(label, () => removed(typed), `remove:${typed}`));
}

const timesOf = (weight) => (weight === 1 ? "normal" : `${weight} times`);

/** How much a term counts, beside others with a slider: alone, its weight changes nothing. */
function weightOf(typed, { kind, value, weight }, label, beside, weighed) {
  const shown = el("span", { class: "weight", title: "How much this counts", "aria-hidden": String(beside) }, `\u00d7${weight}`);
  if (!beside) return weight === 1 ? [] : [shown];
  const nearest = WEIGHTS.reduce((best, step, at) => (Math.abs(Math.log(step / weight)) < Math.abs(Math.log(WEIGHTS[best] / weight)) ? at : best), 0);
  const slider = el("input", { type: "range", class: "weigher", min: "0", max: String(WEIGHTS.length - 1), step: "1", value: String(nearest),
    "data-key": `weight:${kind}:${value}`, "aria-label": `How much it counts: ${label}`, "aria-valuetext": timesOf(weight),
    title: "How much this counts" });
  slider.addEventListener("input", () => {
    const chosen = WEIGHTS[Number(slider.value)];
    shown.textContent = `\u00d7${chosen}`;
    slider.setAttribute("aria-valuetext", timesOf(chosen));
  });
  slider.addEventListener("change", () => weighed(typed, WEIGHTS[Number(slider.value)]));
  return [slider, shown];
}

function removeButton(label, removed, key) {
  return el("button", { type: "button", class: "remove", "data-key": key, onclick: removed, title: "Remove",
    "aria-label": `Remove: ${label}` }, icon("close"));
}

/** Return what to call a term: as the server does, once it has answered. */
export function labelOf({ kind, value }, named = []) {
  const said = named.find((term) => term.kind === kind && term.value === value)?.label;
  if (said && kind !== "text") return said.split("/").pop() || said;
  if (kind === "text") return value;
  return { id: "a picture", upload: "your picture" }[kind] ?? value;
}

function preview({ kind, value }, state) {
  if (kind === "text") return null;
  const address = kind === "upload" ? uploadUrl(value, 160) : kind === "id" && thumbnailUrl({ id: value }, 160, state.collection);
  if (!address) return icon(kind === "url" ? "link" : "picture");
  const image = el("img", { class: "preview", src: address, alt: "" });
  image.addEventListener("error", () => image.replaceWith(icon("picture")));
  return image;
}
