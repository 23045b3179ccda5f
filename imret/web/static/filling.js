// An ingest that runs in the server: how far it is, what it did not take, and pictures that appear meanwhile.

import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { notice } from "./notices.js";
import { current } from "./navigation.js";
import { PAGE, forgetResults } from "./results.js";

const EVERY_MS = 1000;
const AGAIN_MS = 5000; // after an answer that did not come
const REFRESH_MS = 2000;

let told = null; // what the server said last
let shown = 0; // how many pictures were dealt with when those on the page were asked for
let refreshed = 0;
let page = null;

/**
 * Follow an ingest, if one runs. `page` has `refresh()`, which shows anew what is shown, and `nothing(panel)`,
 * which says so where no picture is shown.
 */
export function followFilling(given) {
  page = given;
  ask();
}

/** Note that what is shown is as new as the ingest is now. */
export function showsAllOfNow() {
  shown = told?.done ?? 0;
  showNews();
}

/** What to say where there is no picture yet; null where none is on its way. */
export function fillingPanel() {
  if (told?.state !== "running" || !isHere()) return null;
  return notice({
    drawing: "clock",
    title: told.total === null ? "No pictures yet" : `No pictures yet: ${number(told.done)} of ${number(told.total)}`,
    text: told.stage === "model" ? "The model is got ready first. If it has to be downloaded, that takes a while: the terminal shows how far it is."
      : "The first ones appear here in a moment.",
  });
}

const isHere = () => (current.state.collection ?? told.collection) === told.collection;

async function ask() {
  let wait = EVERY_MS;
  try {
    if (!document.hidden || told === null) await take(await api.ingest());
  } catch (error) {
    if (!(error instanceof api.Problem || error instanceof api.LostConnection)) throw error;
    wait = AGAIN_MS;
  }
  if (told === null || told.state === "running") setTimeout(ask, wait);
}

async function take(said) {
  const before = told;
  told = said;
  if (said.state === "none") return;
  if (said.done !== before?.done || said.state !== before?.state) forgetResults();
  show();
  // Not every second: a screen reader would say nothing else.
  if (said.stage !== before?.stage || said.state !== before?.state) byId("filling-said").textContent = byId("filling-text").textContent;
  if (!isHere() || current.fetching) return;
  if (!current.answer?.pictures.length) page.nothing(fillingPanel());
  if (said.done > shown && canGrow() && (Date.now() - refreshed > REFRESH_MS || said.state !== "running")) {
    refreshed = Date.now();
    const done = said.done;
    if (await page.refresh()) shown = done;
  }
  showNews();
}

/** Whether what is shown may change by itself: it does not fill the page yet, and nobody is at work in it. */
function canGrow() {
  const { answer, state } = current;
  const busy = window.scrollY > 40 || state.picture || byId("pictures").contains(document.activeElement);
  return !answer || (!busy && answer.pages.length < 2 && answer.pictures.length < PAGE);
}

// --- what it says -------------------------------------------------------------------------------------------

const number = (count) => count.toLocaleString();
const pictures = (count) => `${number(count)} ${count === 1 ? "picture" : "pictures"}`;

function show() {
  const place = byId("filling");
  const wasOpen = place.querySelector("details")?.open ?? false;
  const running = told.state === "running";
  const quiet = told.state === "done" && !changes() && !told.not_taken.length && !told.notes.length;
  place.hidden = quiet;
  place.classList.toggle("failed", told.state === "failed");
  byId("filling-text").textContent = quiet ? "" : inWords();
  const bar = byId("filling-bar");
  bar.hidden = !running;
  if (told.total === null || told.stage !== "pictures") bar.removeAttribute("value");
  else bar.value = told.total ? told.done / told.total : 0;
  byId("filling-close").hidden = running;
  const more = told.state === "done" ? details() : [];
  byId("filling-more").replaceChildren(...more);
  if (wasOpen && more[0]) more[0].open = true;
}

function showNews() {
  byId("filling-show").hidden = !told || told.state === "none" || !isHere() || told.done <= shown || !current.answer?.pictures.length;
}

const changes = () => (told.counts.added ?? 0) + (told.counts.updated ?? 0) + (told.counts.moved ?? 0);

function inWords() {
  if (told.state === "failed") return `Adding pictures has failed. ${told.error}`;
  if (told.state === "stopped") return `Stopped at ${number(told.done)} pictures. Start imret serve again to go on.`;
  if (told.state === "done") {
    const { added = 0, updated = 0, moved = 0, skipped = 0 } = told.counts;
    const parts = [[added, "added"], [updated, "renewed"], [moved, "moved"]].filter(([n]) => n).map(([n, how]) => `${number(n)} ${how}`);
    return `${parts.join(", ") || "Nothing new"}${skipped ? `; ${pictures(skipped)} could not be taken` : ""}.`;
  }
  if (told.stage === "folders") return "Looking for pictures\u2026";
  if (told.stage === "model") return "Getting the model ready\u2026";
  if (told.stage === "index") return "Building the index: searches may wait for it a moment\u2026";
  const parts = [`Adding pictures: ${number(told.done)}${told.total === null ? "" : ` of ${number(told.total)}`}`];
  if (told.images_per_s) parts.push(`${told.images_per_s < 10 ? told.images_per_s.toFixed(1) : Math.round(told.images_per_s)} a second`);
  if (told.seconds_left !== null) parts.push(`${duration(told.seconds_left)} left`);
  return parts.join(" \u00b7 ");
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** What was not taken and why, and what was left out on purpose. */
function details() {
  const lines = [
    ...told.not_taken.map(({ path, reason }) => el("li", {}, el("span", { class: "path" }, path), ` ${reason}`)),
    ...told.notes.map((note) => el("li", {}, note)),
  ];
  const rest = (told.counts.skipped ?? 0) - told.not_taken.length;
  if (rest > 0) lines.push(el("li", {}, `and ${number(rest)} more; imret ingest --report FILE lists all`));
  if (told.left_out) lines.push(el("li", {}, `left out: ${told.left_out}`));
  return lines.length ? [el("details", {}, el("summary", {}, "What was left out, and why"), el("ul", {}, ...lines))] : [];
}

export function listenToFilling(again) {
  byId("filling-show").onclick = again;
  byId("filling-close").onclick = () => {
    byId("filling").hidden = true;
  };
}
