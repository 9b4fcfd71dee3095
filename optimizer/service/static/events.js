// Live events of a search. The browser connects again by itself, and says what it saw last.

import { address, pathOf } from "./api.js";

const AGAIN_MS = 10000;

/**
 * Follow a search: `on` has handlers by event name; `onState` hears whether it is connected, and
 * `onRefusal` that the service answered something that is no stream.
 *
 * Nothing is followed while nobody can see the page: browsers open six connections to a service at
 * most, all of their pages together, so that six hidden pages would leave none to ask with.
 */
export function follow(search, on, { onState, onRefusal }) {
  let source = null;
  let waiting = null;
  let isOver = false;

  function connect() {
    clearTimeout(waiting);
    if (isOver || source || document.hidden) return;
    source = new EventSource(address(pathOf(search, "/events")));
    source.onopen = () => onState(true);
    source.onerror = () => {
      onState(false);
      if (source.readyState !== EventSource.CLOSED) return;
      // Too many streams, logged out, deleted: that is not tried again by itself.
      disconnect();
      waiting = setTimeout(connect, AGAIN_MS);
      onRefusal();
    };
    for (const [name, handle] of Object.entries(on)) {
      source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    }
    source.addEventListener("deleted", end);
  }

  function disconnect() {
    clearTimeout(waiting);
    source?.close();
    source = null;
  }

  function end() {
    isOver = true;
    disconnect();
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  connect();
  return end;
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
