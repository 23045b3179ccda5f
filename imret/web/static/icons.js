// The icons, drawn for this page on a grid of 24 units: strokes of 1.75, in the colour of the text around them.

const STROKES = {
  search: ["M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13z", "M15.3 15.3L20 20"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  plus: ["M12 5v14", "M5 12h14"],
  minus: ["M5 12h14"],
  picture: ["M5 4.5h14a1.5 1.5 0 0 1 1.5 1.5v12a1.5 1.5 0 0 1-1.5 1.5H5A1.5 1.5 0 0 1 3.5 18V6A1.5 1.5 0 0 1 5 4.5z",
    "M3.5 16.5l4.5-4.5 4 4 3-3 5.5 5", "M15.5 8.2v.1"],
  link: ["M10 14a4 4 0 0 0 6 0l3-3a4.2 4.2 0 0 0-6-6l-1.2 1.2", "M14 10a4 4 0 0 0-6 0l-3 3a4.2 4.2 0 0 0 6 6l1.2-1.2"],
  open: ["M14 4h6v6", "M20 4l-9 9", "M18 14v4.5a1.5 1.5 0 0 1-1.5 1.5h-11A1.5 1.5 0 0 1 4 18.5v-11A1.5 1.5 0 0 1 5.5 6H10"],
  copy: ["M9.5 8.5h9a1.5 1.5 0 0 1 1.5 1.5v9a1.5 1.5 0 0 1-1.5 1.5h-9A1.5 1.5 0 0 1 8 19v-9a1.5 1.5 0 0 1 1.5-1.5z",
    "M16 5.2A1.5 1.5 0 0 0 14.5 3.5h-9A1.5 1.5 0 0 0 4 5v9a1.5 1.5 0 0 0 1.2 1.5"],
  back: ["M14.5 5l-7 7 7 7"],
  forward: ["M9.5 5l7 7-7 7"],
  down: ["M7 10l5 5 5-5"],
  help: ["M9 9a3.1 3.1 0 1 1 4.6 2.7c-1 .6-1.6 1.2-1.6 2.5", "M12 18v.1"],
  alert: ["M12 4l9 15.5H3z", "M12 10v4.5", "M12 17v.1"],
  offline: ["M4 4l16 16", "M5 12.5a10 10 0 0 1 4-2.4", "M2.5 9A14 14 0 0 1 7 6.2", "M12 6a14 14 0 0 1 9.5 3",
    "M15 10.2a10 10 0 0 1 4 2.3", "M8.5 16a5 5 0 0 1 5-1.2", "M12 19v.1"],
  clock: ["M12 4a8 8 0 1 0 0 16a8 8 0 0 0 0-16z", "M12 8v4.5l3 1.8"],
};

/** Return a drawing that screen readers pass over. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const attributes = { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  for (const stroke of STROKES[name]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", stroke);
    svg.append(path);
  }
  return svg;
}

/** Draw the icons that the page itself asks for, as in <span data-icon="search">. */
export function drawIcons() {
  for (const place of document.querySelectorAll("[data-icon]")) place.replaceChildren(icon(place.dataset.icon));
}
