// The address is the state: what is asked, narrowed, sorted and looked at. Its names are those of the API.
//
// What the address does not say, the entry of the history remembers: how far somebody had scrolled, how many
// pictures had been loaded, and whether the picture that is open was opened from the page before.

/** The path of the page, which a proxy may have put below another: this module is at static/ of it. */
export const BASE = new URL("..", import.meta.url).pathname;

export const SORTS = ["score", "date", "path"];
export const GROUPS = ["category"];

const LISTS = ["category", "not_category", "where"];
const FLAGS = ["relevant", "unique", "include_self"];

/** Return the state that an address names; what it says that nothing knows is left out. */
export function readState(search = location.search) {
  const state = {
    terms: [], category: [], not_category: [], where: [], relevant: false, unique: false, include_self: false, concepts: true,
    sort: "score", group_by: null, collection: null, picture: null,
  };
  for (const [key, value] of new URLSearchParams(search)) {
    if ((key === "q" || key === "not") && value.trim()) {
      const known = state.terms.some((term) => term.typed === value);
      if (!known) state.terms.push({ typed: value, minus: key === "not" });
    } else if (LISTS.includes(key) && !state[key].includes(value)) state[key].push(value);
    else if (FLAGS.includes(key)) state[key] = value === "true" || value === "1";
    else if (key === "concepts") state.concepts = value !== "false" && value !== "0";
    else if (key === "sort" && SORTS.includes(value)) state.sort = value;
    else if (key === "group_by" && GROUPS.includes(value)) state.group_by = value;
    else if (key === "collection" || key === "picture") state[key] = value || null;
  }
  if (state.group_by) state.sort = "score"; // in another order, pictures of one group are apart
  return state;
}

/** Return the parameters that name what is asked, without the picture that is open. */
export function parametersOf(state) {
  const parameters = new URLSearchParams();
  for (const { typed, minus } of state.terms) parameters.append(minus ? "not" : "q", typed);
  for (const key of LISTS) for (const value of state[key]) parameters.append(key, value);
  for (const key of FLAGS) if (state[key]) parameters.set(key, "true");
  if (!state.concepts) parameters.set("concepts", "false");
  if (state.sort !== "score") parameters.set("sort", state.sort);
  if (state.group_by) parameters.set("group_by", state.group_by);
  if (state.collection) parameters.set("collection", state.collection);
  return parameters;
}

/** Return the address of a state. */
export function addressOf(state) {
  const parameters = parametersOf(state);
  if (state.picture) parameters.set("picture", state.picture);
  const query = parameters.toString();
  return query ? `${BASE}?${query}` : BASE;
}

/** Return what two states have in common that ask the same, whatever picture is open. */
export const keyOf = (state) => parametersOf(state).toString();

/** What the entry of the history remembers. */
export const remembered = () => history.state ?? {};

/** Note what the present entry of the history should remember. */
export function remember(notes) {
  history.replaceState({ ...history.state, ...notes }, "");
}

/** Write a state into the address: as a new entry of the history, or in place of the present one. */
export function writeState(state, { replace = false, notes = {} } = {}) {
  if (replace) history.replaceState({ ...history.state, ...notes }, "", addressOf(state));
  else history.pushState(notes, "", addressOf(state));
}
