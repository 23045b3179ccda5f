// The server, asked over HTTP. What goes wrong is a Problem (the server says what) or a LostConnection.

import { BASE, parametersOf } from "./state.js";
import { parseTerm } from "./query.js";

const API = `${BASE}api/v1`;

/** Pictures of each group, where they come in groups. */
export const PER_GROUP = 5;

/** What the server refused or could not do, in its own words. */
export class Problem extends Error {
  constructor(status, said, retryAfter) {
    super(said?.detail || said?.title || `The server answered ${status} and did not say why.`);
    this.status = status;
    this.kind = said?.kind ?? null;
    this.retryAfterS = Number(retryAfter) > 0 ? Number(retryAfter) : 2;
  }
}

/** No answer came: the server has stopped, or the network is gone. */
export class LostConnection extends Error {}

/** Return what to throw; who has no session any more is led to the login, and back from there. */
function refused(status, said, retryAfter) {
  if (status === 401) location.assign(`${BASE}login?next=${encodeURIComponent(location.pathname + location.search)}`);
  return new Problem(status, said, retryAfter);
}

async function get(path, parameters, { signal, ...request } = {}) {
  const query = parameters?.toString();
  const address = `${API}${path}${query ? `?${query}` : ""}`;
  let response;
  try {
    response = await fetch(address, { signal, ...request, headers: { accept: "application/json", ...request.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new LostConnection("The server does not answer.");
  }
  const said = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (!response.ok) throw refused(response.status, said, response.headers.get("retry-after"));
  if (said === null) throw new LostConnection("The answer of the server was cut off.");
  return said;
}

/** Hits `offset` to `offset + limit` of a query (groups, if it comes in groups), and how many there are in all. */
export function search(state, { offset = 0, limit, signal }) {
  const parameters = parametersOf(state);
  parameters.set("limit", limit);
  if (state.group_by) parameters.set("per_group", PER_GROUP);
  if (offset) parameters.set("offset", offset);
  else parameters.set("counts", "true");
  return get("/search", parameters, { signal });
}

/** Pictures of the collection without a query, from the id `after` on. */
export function images(state, { after = null, limit, signal }) {
  const parameters = conditionsOf(state);
  parameters.set("limit", limit);
  if (after) parameters.set("after", after);
  return get("/images", parameters, { signal });
}

/** The names that searches of a collection know, and whether it can be taught more. */
export const concepts = (collection, options) => get("/concepts", inCollection(collection), options);

/** Teach a collection a name by stored pictures. */
export function teach(name, ids, collection) {
  const body = JSON.stringify(collection ? { name, ids, collection } : { name, ids });
  return get("/concepts", null, { method: "POST", body, headers: { "content-type": "application/json" } });
}

/** How far an ingest of the server is. */
export const ingest = (options) => get("/ingest", null, options);

export const collections = (options) => get("/collections", null, options);

/** How many pictures of each category there are without a query, whatever categories are chosen. */
export function categories(state, options) {
  return get("/categories", conditionsOf({ ...state, category: [], not_category: [] }), options);
}

/** What of a state says which pictures, not which query. */
function conditionsOf(state) {
  return parametersOf({ ...state, terms: [], relevant: false, unique: false, include_self: false, concepts: true, sort: "score", group_by: null });
}

/** What is stored of one picture. */
export function payload(id, collection, options) {
  return get(`/images/${encodeURIComponent(id)}/payload`, inCollection(collection), options);
}

function inCollection(collection) {
  return new URLSearchParams(collection ? { collection } : {});
}

/** The address of a picture itself. */
export function originalUrl(picture, collection) {
  const parameters = withVersion(inCollection(collection), picture);
  return `${API}/images/${encodeURIComponent(picture.id)}?${parameters}`;
}

/** The address of a thumbnail that fits a square of `size` pixels. */
export function thumbnailUrl(picture, size, collection) {
  const parameters = withVersion(inCollection(collection), picture);
  parameters.set("size", size);
  return `${API}/thumbnails/${encodeURIComponent(picture.id)}?${parameters}`;
}

export const uploadUrl = (sha256, size) => `${API}/uploads/${encodeURIComponent(sha256)}?size=${size}`;

/** What has its content's hash in its address never changes: a browser may keep it without asking again. */
function withVersion(parameters, picture) {
  const hash = picture.payload?.sha256;
  if (hash) parameters.set("v", String(hash).slice(0, 8));
  return parameters;
}

/** Why an address of the server gives no picture, in the server's words. */
export async function whyNot(address) {
  try {
    const response = await fetch(address);
    if (response.ok) return "This browser cannot show the picture.";
    return new Problem(response.status, await response.json().catch(() => null)).message;
  } catch {
    return "The server does not answer.";
  }
}

/**
 * Send pictures as further terms of a query, and return the answer. `progressed` is told the share that was
 * sent. XMLHttpRequest, because fetch does not tell.
 */
export function send(state, files, { limit, signal, progressed }) {
  const terms = state.terms.map(({ typed, minus }) => {
    const term = parseTerm(typed);
    return { ...term, weight: minus ? -term.weight : term.weight };
  });
  files.forEach((_, at) => terms.push({ kind: "picture", value: String(at), weight: 1 }));
  const { relevant, unique, include_self, concepts, sort } = state;
  const query = { terms, limit, counts: true, relevant, unique, include_self, concepts, sort };
  if (state.group_by) Object.assign(query, { group_by: state.group_by, per_group: PER_GROUP });
  for (const key of ["category", "not_category", "where"]) if (state[key].length) query[key] = state[key];
  if (state.collection) query.collection = state.collection;

  const form = new FormData();
  form.append("query", JSON.stringify(query));
  for (const file of files) form.append("picture", file, file.name || "pasted picture");

  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `${API}/search`);
    request.responseType = "json";
    request.setRequestHeader("accept", "application/json");
    request.upload.onprogress = (event) => event.lengthComputable && progressed(event.loaded / event.total);
    request.onload = () => {
      const { status, response } = request;
      if (status === 200 && response) resolve(response);
      else reject(refused(status, response, request.getResponseHeader("retry-after")));
    };
    request.onerror = () => reject(new LostConnection("The picture could not be sent: the server does not answer."));
    request.onabort = () => reject(new DOMException("taken back", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
