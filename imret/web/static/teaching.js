// Teaching a name: pictures are chosen instead of opened, and what they show gets a name that searches know.

import * as api from "./api.js";
import { byId, isTyping, say } from "./dom.js";
import { grid } from "./gallery.js";
import { change, current } from "./navigation.js";
import { parseTerm } from "./query.js";
import { forgetResults } from "./results.js";

let chosen = null; // ids of pictures while they are chosen, else null
let asking = false;

/** Show the button where there are pictures to teach with; to choose goes on over other searches. */
export function showTeaching() {
  byId("teach").hidden = chosen !== null || !current.answer?.pictures.length;
  if (chosen && chosen.collection !== current.state.collection) leave(); // its pictures mean nothing in another
}

export function listenToTeaching() {
  byId("teach").onclick = begin;
  byId("teaching").addEventListener("submit", (event) => {
    event.preventDefault();
    teach();
  });
  byId("teaching-cancel").onclick = leave;
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !chosen || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (isTyping(event.target) && !byId("teaching").contains(event.target)) return;
    event.preventDefault();
    leave();
  });
}

async function begin() {
  try {
    const said = await api.concepts(current.state.collection);
    if (!said.can_be_taught) {
      say("This server takes no names from other machines without a token.");
      return;
    }
  } catch (error) {
    say(error.message);
    return;
  }
  chosen = { collection: current.state.collection, ids: new Set() };
  byId("teaching").hidden = false;
  byId("teach").hidden = true;
  trouble("");
  count();
  grid.choose(chosen.ids, count);
  grid.focus();
}

function leave() {
  chosen = null;
  grid.choose(null);
  byId("teaching").reset();
  byId("teaching").hidden = true;
  showTeaching();
  if (!byId("teach").hidden) byId("teach").focus();
}

function count() {
  const { size } = chosen.ids;
  byId("teaching-count").textContent = size ? `${size.toLocaleString()} ${size === 1 ? "picture" : "pictures"} chosen` : "Choose pictures of one thing";
}

function trouble(text) {
  byId("teaching-trouble").textContent = text;
  byId("teaching-trouble").hidden = !text;
}

async function teach() {
  const name = byId("teaching-name").value.trim();
  if (asking || !chosen) return;
  if (!chosen.ids.size || !name) {
    trouble(name ? "Choose some pictures first: click them, or press Space." : "Say what the pictures show.");
    (name ? grid : byId("teaching-name")).focus();
    return;
  }
  asking = true;
  trouble("");
  byId("teaching").setAttribute("aria-busy", "true");
  try {
    const { concept, notes } = await api.teach(name, [...chosen.ids], chosen.collection);
    forgetResults(); // what was found by these words may be another now
    const from = `${concept.images.toLocaleString()} ${concept.images === 1 ? "picture" : "pictures"}`;
    const kept = concept.text_kept ? " The words alone find them as well, and are asked as before." : "";
    leave();
    const read = parseTerm(concept.name); // a name may look like something else, such as 16:9
    const typed = read.kind === "text" && read.value === concept.name ? concept.name : `text:${concept.name}`;
    change({ terms: [{ typed, minus: false }], concepts: true });
    const said = notes.map((note) => `${note.charAt(0).toUpperCase()}${note.slice(1)}.`);
    say([`\u201c${concept.name}\u201d was learnt from ${from}.${kept}`, ...said].join(" "));
  } catch (error) {
    trouble(error.message);
  } finally {
    asking = false;
    byId("teaching").removeAttribute("aria-busy");
  }
}
