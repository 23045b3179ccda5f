// The search box: its words, what adds them to the query or subtracts them, and the keys that lead in and out.

import { byId } from "./dom.js";
import { again, change, current } from "./navigation.js";
import * as query from "./query.js";

const words = byId("words");

/** Show the main words of the query. */
export function showBox() {
  words.value = query.mainWords(current.state.terms);
  showButtons();
}

export function enterBox({ select = false } = {}) {
  words.focus();
  if (select) words.select();
}

/** `left()` puts the focus elsewhere and says whether it did. */
export function listenToBox(left) {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(words.value);
  });
  words.addEventListener("input", showButtons);
  words.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.preventDefault(); // a browser would clear the field
      showBox();
      if (!left()) words.blur();
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
    if (query.mainWords(current.state.terms)) ask("");
    else showButtons();
  };
}

function ask(text) {
  const terms = query.asked(current.state.terms, text);
  if (JSON.stringify(terms) === JSON.stringify(current.state.terms)) again();
  else change({ terms });
}

/** Add what stands in the box to the query, or subtract it. */
function sum(minus) {
  const typed = query.parseTyped(words.value).map((term) => ({ ...term, minus: term.minus !== minus }));
  if (!typed.length) return;
  change({ terms: typed.reduce(query.withTerm, current.state.terms) });
  enterBox({ select: true });
}

/** The signs stand beside words that are not asked for yet; without a query, words can only be asked for. */
function showButtons() {
  const typed = words.value.trim();
  const other = typed && typed !== query.mainWords(current.state.terms) && current.state.terms.length > 0;
  byId("add-words").hidden = !other;
  byId("subtract-words").hidden = !other;
  byId("clear-words").hidden = !words.value;
}
