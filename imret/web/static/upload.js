// Pictures that somebody drops, pastes or chooses, on their way to the server.

import { byId, el } from "./dom.js";
import { icon } from "./icons.js";
import { LostConnection, Problem } from "./api.js";

/** What is larger is scaled down before it is sent: a search sees a few hundred pixels of a picture. */
const LARGE = 8 * 1024 * 1024;
const LONGEST = 2048; // pixels of what was scaled down

/**
 * Listen for pictures in every way there is. `sent(files, {signal, progressed})` sends them and resolves when
 * the answer is there; `linked(address)` is told of a picture that was dragged here from another page.
 */
export function acceptPictures({ sent, linked }) {
  const take = (files) => begin([...files], sent);
  const file = byId("file");
  byId("choose").onclick = () => file.click();
  file.onchange = () => {
    take(file.files);
    file.value = "";
  };
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
  acceptDrops(take, linked);
}

function acceptDrops(take, linked) {
  const overlay = byId("drop");
  let own = false;
  const useful = (event) => !own && ["Files", "text/uri-list"].some((type) => event.dataTransfer?.types.includes(type));
  document.addEventListener("dragstart", () => {
    own = true;
  });
  document.addEventListener("dragend", () => {
    own = false;
  });
  document.addEventListener("dragover", (event) => {
    if (!useful(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    overlay.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) overlay.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    overlay.hidden = true;
    if (!useful(event)) return;
    event.preventDefault();
    const folder = [...event.dataTransfer.items].some((item) => item.webkitGetAsEntry?.()?.isDirectory);
    const { files } = event.dataTransfer;
    const link = event.dataTransfer.getData("text/uri-list").split(/\r?\n/).find((line) => /^https?:/i.test(line));
    if (folder) complain("Drop a picture, not a folder. To add a folder to the collection: imret ingest FOLDER");
    else if (files.length) take(files);
    else if (link) linked(link);
  });
}

let controller = null;

async function begin(files, sent) {
  if (!files.length) return;
  controller?.abort();
  controller = new AbortController();
  const { signal } = controller;
  const other = files.find((file) => file.type && !file.type.startsWith("image/"));
  if (other) {
    complain(`\u201c${other.name}\u201d is not a picture (${other.type}).`);
    return;
  }
  const bar = el("progress", { max: "1", value: "0", "aria-label": "Sent" });
  const address = URL.createObjectURL(files[0]);
  const preview = el("img", { class: "preview", alt: "", src: address });
  preview.addEventListener("error", () => preview.replaceWith(icon("picture")));
  const what = files.length === 1 ? files[0].name || "the picture" : `${files.length} pictures`;
  const status = el("span", { class: "label" }, `Sending ${what}`);
  byId("sending").replaceChildren(el("div", { class: "sending" }, preview, status, bar,
    el("button", { type: "button", class: "remove", "aria-label": "Do not send", title: "Do not send",
      onclick: () => controller.abort() }, icon("close"))));
  try {
    const light = await Promise.all(files.map(lighten));
    if (signal.aborted) return;
    await sent(light, {
      signal,
      progressed: (share) => {
        bar.value = share;
        if (share < 1) return;
        bar.removeAttribute("value");
        status.textContent = `Searching with ${what}`;
      },
    });
    if (!signal.aborted) byId("sending").replaceChildren();
  } catch (error) {
    if (error instanceof Problem || error instanceof LostConnection) complain(error.message, () => begin(files, sent));
    else if (error.name !== "AbortError") throw error;
    else if (controller.signal === signal) byId("sending").replaceChildren();
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** Say why a picture was not taken. */
export function complain(text, retry = null) {
  byId("sending").replaceChildren(el("div", { class: "sending wrong", role: "alert" }, icon("alert"),
    el("span", { class: "label" }, text),
    retry && el("button", { type: "button", class: "button", onclick: retry }, "Try again"),
    el("button", { type: "button", class: "button", onclick: () => byId("choose").click() }, "Choose another"),
    el("button", { type: "button", class: "remove", "aria-label": "Dismiss", title: "Dismiss",
      onclick: () => byId("sending").replaceChildren() }, icon("close"))));
}

async function lighten(file) {
  if (file.size <= LARGE) return file;
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
    const canvas = el("canvas");
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff"; // what is transparent
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    return blob && blob.size < file.size ? new File([blob], file.name, { type: "image/jpeg" }) : file;
  } catch {
    return file; // a format that this browser does not know; the server may, or says what it takes
  }
}

