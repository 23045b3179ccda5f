// The page: what the address asks for is fetched and shown; what somebody does changes the address.

import * as api from "./api.js";
import { Results, cacheResults, cachedResults } from "./results.js";
import { enterBox, listenToBox } from "./search-box.js";
import {
  forgetCollections, knownCollections, openCollection, queryInWords, showCategoryChips, showControls, showCount, showLearnt,
  showLeftOut, showNotes, showTerms,
} from "./controls.js";
import { byId, isTyping } from "./dom.js";
import { hideEnd, loadMoreOnto, showEnd } from "./infinite-scroll.js";
import { drawIcons } from "./icons.js";
import { fillingPanel, followFilling, listenToFilling, showsAllOfNow } from "./filling.js";
import { grid, hidePicture, showPicture } from "./gallery.js";
import { nothingFound, nothingPasses, nothingYet, onlySubtracted } from "./notices.js";
import { again, change, current, followHistory, go } from "./navigation.js";
import * as query from "./query.js";
import { acceptPictures } from "./upload.js";
import { GROUPS, keyOf, readState, writeState } from "./state.js";
import { errorPanel, stopWaiting } from "./error-panel.js";
import { listenToTeaching, showTeaching } from "./teaching.js";

const SLOW_MS = 4000; // after which somebody is told why it may take long

const EVERYWHERE = { category: [], not_category: [], where: [] };

/** Show what the state asks for: at once where it was fetched before, unless a `fresh` answer is wanted. */
async function show({ scroll = 0, shown = 0, fresh = false } = {}) {
  const { state } = current;
  current.fetching?.abort();
  stopWaiting();
  const controller = new AbortController();
  current.fetching = controller;
  if (!state.picture) hidePicture();
  showControls();
  const missing = state.terms.length > 0 && !query.canBeAsked(state.terms);
  let answer = missing || fresh ? null : cachedResults(state);
  if (!answer && !missing) {
    answer = new Results(state);
    try {
      await fetchAnswer(answer, { signal: controller.signal, shown });
    } catch (error) {
      if (controller === current.fetching) showError(error);
      const expected = error.name === "AbortError" || error instanceof api.Problem || error instanceof api.LostConnection;
      if (!expected) throw error;
      return;
    }
    if (controller !== current.fetching) return;
    cacheResults(answer);
    showsAllOfNow();
  }
  current.fetching = null;
  showIdle();
  if (missing) showNothing(onlySubtracted(queryInWords(), enterBox));
  else showAnswer(answer);
  window.scrollTo({ top: scroll, behavior: "instant" });
  showPicture();
}

async function fetchAnswer(answer, { signal, shown }) {
  showBusy();
  const slow = setTimeout(() => {
    byId("count").textContent = "Still working: the first search after a start has to load the model.";
  }, SLOW_MS);
  try {
    await answer.begin({ signal, shown });
    stopWaiting({ answered: true });
  } finally {
    clearTimeout(slow);
  }
}

/** Show anew, without a stir, what is shown; returns whether that went well. */
async function refresh() {
  const { state } = current;
  const answer = new Results(state);
  if (current.fetching || (state.terms.length > 0 && !answer.isSearch)) return false;
  try {
    await answer.begin({});
  } catch {
    return false; // nothing yet, or the server is busy: the next time may go well
  }
  if (current.state !== state || current.fetching) return false;
  forgetCollections();
  showControls();
  showAnswer(answer);
  return true;
}

function showBusy() {
  byId("progress").hidden = false;
  byId("pictures").setAttribute("aria-busy", "true");
  hideEnd();
  byId("count").textContent = current.state.terms.length ? "Searching\u2026" : "Loading\u2026";
  if (!current.answer) {
    byId("notice").hidden = true;
    grid.showSkeleton();
  }
}

function showIdle() {
  byId("progress").hidden = true;
  byId("pictures").removeAttribute("aria-busy");
}

function showAnswer(answer) {
  const focused = grid.root.contains(document.activeElement);
  current.answer = answer;
  grid.show(answer);
  showTerms();
  showCount();
  showLeftOut();
  showLearnt();
  showNotes();
  showTeaching();
  showEnd();
  showCategoryChips();
  showNotice(answer.pictures.length ? null : nothingPanel());
  if (focused && !grid.focus()) enterBox();
}

/** Show a notice in place of pictures. */
function showNothing(panel) {
  current.answer = null;
  grid.clear();
  byId("count").textContent = "";
  showLeftOut();
  showLearnt();
  showNotes();
  showTeaching();
  hideEnd();
  showCategoryChips();
  showNotice(panel);
}

function showNotice(panel) {
  const place = byId("notice");
  const focused = place.contains(document.activeElement);
  place.replaceChildren(...(panel ? [panel] : []));
  place.hidden = !panel;
  if (focused) (place.querySelector("button") ?? byId("words")).focus();
}

const isNarrowed = ({ category, not_category: not, where }) => category.length + not.length + where.length > 0;

function nothingPanel() {
  const { state, answer } = current;
  const everywhere = () => change(EVERYWHERE);
  if (answer.isSearch) {
    return nothingFound(answer, queryInWords(), {
      nearest: () => change({ relevant: false }), identical: () => change({ include_self: true }), everywhere, reset: goHome });
  }
  return isNarrowed(state) ? nothingPasses(everywhere) : fillingPanel() ?? nothingYet(answer.collection, reload);
}

/** Say what went wrong, and offer what helps in this state. */
async function showError(error) {
  if (error.name === "AbortError" || error.status === 401) return; // replaced, or on the way to the login
  const { state } = current;
  current.fetching = null;
  showIdle();
  showNothing(null);
  showPicture();
  if (error.status === 404) {
    const known = await knownCollections({ anew: true }).catch(() => null);
    if (current.state !== state || current.answer || current.fetching) return;
    const names = known?.collections.map(({ name }) => name);
    const panel = fillingPanel() ?? (names?.length === 0 ? nothingYet(null, reload) : null);
    if (panel) {
      showNotice(panel);
      return;
    }
    if (names && !names.includes(state.collection ?? known.default)) {
      const open = (name) => [`Open \u201c${name}\u201d`, () => openCollection(name)];
      showNotice(errorPanel(error, reload, names.slice(0, 3).map(open)));
      return;
    }
  }
  const actions = [];
  if (error.status === 404 && state.terms.some(isSent)) actions.push(["Choose the picture again", chooseAgain]);
  if (isNarrowed(state)) actions.push([state.where.length ? "Search in all pictures" : "Search in all categories", () => change(EVERYWHERE)]);
  if (state.terms.length) actions.push(["See all pictures", goHome]);
  showNotice(errorPanel(error, reload, actions));
}

const isSent = ({ typed }) => query.parseTerm(typed).kind === "upload";

/** Put another picture in the place of those that the server does not keep any more. */
function chooseAgain() {
  current.state = { ...current.state, terms: current.state.terms.filter((term) => !isSent(term)) };
  writeState(current.state, { replace: true });
  byId("choose").click();
}

function reload() {
  forgetCollections();
  again();
}

function goHome() {
  forgetCollections();
  go({ ...readState(""), collection: current.state.collection }, { fresh: true });
}

async function sendPictures(files, { signal, progressed }) {
  const before = current.state;
  const limit = new Results(before).firstLimit();
  const said = await api.send(before, files, { limit, signal, progressed });
  const sent = said.terms.filter(({ kind, weight }) => kind === "upload" && weight > 0);
  const terms = sent.map(({ value }) => ({ typed: `upload:${value}`, minus: false }));
  const next = { ...current.state, picture: null, terms: terms.reduce(query.withTerm, current.state.terms) };
  if (keyOf(before) === keyOf(current.state)) {
    // The answer came with it: no need to ask again.
    const answer = new Results(next);
    answer.take(said, limit);
    cacheResults(answer);
  }
  go(next);
}

function listen() {
  listenToBox(() => grid.focus());
  byId("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    goHome();
  });
  byId("collection").onchange = (event) => openCollection(event.target.value);
  byId("relevant").onchange = (event) => change({ relevant: event.target.checked });
  byId("unique").onchange = (event) => change({ unique: event.target.checked });
  byId("sort").onchange = ({ target: { value } }) => change(GROUPS.includes(value) ? { sort: "score", group_by: value } : { sort: value, group_by: null });
  byId("help").onclick = () => byId("keys").showModal();
  byId("keys").addEventListener("click", (event) => event.target === event.currentTarget && event.target.close());
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    if (!grid.focus()) byId("pictures").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]") || !["/", "?"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "/") enterBox({ select: true });
    else byId("keys").showModal();
  });
}

drawIcons();
listen();
listenToFilling(again);
listenToTeaching();
loadMoreOnto(grid, showCount);
acceptPictures({
  sent: sendPictures,
  linked: (address) => change({ terms: query.withTerm(current.state.terms, { typed: address, minus: false }) }),
});
followHistory({ page: show, picture: showPicture });
followFilling({ refresh, nothing: (panel) => panel && showNotice(panel) });
