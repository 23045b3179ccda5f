// Looking at pictures: the grid, one of them in the lightbox, and asking for more or less like it.

import * as api from "./api.js";
import { byId, say } from "./dom.js";
import { loadMore } from "./infinite-scroll.js";
import { Grid } from "./grid.js";
import { Lightbox } from "./lightbox.js";
import { change, current, noteScroll } from "./navigation.js";
import * as query from "./query.js";
import { addressOf, remembered, writeState } from "./state.js";

export const grid = new Grid(byId("pictures"), {
  addressFor: (picture) => addressOf({ ...current.state, picture: picture.id }),
  opened: openPicture,
  weighed: weigh,
  narrowed: (category) => change({ category: [category], not_category: [], group_by: null }),
});

const lightbox = new Lightbox({ moved: move, closed: closePicture, weighed: weigh, only: onlyLike });

function openPicture(id) {
  noteScroll();
  current.state = { ...current.state, picture: id };
  writeState(current.state, { notes: { ...remembered(), opened: true } });
  showPicture();
}

/** Open, change or close the lightbox, as the state says. */
export async function showPicture() {
  const { state, answer } = current;
  const id = state.picture;
  if (!id) {
    hidePicture({ refocus: true });
    return;
  }
  const pictures = answer?.pictures ?? [];
  const at = pictures.findIndex((picture) => picture.id === id);
  let picture = pictures[at];
  if (!picture) {
    try {
      picture = await api.payload(id, state.collection);
    } catch (error) {
      if (current.state.picture !== id) return;
      closePicture();
      say(error.message);
      return;
    }
    if (current.state.picture !== id) return;
  }
  // Without a query it is known how many there are; of hits, how many are shown.
  const of = answer?.images ?? pictures.length;
  const place = at < 0 ? null : { at, of, more: answer.more };
  const canSubtract = state.terms.some((term) => !term.minus && !query.isSame(term.typed, `id:${id}`));
  lightbox.show(picture, { collection: state.collection, place, sign: query.signOf(state.terms, id), canSubtract, asked: state.terms.length > 0 });
  if (place) {
    lightbox.prepare(pictures[at + 1]);
    lightbox.prepare(pictures[at - 1]);
  }
}

/** Close the lightbox over a page that stays, with the focus on what was looked at, or that is about to go. */
export function hidePicture({ refocus = false } = {}) {
  if (!lightbox.isOpen) return;
  const last = lightbox.picture?.id;
  lightbox.hide();
  if (refocus) grid.focus(last);
}

/** Go to the picture before or after, to the first or the last; there may be more to load. */
async function move(step) {
  const from = current.state.picture;
  const at = current.answer?.pictures.findIndex((picture) => picture.id === from) ?? -1;
  if (at < 0) return;
  if (step === 1 && at === current.answer.pictures.length - 1 && current.answer.more) {
    await loadMore();
    if (current.state.picture !== from || !current.answer) return;
  }
  const { pictures } = current.answer;
  const to = pictures[{ first: 0, last: pictures.length - 1 }[step] ?? at + step];
  if (!to || to.id === from) return;
  current.state = { ...current.state, picture: to.id };
  writeState(current.state, { replace: true });
  showPicture();
}

function closePicture() {
  if (!current.state.picture) return;
  if (remembered().opened) {
    history.back();
    return;
  }
  current.state = { ...current.state, picture: null };
  writeState(current.state, { replace: true });
  showPicture();
}

/** Add a stored picture to the query or subtract it; the same once more takes it back. */
function weigh(id, sign) {
  const { terms: before } = current.state;
  const known = before.find((term) => query.isSame(term.typed, `id:${id}`));
  const typed = known?.typed ?? `id:${id}`; // what it weighs, it keeps
  const terms = query.signOf(before, id) === sign
    ? query.withoutTerm(before, typed)
    : query.withTerm(before, { typed, minus: sign < 0 });
  if (sign < 0 && !query.canBeAsked(terms)) {
    say("First search for something. Then you can subtract pictures from it.");
    return;
  }
  hidePicture();
  change({ terms });
}

function onlyLike(id) {
  hidePicture();
  change({ terms: [{ typed: `id:${id}`, minus: false }] });
}
