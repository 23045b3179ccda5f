// Elements of the page, made without markup: what comes from files, categories and queries is only ever text.

/**
 * Make an element. Attributes that begin with "on" are listeners, true is an empty attribute, false, null and
 * undefined leave it out. Children are nodes or text; null and false are left out.
 */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Run what rebuilds `root`, and put the focus back on the element that has the same data-key. */
export function keepFocus(root, rebuild, otherwise = null) {
  const focused = document.activeElement;
  const key = focused && root.contains(focused) ? focused.dataset.key : undefined;
  rebuild();
  if (key === undefined || root.contains(document.activeElement)) return;
  const again = [...root.querySelectorAll("[data-key]")].find((element) => element.dataset.key === key);
  (again ?? otherwise)?.focus();
}

/** Whether the keys that somebody presses are meant for a field. */
export function isTyping(target) {
  return target instanceof HTMLElement && target.matches("input, textarea, select, [contenteditable]");
}

let fading = 0;

/** Say something in passing: what was copied, what cannot be done. Screen readers hear it. */
export function say(text) {
  const place = byId("toast");
  // An open dialog makes all else inert, and hides what lies below it: the words go along.
  const dialog = document.querySelector("dialog[open]");
  (dialog ?? document.body).append(place);
  place.textContent = text;
  place.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => {
    place.hidden = true;
  }, 5000);
}
