// What went wrong while something was asked for: the server's own words, what to do, and trying again.

import { LostConnection, Problem } from "./api.js";
import { notice } from "./notices.js";

const TRIES = 5; // while the server is busy, before somebody has to ask for more

let tries = 0;
let waiting = 0;

/** Forget what was waited for: something else is asked now, or the answer came. */
export function stopWaiting({ answered = false } = {}) {
  clearTimeout(waiting);
  removeEventListener("online", onlineAgain);
  if (answered) tries = 0;
}

let onlineAgain = () => {};

/**
 * Return a panel for an error. `retry()` asks again; it is called by itself where that is likely to help:
 * after the time that a busy server names, and when the network is back. `actions` are further ways out.
 */
export function errorPanel(error, retry, actions = []) {
  stopWaiting();
  const again = () => {
    stopWaiting();
    retry();
  };
  if (error instanceof LostConnection) {
    onlineAgain = again;
    addEventListener("online", onlineAgain);
    return notice({
      drawing: "offline",
      title: "No connection to imret",
      text: `${error.message} If it was stopped, start it again:`,
      code: "imret serve",
      actions: [["Try again", again], ...actions],
    });
  }
  if (error instanceof Problem && error.status === 503) {
    tries += 1;
    const alone = tries <= TRIES;
    if (alone) waiting = setTimeout(again, error.retryAfterS * 1000);
    return notice({
      drawing: "clock",
      title: "imret is busy",
      text: `${sentence(error.message)} ${alone ? `Asking again in ${seconds(error.retryAfterS)}.` : ""}`.trim(),
      actions: [["Ask again now", again], ...actions],
    });
  }
  return notice({
    drawing: "alert",
    title: error instanceof Problem && error.status < 500 ? "imret cannot answer this" : "Something went wrong",
    text: sentence(error.message),
    actions: error instanceof Problem && error.status < 500 ? [...actions, ["Try again", again]] : [["Try again", again], ...actions],
  });
}

/** The commands write "Error: the query ..."; here the message stands alone. */
const sentence = (message) => message.charAt(0).toUpperCase() + message.slice(1);

const seconds = (number) => `${Math.ceil(number)} ${Math.ceil(number) === 1 ? "second" : "seconds"}`;
