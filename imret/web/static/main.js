// The page: what the address asks for is fetched and shown; what somebody does changes the address.

import { byId, el, isTyping, keepFocus, say } from "./elements.js";
import * as api from "./api.js";
import { Answer, SORTED, keep, keptAnswer } from "./answers.js";
import { acceptPictures } from "./sending.js";
import { chipsOf, labelOf, needsChips } from "./chips.js";
import { showCategories, withCategory } from "./categories.js";
import { drawIcons } from "./icons.js";
import { Grid } from "./grid.js";
import { Lightbox } from "./lightbox.js";
import { nothingFound, nothingPasses, nothingYet, onlySubtracted } from "./notices.js";
import * as query from "./query.js";
import { addressOf, keyOf, readState, remember, remembered, writeState } from "./state.js";
import { stopWaiting, trouble } from "./trouble.js";

const SLOW_MS = 4000; // after which somebody is told why it may take long

let state = readState();
let answer = null; // what is shown, or null while nothing is
let fetching = null; // the AbortController of what is being asked
let listed = { key: null, promise: null };
let collections = null;

const words = byId("words");
const grid = new Grid(byId("pictures"), {
  addressFor: (picture) => addressOf({ ...state, picture: picture.id }),
  opened: (id) => openPicture(id),
  weighed: weigh,
});
const lightbox = new Lightbox({ moved: moveInLightbox, closed: closePicture, weighed: weigh, only: onlyLike });

// --- from the address to the page ---------------------------------------------------------------------------

/** Go to another state, as a new entry of the history. */
function go(next, { fresh = false } = {}) {
  noteScroll();
  writeState(next);
  state = next;
  show({ fresh });
}

const change = (part) => go({ ...state, picture: null, ...part });

/** Show what the state asks for: at once where it was fetched before, unless a `fresh` answer is wanted. */
async function show({ scroll = 0, shown = 0, fresh = false } = {}) {
  fetching?.abort();
  stopWaiting();
  const controller = new AbortController();
  fetching = controller;
  showControls();
  const missing = state.terms.length > 0 && !query.canBeAsked(state.terms);
  const found = missing || fresh ? null : keptAnswer(state);
  const asked = found ?? new Answer(state);
  if (!found && !missing) {
    showBusy();
    const slow = setTimeout(() => {
      byId("count").textContent = "Still at work: the first search after a start has a model to load.";
    }, SLOW_MS);
    try {
      // Chips and pictures come together: chips that came later would push the pictures down.
      await Promise.all([asked.begin({ signal: controller.signal, shown }), categoriesHere().catch(() => null)]);
    } catch (error) {
      if (controller === fetching) showTrouble(error);
      if (error.name !== "AbortError" && !(error instanceof api.Problem || error instanceof api.LostConnection)) throw error;
      return;
    } finally {
      clearTimeout(slow);
    }
    if (controller !== fetching) return;
    stopWaiting({ answered: true });
    keep(asked);
  }
  fetching = null;
  showIdle();
  if (missing) showMissing();
  else showAnswer(asked);
  window.scrollTo({ top: scroll, behavior: "instant" });
  showPicture();
}

/** Bring the controls in line with the state; none of this waits for the server. */
function showControls() {
  const asked = query.canBeAsked(state.terms);
  words.value = query.mainWords(state.terms);
  showWordButtons();
  byId("relevant").checked = state.relevant;
  byId("unique").checked = state.unique;
  byId("sort").value = state.sort;
  byId("options").hidden = !asked;
  document.title = state.terms.length ? `${queryInWords()} \u2013 imret` : "imret";
  showTerms();
  showCollections();
}

function showTerms() {
  byId("terms").hidden = !needsChips(state);
  const chips = byId("terms").hidden ? [] : chipsOf(state, answer?.terms, {
    flipped: (typed) => change({ terms: state.terms.map((term) => (term.typed === typed ? { typed, minus: !term.minus } : term)) }),
    removed: (typed) => change({ terms: query.withoutTerm(state.terms, typed) }),
    dropped: (condition) => change({ where: state.where.filter((other) => other !== condition) }),
    cleared: () => change({ terms: [], where: [] }),
  });
  keepFocus(byId("terms"), () => byId("term-list").replaceChildren(...chips), words);
}

/** The query in a few words, for titles and messages. */
function queryInWords() {
  const shown = state.terms.map(({ typed, minus }, at) => {
    const term = query.parseTerm(typed);
    const label = labelOf(term, answer?.terms);
    const name = term.kind === "text" ? `\u201c${label}\u201d` : label;
    return minus ? `\u2212 ${name}` : at ? `+ ${name}` : name;
  });
  return shown.join(" ");
}

async function showCollections() {
  try {
    collections ??= await api.collections();
  } catch {
    return; // what is asked for besides says what is wrong
  }
  const names = collections.collections.map(({ name }) => name);
  const here = state.collection ?? collections.default;
  // One that is not there can still be what the address asks for.
  const shown = names.includes(here) ? names : [here, ...names];
  byId("collection-label").hidden = shown.length < 2;
  byId("collection").replaceChildren(...shown.map((name) => el("option", { value: name, selected: name === here }, name)));
}

function showBusy() {
  byId("progress").hidden = false;
  byId("pictures").setAttribute("aria-busy", "true");
  byId("end").hidden = true;
  byId("count").textContent = state.terms.length ? "Searching\u2026" : "Loading\u2026";
  if (!answer) {
    byId("notice").hidden = true;
    grid.showSkeleton();
  }
}

function showIdle() {
  byId("progress").hidden = true;
  byId("pictures").removeAttribute("aria-busy");
}

function showAnswer(shown) {
  const focused = grid.root.contains(document.activeElement);
  answer = shown;
  grid.show(answer);
  showTerms();
  document.title = state.terms.length ? `${queryInWords()} \u2013 imret` : "imret";
  byId("count").textContent = countInWords();
  showEnd();
  showCategoryChips();
  const nothing = answer.pictures.length ? null : nothingPanel();
  showNotice(nothing);
  if (focused && !grid.focus()) words.focus();
}

function nothingPanel() {
  const everywhere = () => change({ category: [], not_category: [], where: [] });
  if (answer.isSearch) {
    return nothingFound(state, queryInWords(), { nearest: () => change({ relevant: false }), everywhere, reset: goHome });
  }
  const narrowed = state.category.length || state.not_category.length || state.where.length;
  return narrowed ? nothingPasses(everywhere) : nothingYet(answer.collection, reload);
}

function countInWords() {
  const shown = answer.pictures.length;
  const number = (count, one = "picture", many = "pictures") => `${count.toLocaleString()} ${count === 1 ? one : many}`;
  if (!answer.isSearch) return shown ? number(answer.images) : "";
  if (!shown) return "Nothing found";
  const order = { score: "", date: ", newest first", path: ", by path" }[state.sort];
  if (answer.cut) return `The best ${shown.toLocaleString()}${order}`;
  if (state.relevant) return answer.more ? `The best ${shown.toLocaleString()} that are about it` : `${number(shown)} about it${order}`;
  if (answer.more) return `The best ${shown.toLocaleString()}`;
  return `${number(shown)}${order || ", best first"}`;
}

/** Say that nothing can be found by subtracting alone. */
function showMissing() {
  answer = null;
  grid.clear();
  byId("count").textContent = "";
  byId("end").hidden = true;
  showCategoryChips();
  showNotice(onlySubtracted(queryInWords(), () => words.focus()));
}

async function showTrouble(error) {
  if (error.name === "AbortError") return;
  fetching = null;
  showIdle();
  if (error.status === 401) return; // on the way to the login
  answer = null;
  grid.clear();
  byId("count").textContent = "";
  byId("end").hidden = true;
  showCategoryChips();
  showPicture();
  const actions = [];
  if (error.status === 404) {
    const asked = state;
    collections = await api.collections().catch(() => null);
    if (asked !== state || answer || fetching) return;
    const names = collections?.collections.map(({ name }) => name);
    if (names?.length === 0) {
      showNotice(nothingYet(null, reload));
      return;
    }
    if (names && !names.includes(state.collection ?? collections.default)) {
      const open = (name) => [`Open \u201c${name}\u201d`, () => openCollection(name)];
      showNotice(trouble(error, reload, names.slice(0, 3).map(open)));
      return;
    }
  }
  const uploads = state.terms.filter(({ typed }) => query.parseTerm(typed).kind === "upload");
  if (error.status === 404 && uploads.length) {
    actions.push(["Choose the picture again", () => {
      const terms = state.terms.filter((term) => !uploads.includes(term));
      writeState({ ...state, terms }, { replace: true });
      state = { ...state, terms };
      byId("choose").click();
    }]);
  }
  const narrowed = state.category.length || state.not_category.length || state.where.length;
  if (narrowed) actions.push(["Look in the whole collection", () => change({ category: [], not_category: [], where: [] })]);
  if (state.terms.length) actions.push(["See all pictures", goHome]);
  showNotice(trouble(error, reload, actions));
}

function showNotice(panel) {
  const place = byId("notice");
  const focused = place.contains(document.activeElement);
  place.replaceChildren(...(panel ? [panel] : []));
  place.hidden = !panel;
  if (focused) (place.querySelector("button") ?? words).focus();
}

function reload() {
  collections = null;
  listed = { key: null, promise: null };
  show({ fresh: true });
}

function goHome() {
  collections = null;
  listed = { key: null, promise: null };
  go({ ...readState(""), collection: state.collection }, { fresh: true });
}

// --- categories ---------------------------------------------------------------------------------------------

/** The categories of what is searched in; asked for once. */
function categoriesHere() {
  const key = `${state.collection}\n${state.where.join("\n")}`;
  if (listed.key !== key) listed = { key, promise: api.categories(state) };
  return listed.promise;
}

async function showCategoryChips() {
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
  const counts = answer?.counts?.hits ? answer.counts : null;
  showCategories(said.categories, counts, state, (category, how) => change(withCategory(state, category, how)));
}

// --- more pictures ------------------------------------------------------------------------------------------

function showEnd(failed = null) {
  const more = Boolean(answer?.more);
  byId("end").hidden = !more && !answer?.cut;
  byId("more").hidden = !more;
  byId("more").disabled = false;
  byId("more").textContent = failed ? "Try again" : "Load more";
  byId("end-text").textContent = failed
    ?? (answer?.cut ? `Only the best ${SORTED} are sorted. Sort by best first to see more.` : "");
  watchEnd(more && !failed);
}

const nearEnd = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting) && !lightbox.isOpen) loadMore();
}, { rootMargin: "900px" });

function watchEnd(yes) {
  // Anew each time: it only speaks when what it sees changes.
  nearEnd.disconnect();
  if (yes) nearEnd.observe(byId("end"));
}

/**
 * Load the next page below what is there. Who pressed the button goes on with the first of the new pictures;
 * when more comes by itself, the focus stays where it is.
 */
async function loadMore({ pressed = false } = {}) {
  const mine = answer;
  if (!mine?.more || fetching) return;
  nearEnd.disconnect();
  byId("more").textContent = "Loading\u2026";
  try {
    const waited = mine.loading !== null;
    const page = await mine.loadMore();
    if (answer !== mine) return;
    if (!waited && page.length) grid.append(page);
    // A button that goes away would take the focus along.
    if (pressed || (!mine.more && document.activeElement === byId("more"))) grid.focus(page[0]?.id);
    byId("count").textContent = countInWords();
    remember({ shown: mine.pictures.length });
    showEnd();
  } catch (error) {
    if (answer === mine) showEnd(error.message);
  }
}

// --- one picture --------------------------------------------------------------------------------------------

function openPicture(id) {
  noteScroll();
  const next = { ...state, picture: id };
  writeState(next, { notes: { ...remembered(), opened: true } });
  state = next;
  showPicture();
}

/** Open, change or close the lightbox, as the state says. */
async function showPicture() {
  const id = state.picture;
  if (!id) {
    if (lightbox.isOpen) {
      const last = lightbox.picture?.id;
      lightbox.hide();
      grid.focus(last);
    }
    return;
  }
  const pictures = answer?.pictures ?? [];
  const at = pictures.findIndex((picture) => picture.id === id);
  let picture = pictures[at];
  if (!picture) {
    try {
      picture = await api.payload(id, state.collection);
    } catch (error) {
      if (state.picture !== id) return;
      closePicture();
      say(error.message);
      return;
    }
    if (state.picture !== id) return;
  }
  const place = at < 0 ? null : { at, of: pictures.length, more: answer.more };
  const canSubtract = state.terms.some((term) => !term.minus && term.typed !== `id:${id}`);
  lightbox.show(picture, { collection: state.collection, place, sign: query.signOf(state.terms, id), canSubtract });
  if (place) {
    lightbox.prepare(pictures[at + 1]);
    lightbox.prepare(pictures[at - 1]);
  }
}

async function moveInLightbox(step) {
  const from = state.picture;
  const at = answer?.pictures.findIndex((picture) => picture.id === from) ?? -1;
  if (at < 0) return;
  if (step === 1 && at === answer.pictures.length - 1 && answer.more) {
    await loadMore();
    if (state.picture !== from) return;
  }
  const { pictures } = answer;
  const to = pictures[{ first: 0, last: pictures.length - 1 }[step] ?? at + step];
  if (!to || to.id === from) return;
  state = { ...state, picture: to.id };
  writeState(state, { replace: true });
  showPicture();
}

function closePicture() {
  if (!state.picture) return;
  if (remembered().opened) {
    history.back();
    return;
  }
  state = { ...state, picture: null };
  writeState(state, { replace: true });
  showPicture();
}

// --- what somebody asks -------------------------------------------------------------------------------------

/** Add a stored picture to the query or subtract it; the same once more takes it back. */
function weigh(id, sign) {
  const typed = `id:${id}`;
  const terms = query.signOf(state.terms, id) === sign
    ? query.withoutTerm(state.terms, typed)
    : query.withTerm(state.terms, { typed, minus: sign < 0 });
  if (sign < 0 && !query.canBeAsked(terms)) {
    say("Say first what to look for; then pictures can be subtracted from it.");
    return;
  }
  lightbox.hide();
  change({ terms });
}

function onlyLike(id) {
  lightbox.hide();
  change({ terms: [{ typed: `id:${id}`, minus: false }] });
}

/** Pictures and categories of one collection mean nothing in another; words and sent pictures do. */
function openCollection(name) {
  const terms = state.terms.filter(({ typed }) => !["id", "stored"].includes(query.parseTerm(typed).kind));
  change({ collection: name === collections.default ? null : name, terms, category: [], not_category: [] });
}

function ask(text) {
  const terms = query.asked(state.terms, text);
  const same = JSON.stringify(terms) === JSON.stringify(state.terms);
  if (same && !state.picture) show({ fresh: true });
  else change({ terms });
}

/** Add what stands in the search box to the query, or subtract it. */
function sum(minus) {
  const terms = query.parseTyped(words.value).map((term) => ({ ...term, minus: term.minus !== minus }));
  if (!terms.length) return;
  change({ terms: terms.reduce(query.withTerm, state.terms) });
  words.focus();
  words.select();
}

/** The signs stand beside words that are not yet asked for; without a query, words can only be asked for. */
function showWordButtons() {
  const typed = words.value.trim();
  const other = typed && typed !== query.mainWords(state.terms) && state.terms.length > 0;
  byId("add-words").hidden = !other;
  byId("subtract-words").hidden = !other;
  byId("clear-words").hidden = !words.value;
}

function listen() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(words.value);
  });
  words.addEventListener("input", showWordButtons);
  words.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.preventDefault(); // a browser would clear the field
      words.value = query.mainWords(state.terms);
      showWordButtons();
      if (!grid.focus()) words.blur();
    } else if (event.key === "Enter" && (event.shiftKey || event.altKey)) {
      event.preventDefault();
      sum(event.altKey);
    }
  });
  byId("add-words").onclick = () => sum(false);
  byId("subtract-words").onclick = () => sum(true);
  byId("clear-words").onclick = () => {
    words.value = "";
    words.focus();
    if (query.mainWords(state.terms)) ask("");
    else showWordButtons();
  };
  byId("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    goHome();
  });
  byId("collection").onchange = (event) => openCollection(event.target.value);
  byId("relevant").onchange = (event) => change({ relevant: event.target.checked });
  byId("unique").onchange = (event) => change({ unique: event.target.checked });
  byId("sort").onchange = (event) => change({ sort: event.target.value });
  byId("more").onclick = () => loadMore({ pressed: true });
  byId("help").onclick = () => byId("keys").showModal();
  byId("keys").addEventListener("click", (event) => event.target === event.currentTarget && event.target.close());
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    if (!grid.focus()) byId("pictures").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "/") {
      event.preventDefault();
      words.focus();
      words.select();
    } else if (event.key === "?") {
      event.preventDefault();
      byId("keys").showModal();
    }
  });
}

async function sendPictures(files, { signal, progressed }) {
  const before = state;
  const asked = new Answer(before);
  const said = await api.send(before, files, { limit: asked.firstLimit(), signal, progressed });
  const sent = said.terms.filter(({ kind, weight }) => kind === "upload" && weight > 0).map(({ value }) => ({ typed: `upload:${value}`, minus: false }));
  const next = { ...state, picture: null, terms: sent.reduce(query.withTerm, state.terms) };
  if (keyOf(before) === keyOf(state)) {
    // The answer came with it: no need to ask again.
    const found = new Answer(next);
    found.take(said, found.firstLimit());
    keep(found);
  }
  lightbox.hide();
  go(next);
}

// --- the history --------------------------------------------------------------------------------------------

let noting = 0;

function noteScroll() {
  clearTimeout(noting);
  noting = 0;
  if (!fetching) remember({ scroll: Math.round(window.scrollY), shown: answer?.pictures.length ?? 0 });
}

function followHistory() {
  history.scrollRestoration = "manual";
  addEventListener("scroll", () => {
    noting ||= setTimeout(noteScroll, 150);
  }, { passive: true });
  addEventListener("pagehide", noteScroll);
  addEventListener("popstate", () => {
    clearTimeout(noting);
    noting = 0;
    const before = state;
    state = readState();
    // A picture that was opened or closed leaves the page behind it as it is.
    const samePage = keyOf(before) === keyOf(state) && before.picture !== state.picture && (answer || fetching);
    if (samePage) {
      showPicture();
      return;
    }
    if (!state.picture) lightbox.hide();
    show(remembered());
  });
}

drawIcons();
listen();
acceptPictures({
  sent: sendPictures,
  linked: (address) => change({ terms: query.withTerm(state.terms, { typed: address, minus: false }) }),
});
followHistory();
show(remembered());
