// Live events of a search. The browser connects again by itself, and says what it saw last.

import { address, pathOf } from "./api.js";

/** Follow a search: `on` has handlers by event name; `onState` hears whether it is connected. */
export function follow(search, on, onState) {
  const source = new EventSource(address(pathOf(search, "/events")));
  source.onopen = () => onState(true);
  source.onerror = () => {
    onState(false);
    // An answer that is no stream (too many of them, logged out) is not tried again by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(search, on, onState), 10000);
  };
  for (const [name, handle] of Object.entries(on)) {
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  }
  source.addEventListener("deleted", () => source.close());
}

/** Run `work` soon after each call, but never two at once, and after the last call once more. */
export function calmly(work, pauseMs) {
  let isWaiting = false;
  let isWanted = false;
  async function run() {
    isWanted = false;
    const began = performance.now();
    try {
      await work();
    } finally {
      // What takes long is asked for more rarely.
      const pause = Math.max(pauseMs, performance.now() - began);
      setTimeout(() => {
        isWaiting = false;
        if (isWanted) start();
      }, pause);
    }
  }
  function start() {
    isWanted = true;
    if (isWaiting) return;
    isWaiting = true;
    run();
  }
  return start;
}
