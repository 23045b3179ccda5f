// One picture at its largest, with all that is stored of it.

import { byId, el, say } from "./dom.js";
import { originalUrl, thumbnailUrl, whyNot } from "./api.js";
import { nameOf } from "./grid.js";

/** Fields in the order in which people ask for them, and what to call them; others follow as they are. */
const FIELDS = {
  path: "Path", source: "Folder", category: "Category", modified: "Changed", size_bytes: "Size", width: "Pixels", sha256: "SHA-256",
};
const HIDDEN = ["height", "file_base64"]; // told with the width; the bytes of an undecodable name
const SWIPE = 48; // pixels, across

export class Lightbox {
  /** `moved(step)` is -1, 1, "first" or "last"; `closed()`, `weighed(id, sign)` and `only(id)` speak for themselves. */
  constructor({ moved, closed, weighed, only }) {
    this.dialog = byId("lightbox");
    this.image = byId("box-picture");
    this.closed = closed;
    this.moved = moved;
    byId("box-close").onclick = closed;
    byId("box-previous").onclick = () => moved(-1);
    byId("box-next").onclick = () => moved(1);
    byId("box-more").onclick = () => weighed(this.picture.id, 1);
    byId("box-less").onclick = () => weighed(this.picture.id, -1);
    byId("box-only").onclick = () => only(this.picture.id);
    byId("box-copy").onclick = () => copy(this.picture.path);
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      closed();
    });
    // A browser may close it without asking.
    this.dialog.addEventListener("close", () => this.picture && closed());
    byId("stage").addEventListener("click", (event) => event.target === event.currentTarget && closed());
    this.dialog.addEventListener("keydown", (event) => this.#pressed(event));
    this.image.addEventListener("error", () => this.#failed());
    this.image.addEventListener("load", () => this.dialog.removeAttribute("data-loading"));
    this.#swipes(byId("stage"));
  }

  get isOpen() {
    return this.dialog.open;
  }

  /**
   * Show a picture; `place` is {at, of, more} within the results, or null for one from elsewhere. `sign` is how
   * it counts in the query, `asked` whether there is one, `canSubtract` whether there is what to subtract from.
   */
  show(picture, { collection, place, sign, canSubtract, asked }) {
    const changed = this.picture?.id !== picture.id;
    this.picture = picture;
    this.collection = collection;
    if (changed || !this.isOpen) this.#load(picture);
    byId("box-name").textContent = nameOf(picture);
    const andMore = place?.more && asked ? " and more" : "";
    byId("box-position").textContent = place ? `${(place.at + 1).toLocaleString()} of ${place.of.toLocaleString()}${andMore}` : "";
    byId("box-previous").disabled = !place || place.at === 0;
    byId("box-next").disabled = !place || (place.at === place.of - 1 && !place.more);
    const summary = byId("box-summary");
    summary.replaceChildren(...[
      picture.category && el("span", { class: "tag" }, picture.category),
      picture.score !== undefined && el("span", { class: "score" }, `score ${picture.score.toFixed(3)}`),
      picture.folded ? el("span", {}, `${picture.folded} ${picture.folded === 1 ? "duplicate" : "duplicates"} hidden`) : null,
    ].filter(Boolean));
    byId("box-more").setAttribute("aria-pressed", String(sign === 1));
    byId("box-less").setAttribute("aria-pressed", String(sign === -1));
    byId("box-less").hidden = !canSubtract;
    byId("box-only").hidden = !asked; // more like this says the same
    byId("box-open").href = originalUrl(picture, collection);
    byId("box-fields").replaceChildren(...fieldsOf(picture));
    if (!this.isOpen) {
      this.dialog.showModal();
      byId("box-close").focus();
      byId("box-details").scrollTop = 0;
    }
  }

  hide() {
    this.picture = null;
    this.image.removeAttribute("src");
    this.image.style.backgroundImage = "";
    if (this.isOpen) this.dialog.close();
  }

  #load(picture) {
    const { width, height } = picture.payload ?? {};
    this.dialog.setAttribute("data-loading", "");
    byId("box-trouble").hidden = true;
    this.image.hidden = false;
    // The box has its size before the picture comes; the thumbnail fills it until then.
    this.image.width = width || 800;
    this.image.height = height || 600;
    this.image.style.setProperty("--ratio", (width || 4) / (height || 3));
    this.image.style.setProperty("--wide", `${Math.max(width || 0, 480)}px`);
    this.image.style.backgroundImage = `url("${thumbnailUrl(picture, 320, this.collection)}")`;
    this.image.alt = `${nameOf(picture)}${picture.category ? `, ${picture.category}` : ""}`;
    this.image.src = originalUrl(picture, this.collection);
  }

  async #failed() {
    const { picture } = this;
    if (!picture) return;
    const why = await whyNot(originalUrl(picture, this.collection));
    if (this.picture !== picture) return;
    this.dialog.removeAttribute("data-loading");
    this.image.hidden = true;
    byId("box-trouble").hidden = false;
    byId("box-trouble").textContent = why;
  }

  /** Fetch a neighbour before somebody asks for it. */
  prepare(picture) {
    if (picture) new Image().src = originalUrl(picture, this.collection);
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: "first", End: "last" }[event.key];
    if (step) this.moved(step);
    else if (event.key === "+") byId("box-more").click();
    else if (event.key === "-") byId("box-less").hidden || byId("box-less").click();
    else return;
    event.preventDefault();
  }

  #swipes(stage) {
    let start = null;
    stage.addEventListener("touchstart", ({ touches }) => {
      // Two fingers zoom, and so does one that moves a picture zoomed into.
      const zoomed = (window.visualViewport?.scale ?? 1) > 1.05;
      start = touches.length === 1 && !zoomed ? { x: touches[0].clientX, y: touches[0].clientY } : null;
    }, { passive: true });
    stage.addEventListener("touchend", ({ changedTouches }) => {
      if (!start) return;
      const across = changedTouches[0].clientX - start.x;
      const down = changedTouches[0].clientY - start.y;
      start = null;
      if (Math.abs(across) >= SWIPE && Math.abs(across) > 1.5 * Math.abs(down)) this.moved(across < 0 ? 1 : -1);
      else if (down > 2 * SWIPE && down > 2 * Math.abs(across)) this.closed();
    }, { passive: true });
  }
}

function fieldsOf(picture) {
  const payload = picture.payload ?? {};
  const known = Object.keys(FIELDS).filter((field) => field in payload);
  const others = Object.keys(payload).filter((field) => !(field in FIELDS) && !HIDDEN.includes(field)).sort();
  return [...known, ...others].map((field) => el("div", {},
    el("dt", {}, FIELDS[field] ?? field),
    el("dd", { class: field === "sha256" ? "hash" : null }, shown(field, payload))));
}

function shown(field, payload) {
  const value = payload[field];
  if (field === "width") return `${number(payload.width)} \u00d7 ${number(payload.height)}`;
  if (field === "size_bytes") return size(value);
  if (field === "modified") return moment(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

const number = (value) => Number(value).toLocaleString(undefined, { useGrouping: false });

function moment(value) {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return String(value);
  return el("time", { datetime: value }, date.toLocaleString(undefined, { dateStyle: "long", timeStyle: "short" }));
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  const units = ["kB", "MB", "GB"];
  let value = bytes;
  let unit = -1;
  do {
    value /= 1000;
    unit += 1;
  } while (value >= 999.5 && unit < units.length - 1);
  return `${value.toLocaleString(undefined, { maximumFractionDigits: value < 10 ? 1 : 0 })} ${units[unit]}`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https (another machine's address) there is no clipboard to write to, but a selection can be copied.
    const field = el("textarea", { readonly: true, class: "unseen", "aria-hidden": "true" });
    field.value = text;
    byId("lightbox").append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    byId("box-copy").focus();
    if (!copied) {
      say(`This browser does not let a page copy. The path: ${text}`);
      return;
    }
  }
  say("Path copied");
}
