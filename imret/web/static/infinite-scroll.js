// The end of the pictures: more come by themselves when it is near, or when the button is pressed.

import { DEEPEST, SORTED } from "./results.js";
import { byId } from "./dom.js";
import { current } from "./navigation.js";
import { remember } from "./state.js";

const NEAR = "900px";

let grid = null;
let grown = null;

/** `onto` is the grid that pictures are added to; `then()` is told that there are more. */
export function loadMoreOnto(onto, then) {
  grid = onto;
  grown = then;
  byId("more").onclick = () => loadMore({ pressed: true });
}

/** Show what is below the pictures: a button, why it failed, or why there is none. */
export function showEnd(failed = null) {
  const { answer } = current;
  const more = Boolean(answer?.more);
  const told = {
    sorted: `Only the best ${SORTED} are sorted. Sort by best first to see more.`,
    deep: `A search shows its best ${DEEPEST.toLocaleString()} pictures. Choose a category or other words to see others.`,
  }[answer?.cut] ?? (answer?.notes ?? []).map((note) => note.charAt(0).toUpperCase() + note.slice(1)).join(" ");
  byId("end").hidden = !more && !told;
  byId("more").hidden = !more;
  byId("more").textContent = failed ? "Try again" : "Load more";
  byId("end-text").textContent = failed ?? told;
  // Observed anew each time: an observer only speaks when what it sees changes.
  nearEnd.disconnect();
  if (more && !failed) nearEnd.observe(byId("end"));
}

export function hideEnd() {
  nearEnd.disconnect();
  byId("end").hidden = true;
}

const nearEnd = new IntersectionObserver((entries) => {
  const covered = document.querySelector("dialog[open]");
  if (entries.some((entry) => entry.isIntersecting) && !covered) loadMore();
}, { rootMargin: NEAR });

/**
 * Load the next page below what is there. Who pressed the button goes on with the first of the new pictures;
 * when more comes by itself, the focus stays where it is.
 */
export async function loadMore({ pressed = false } = {}) {
  const { answer } = current;
  if (!answer?.more || current.fetching) return;
  nearEnd.disconnect();
  byId("more").textContent = "Loading\u2026";
  try {
    const waited = answer.loading !== null;
    const page = await answer.loadMore();
    if (current.answer !== answer) return;
    if (!waited && page.length) grid.append(page);
    // A button that goes away would take the focus along.
    if (pressed || (!answer.more && document.activeElement === byId("more"))) grid.focus(page[0]?.id);
    remember({ shown: answer.pictures.length });
    grown();
    showEnd();
  } catch (error) {
    if (current.answer === answer) showEnd(error.message);
  }
}
