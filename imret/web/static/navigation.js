// What the page shows at present, and how it gets from one state to the next: by a new address, or by Back.

import { keyOf, readState, remember, remembered, writeState } from "./state.js";

/**
 * `state` is what the address asks for; `answer` what is shown, or null while nothing is; `fetching` the
 * AbortController of what is being asked, or null.
 */
export const current = { state: readState(), answer: null, fetching: null };

let show = null;
let showPicture = null;
let noting = 0;

/** Go to another state, as a new entry of the history; `fresh` asks the server even if the answer is known. */
export function go(next, { fresh = false } = {}) {
  noteScroll();
  writeState(next);
  current.state = next;
  show({ fresh });
}

/** Go to a state that differs in part from this one. */
export const change = (part) => go({ ...current.state, picture: null, ...part });

/** Show the same once more, asking the server. */
export const again = () => show({ fresh: true });

/** Note for Back and reload how far somebody had scrolled, and how many pictures there were. */
export function noteScroll() {
  clearTimeout(noting);
  noting = 0;
  if (!current.fetching) remember({ scroll: Math.round(window.scrollY), shown: current.answer?.pictures.length ?? 0 });
}

/**
 * Follow the history from here on, and show where it stands. `shows` are the two ways to do so: `page` is told
 * {scroll, shown, fresh}, `picture` shows or closes the picture that the state names, over the same page.
 */
export function followHistory(shows) {
  show = shows.page;
  showPicture = shows.picture;
  history.scrollRestoration = "manual";
  addEventListener("scroll", () => {
    noting ||= setTimeout(noteScroll, 150);
  }, { passive: true });
  addEventListener("pagehide", noteScroll);
  addEventListener("popstate", () => {
    // The entry that this note was for is no longer the present one.
    clearTimeout(noting);
    noting = 0;
    const before = current.state;
    current.state = readState();
    const samePage = keyOf(before) === keyOf(current.state) && before.picture !== current.state.picture;
    if (samePage && (current.answer || current.fetching)) showPicture();
    else show(remembered());
  });
  show(remembered());
}
