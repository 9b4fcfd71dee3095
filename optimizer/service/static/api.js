// The REST API: what it answers, and its errors as exceptions.

const API = "/api/v1";
const PATIENCE_MS = 60000;

/** What the service refused, with all problems that it listed. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the service answered ${status}`);
    this.status = status;
    this.problems = body?.error?.problems ?? [];
  }

  /** Whether nobody answered: asking again may help. */
  get isLost() {
    return this.status === 0;
  }
}

async function asked(method, path, body) {
  // The header shows that a page of this service asks, not one of another site.
  const options = { method, headers: { "X-Mergefront": "1" } };
  // Who reads waits for ever where a network swallows the answer; what changes something may take long.
  if (method === "GET") options.signal = AbortSignal.timeout(PATIENCE_MS);
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer = null;
  let content = null;
  try {
    answer = await fetch(`${API}${path}`, options);
    content = await answer.json();
  } catch {
    // What a proxy says of an error need not be JSON; otherwise the connection broke.
    if (answer === null || answer.ok) throw new ApiError(0, { error: { message: "the service does not answer; is it running?" } });
  }
  if (answer.status === 401) location.assign("/login");
  if (!answer.ok) throw new ApiError(answer.status, content);
  return content;
}

export const get = (path) => asked("GET", path);
export const post = (path, body) => asked("POST", path, body);
export const remove = (path) => asked("DELETE", path);

/** The path of a search, or of something below it. */
export function pathOf(search, rest = "") {
  return `/searches/${encodeURIComponent(search)}${rest}`;
}

/** The address that a browser opens for a path of the API. */
export function address(path) {
  return `${API}${path}`;
}
