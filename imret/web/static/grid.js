// The pictures: justified rows of links, a focus that moves with the arrow keys, more and less on each.

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { justify, ratioOf } from "./rows.js";
import { thumbnailUrl } from "./api.js";
import { signOf } from "./query.js";

/** The steps that the server rounds sizes of thumbnails up to (THUMBNAIL_SIZES of imret.web.images.thumbnails). */
const SIZES = [160, 320, 640, 1280, 2048];
const SKELETONS = [1.5, 1, 0.75, 1.33, 1.5, 0.67, 1.33, 1, 1.5, 1.78, 0.75, 1.33];

export const nameOf = (picture) => String(picture.payload?.path ?? picture.path ?? "").split("/").pop();

const valueOf = (picture, field) => (field === "category" ? picture.category : picture.payload?.[field]);

/** Return pictures in groups; those of one group are behind each other. */
function groupsOf(pictures, field) {
  const groups = [];
  for (const picture of pictures) {
    const last = groups.at(-1);
    if (last && valueOf(last[0], field) === valueOf(picture, field)) last.push(picture);
    else groups.push([picture]);
  }
  return groups;
}

/** Whole pixels that fit: clientWidth rounds up as well as down. */
const widthOf = (element) => Math.floor(element.getBoundingClientRect().width);

export class Grid {
  /**
   * `root` is the list; `addressFor(picture)` where its link leads; `opened(id)`, `weighed(id, sign)` and
   * `narrowed(category)` are told what somebody does.
   */
  constructor(root, { addressFor, opened, weighed, narrowed }) {
    this.root = root;
    this.addressFor = addressFor;
    this.opened = opened;
    this.weighed = weighed;
    this.narrowed = narrowed;
    this.pages = []; // of {card, ratio, picture}; where pictures come in groups, each group is one
    this.current = null;
    this.chosen = null; // ids, while pictures are chosen instead of opened
    root.addEventListener("keydown", (event) => this.#pressed(event));
    root.addEventListener("click", (event) => this.#clicked(event));
    root.addEventListener("focusin", (event) => this.#makeCurrent(event.target.closest(".card")));
    this.width = 0;
    new ResizeObserver(() => {
      if (widthOf(this.root) !== this.width) this.layOut();
    }).observe(root);
  }

  /** Show an answer from the beginning. */
  show(answer) {
    this.answer = answer;
    this.pages = [];
    this.current = null;
    this.root.replaceChildren();
    this.root.removeAttribute("data-skeleton");
    this.root.toggleAttribute("data-browse", !answer.isSearch); // there is nothing to subtract from
    this.weigh(answer.state.terms);
    for (const page of answer.pages) this.#add(page);
    this.layOut();
  }

  /** Show a further page of the same answer; what is there does not move. */
  append(page) {
    const first = this.pages.length;
    this.#add(page);
    this.layOut(first);
  }

  /** Show boxes where pictures will be. */
  showSkeleton() {
    this.answer = null;
    this.pages = [];
    this.current = null;
    this.root.setAttribute("data-skeleton", "");
    const cards = Array.from({ length: 36 }, (_, at) => ({
      card: el("li", { class: "card", "aria-hidden": "true" }, el("div", { class: "frame" }), el("div", { class: "caption" })),
      ratio: SKELETONS[at % SKELETONS.length],
    }));
    this.root.replaceChildren(...cards.map(({ card }) => card));
    this.pages = [cards];
    this.layOut();
  }

  clear() {
    this.answer = null;
    this.pages = [];
    this.current = null;
    this.root.replaceChildren();
  }

  #add(page) {
    const field = this.answer.state.group_by;
    for (const pictures of field ? groupsOf(page, field) : [page]) {
      if (field) this.root.append(this.#heading(field, pictures));
      const cards = pictures.map((picture) => ({ picture, ratio: ratioOf(picture), card: this.#card(picture) }));
      this.pages.push(cards);
      this.root.append(...cards.map(({ card }) => card));
      if (!this.current) this.#makeCurrent(cards[0]?.card);
    }
  }

  /** What stands above a group, as in the table and the contact sheet (groups_of of imret.output.formats). */
  #heading(field, pictures) {
    const value = valueOf(pictures[0], field);
    const { hits } = this.answer.counts?.categories.find(({ category }) => category === value) ?? {};
    const all = hits > pictures.length && el("button", { type: "button", class: "quiet", "data-category": value,
      "aria-label": `Show all of ${value}`, onclick: () => this.narrowed(value) }, this.answer.state.unique ? "Show all" : `Show all ${hits.toLocaleString()}`);
    return el("li", { class: "group" }, el("h2", {}, `${field}: ${value}`), all);
  }

  #card(picture) {
    const name = nameOf(picture);
    const score = picture.score === undefined ? null : picture.score.toFixed(3);
    const said = [picture.rank && `${picture.rank}`, name, picture.category, score && `score ${score}`];
    if (picture.folded) said.push(`and ${picture.folded} hidden ${picture.folded === 1 ? "duplicate" : "duplicates"}`);
    const image = el("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false" });
    image.addEventListener("load", () => image.classList.add("loaded"));
    image.addEventListener("error", () => image.getAttribute("src") && image.closest(".card").classList.add("broken"));
    const card = el("li", { class: "card", "data-id": picture.id },
      el("a", { class: "frame", href: this.addressFor(picture), tabindex: "-1", "aria-label": said.filter(Boolean).join(", ") },
        image,
        el("span", { class: "gone" }, icon("picture"), "No preview"),
        picture.folded ? el("span", { class: "folded", title: `${picture.folded} ${picture.folded === 1 ? "duplicate" : "duplicates"} hidden` },
          `+${picture.folded}`) : null),
      el("div", { class: "weigh" },
        el("button", { type: "button", class: "round more", tabindex: "-1", title: "More like this (+)",
          "aria-label": `More like this: ${name}`, "data-sign": "1" }, icon("plus")),
        el("button", { type: "button", class: "round less", tabindex: "-1", title: "Less like this (\u2212)",
          "aria-label": `Less like this: ${name}`, "data-sign": "-1" }, icon("minus"))),
      el("div", { class: "caption", "aria-hidden": "true", title: picture.path },
        el("span", { class: "name" }, name),
        el("span", { class: "about" },
          el("span", { class: "category" }, picture.category ?? "\u00a0"),
          score && el("span", { class: "score" }, score))));
    this.#mark(card, this.terms ?? []);
    this.#markChosen(card);
    return card;
  }

  /** Have pictures chosen instead of opened: `ids` is added to and taken from, then `changed()`; null ends it. */
  choose(ids, changed = null) {
    this.chosen = ids;
    this.changed = changed;
    this.root.toggleAttribute("data-choosing", ids !== null);
    for (const { card } of this.pages.flat()) this.#markChosen(card);
  }

  #markChosen(card) {
    const link = card.querySelector("a");
    if (!link) return;
    if (this.chosen) {
      link.setAttribute("role", "checkbox");
      link.setAttribute("aria-checked", String(this.chosen.has(card.dataset.id)));
    } else {
      link.removeAttribute("role");
      link.removeAttribute("aria-checked");
    }
  }

  #toggle(card) {
    const { id } = card.dataset;
    if (!this.chosen.delete(id)) this.chosen.add(id);
    this.#markChosen(card);
    this.changed();
  }

  /** Mark what is added to the query and subtracted from it. */
  weigh(terms) {
    this.terms = terms;
    for (const { card } of this.pages.flat()) this.#mark(card, terms);
  }

  #mark(card, terms) {
    const sign = signOf(terms, card.dataset.id);
    for (const button of card.querySelectorAll(".round")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.sign) === sign));
    }
  }

  /** Give every picture its box, from the page `first` on. */
  layOut(first = 0) {
    const style = getComputedStyle(this.root);
    this.width = widthOf(this.root);
    if (!this.width) return;
    const target = Number.parseFloat(style.getPropertyValue("--row-height")) || 200;
    const gap = Number.parseFloat(style.columnGap) || 0;
    this.pages.slice(first).forEach((cards, at) => {
      const ends = Boolean(this.answer?.state.group_by) || (first + at === this.pages.length - 1 && !this.answer?.more);
      const boxes = justify(cards.map(({ ratio }) => ratio), this.width, { target, gap, least: 92, ends });
      cards.forEach(({ card, picture }, index) => {
        const { width, height } = boxes[index];
        card.style.width = `${width}px`;
        card.querySelector(".frame").style.height = `${height}px`;
        if (picture) this.#source(card, picture, width, height);
      });
    });
  }

  #source(card, picture, width, height) {
    const { width: pixels, height: lines } = picture.payload;
    // A thumbnail fits a square; the box is covered by it.
    const scale = pixels && lines ? Math.max(width / pixels, height / lines) : 1;
    const longest = (pixels && lines ? Math.max(pixels, lines) * scale : Math.max(width, height)) * devicePixelRatio;
    const size = SIZES.find((step) => step >= longest * 0.9) ?? SIZES.at(-1);
    if (size <= Number(card.dataset.size ?? 0)) return;
    card.dataset.size = size;
    card.querySelector("img").src = thumbnailUrl(picture, size, this.answer?.state.collection);
  }

  #makeCurrent(card) {
    if (!card || card === this.current || card.hasAttribute("aria-hidden")) return;
    const reachable = (element, yes) => {
      for (const part of element?.querySelectorAll("a, button") ?? []) part.tabIndex = yes ? 0 : -1;
    };
    reachable(this.current, false);
    reachable(card, true);
    this.current = card;
  }

  cardOf(id) {
    return this.pages.flat().find(({ picture }) => picture?.id === id)?.card ?? null;
  }

  /** Put the focus on a picture, or on the one that had it last. Returns whether there is one. */
  focus(id = null) {
    const card = (id && this.cardOf(id)) || this.current;
    card?.querySelector("a").focus();
    return Boolean(card);
  }

  #clicked(event) {
    const card = event.target.closest(".card[data-id]");
    if (!card) return;
    const button = event.target.closest(".round");
    if (button) {
      this.weighed(card.dataset.id, Number(button.dataset.sign));
    } else if (event.target.closest("a")) {
      // With a key held, the browser opens the link as it always does.
      if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      if (this.chosen) this.#toggle(card);
      else this.opened(card.dataset.id);
    }
  }

  #pressed(event) {
    const card = event.target.closest(".card[data-id]");
    if (!card || event.ctrlKey && !["Home", "End"].includes(event.key) || event.metaKey || event.altKey) return;
    if (event.key === " " && this.chosen && event.target.closest("a")) {
      this.#toggle(card);
    } else if (event.key === "+" || event.key === "-") {
      this.weighed(card.dataset.id, event.key === "+" ? 1 : -1);
    } else {
      const to = this.#neighbour(card, event.key, event.ctrlKey);
      if (!to) return;
      to.querySelector("a").focus();
    }
    event.preventDefault();
  }

  /** Return the picture that an arrow key leads to, Home and End within the row, with Ctrl of all. */
  #neighbour(card, key, all) {
    const cards = this.pages.flat().map((entry) => entry.card);
    const at = cards.indexOf(card);
    const top = card.offsetTop;
    const row = cards.filter((other) => other.offsetTop === top);
    const middle = card.offsetLeft + card.offsetWidth / 2;
    const nearest = (others) => {
      const away = (other) => Math.abs(other.offsetLeft + other.offsetWidth / 2 - middle);
      return others.reduce((best, other) => (!best || away(other) < away(best) ? other : best), null);
    };
    switch (key) {
      case "ArrowLeft": return cards[at - 1];
      case "ArrowRight": return cards[at + 1];
      case "ArrowUp": {
        const above = cards.slice(0, at).filter((other) => other.offsetTop < top);
        return nearest(above.filter((other) => other.offsetTop === above.at(-1).offsetTop));
      }
      case "ArrowDown": {
        const below = cards.slice(at).filter((other) => other.offsetTop > top);
        return nearest(below.filter((other) => other.offsetTop === below[0].offsetTop));
      }
      case "Home": return all ? cards[0] : row[0];
      case "End": return all ? cards.at(-1) : row.at(-1);
      default: return null;
    }
  }
}
