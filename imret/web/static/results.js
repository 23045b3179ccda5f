// What was found: pictures that come page by page, and the answers of a while ago, kept for Back and Forward.

import * as api from "./api.js";
import { canBeAsked } from "./query.js";
import { keyOf } from "./state.js";

export const PAGE = 60;
/** Sorting is of so many of the best hits of a query. */
export const SORTED = 200;
export const DEEPEST = 10_000; // offset and limit together, that the server goes down to
const MOST = 500; // that the server gives at once
const MOST_GROUPS = 200; // the same, with the pictures of each
const KEPT = 12;

/** The pictures that a state asks for, as far as they were loaded. */
export class Results {
  constructor(state) {
    this.state = state;
    this.isSearch = canBeAsked(state.terms);
    this.pages = []; // of {id, category, path, payload}; hits also have rank, score and folded
    this.terms = []; // as the server calls them
    this.counts = null; // {hits, complete, uncategorised, categories}: how many there are, however many were loaded
    this.leftOut = 0; // pictures that are the very one that is asked with
    this.concepts = []; // names that were learnt, as far as they had a part in the query
    this.emptiedBy = []; // of no hits: conditions, each with what there would be without it
    this.notes = []; // what the server left undone
    this.images = null; // how many pictures there are, without a query
    this.more = false;
    this.cut = null; // why there is no more to load though there are more: "sorted" or "deep"
    this.next = null;
    this.asked = 0; // hits (groups) that were asked for: where the next page begins
    this.loading = null;
  }

  get pictures() {
    return this.pages.flat();
  }

  /** How many hits are asked for at first; `shown` is how many pictures there were before a reload. */
  firstLimit(shown = 0) {
    if (this.isSearch && this.state.sort !== "score") return SORTED;
    if (this.isSearch && this.state.group_by) return Math.min(MOST_GROUPS, Math.max(PAGE, Math.ceil(shown / api.PER_GROUP)));
    return Math.min(MOST, Math.max(PAGE, shown));
  }

  async begin({ signal, shown }) {
    const limit = this.firstLimit(shown);
    if (this.isSearch) {
      this.take(await api.search(this.state, { limit, signal }), limit);
      return;
    }
    // Chips and pictures come together: chips that came later would push the pictures down.
    const listed = api.categories(this.state, { signal }).catch(() => null);
    this.take(await api.images(this.state, { limit, signal }), limit);
    const said = await listed;
    if (said) this.counts = { ...said, complete: true, categories: said.categories.map((entry) => ({ ...entry, hits: entry.images })) };
  }

  /** Load the next page and return it; two who ask at once get the same one. */
  loadMore() {
    this.loading ??= this.#next().finally(() => {
      this.loading = null;
    });
    return this.loading;
  }

  async #next() {
    if (this.isSearch) return this.take(await api.search(this.state, { offset: this.asked, limit: PAGE }), PAGE);
    return this.take(await api.images(this.state, { after: this.next, limit: PAGE }), PAGE);
  }

  /** Take in what the server answered, and return the pictures that are new. */
  take(said, limit) {
    const known = new Set(this.pictures.map((picture) => picture.id));
    // A collection that changes meanwhile may show one again.
    const page = (said.hits ?? said.pictures).filter((picture) => !known.has(picture.id));
    this.collection = said.collection;
    if (this.isSearch) {
      this.asked += limit;
      const isSorted = this.state.sort !== "score";
      this.more = said.more && !isSorted && this.asked + PAGE <= DEEPEST;
      this.cut = said.more && !this.more ? (isSorted ? "sorted" : "deep") : null;
      this.terms = said.terms;
      this.counts ??= said.counts;
      this.leftOut = said.left_out;
      this.emptiedBy = said.emptied_by;
      this.concepts = said.concepts;
      this.notes = said.notes;
      this.timings = said.timings_ms;
    } else {
      this.images = said.images;
      this.next = said.next;
      this.more = said.next !== null;
    }
    if (page.length) this.pages.push(page);
    return page;
  }
}

const kept = new Map();

export function cacheResults(answer) {
  const key = keyOf(answer.state);
  kept.delete(key);
  kept.set(key, answer);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
}

/** Forget the answers: the collection has changed. */
export const forgetResults = () => kept.clear();

export function cachedResults(state) {
  return kept.get(keyOf(state)) ?? null;
}
