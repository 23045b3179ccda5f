// The server, asked over HTTP. What goes wrong is a Problem (the server says what) or a LostConnection.

import { BASE, parametersOf } from "./state.js";
import { parseTerm } from "./query.js";

const API = `${BASE}api/v1`;

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

async function get(path, parameters, { signal } = {}) {
  const query = parameters?.toString();
  const address = `${API}${path}${query ? `?${query}` : ""}`;
  let response;
  try {
    response = await fetch(address, { signal, headers: { accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new LostConnection("The server does not answer.");
  }
  const said = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (!response.ok) throw refused(response.status, said, response.headers.get("retry-after"));
  if (said === null) throw new LostConnection("The answer of the server broke off.");
  return said;
}

/**
 * Whether a picture that is asked for may be among its own hits: who sends one wants to know whether it is in
 * the collection; who asks for more like one of the collection has seen that one.
 */
function findsItself({ terms }) {
  const kinds = terms.map(({ typed }) => parseTerm(typed).kind);
  return kinds.some((kind) => kind === "upload" || kind === "url") && !kinds.includes("id") && !kinds.includes("stored");
}

/** Hits `offset` to `offset + limit` of a query, and how it spreads over categories. */
export function search(state, { offset = 0, limit, signal }) {
  const parameters = parametersOf(state);
  parameters.set("limit", limit);
  if (findsItself(state)) parameters.set("include_self", "true");
  if (offset) parameters.set("offset", offset);
  else parameters.set("counts", "true");
  return get("/search", parameters, { signal });
}

/** Pictures of the collection without a query, from the id `after` on. */
export function images(state, { after = null, limit, signal }) {
  const parameters = parametersOf({ ...state, terms: [], relevant: false, unique: false, sort: "score" });
  parameters.set("limit", limit);
  if (after) parameters.set("after", after);
  return get("/images", parameters, { signal });
}

/** How far an ingest of the server is. */
export const ingest = (options) => get("/ingest", null, options);

export const collections = (options) => get("/collections", null, options);

export function categories(state, options) {
  const parameters = parametersOf({ ...state, terms: [], category: [], not_category: [], sort: "score" });
  parameters.delete("relevant");
  parameters.delete("unique");
  return get("/categories", parameters, options);
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
  const { relevant, unique, sort } = state;
  const sent = { terms: [...state.terms, { typed: "upload:", minus: false }] };
  const query = { terms, limit, counts: true, relevant, unique, sort, include_self: findsItself(sent) };
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
