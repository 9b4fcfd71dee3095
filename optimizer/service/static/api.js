// The REST API: what it answers, and its errors as exceptions.

const API = "/api/v1";

/** What the service refused, with all problems that it listed. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the service answered ${status}`);
    this.status = status;
    this.problems = body?.error?.problems ?? [];
  }
}

async function asked(method, path, body) {
  // The header shows that a page of this service asks, not one of another site.
  const options = { method, headers: { "X-Mergefront": "1" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(`${API}${path}`, options);
  } catch {
    throw new ApiError(0, { error: { message: "the service does not answer; is it running?" } });
  }
  if (answer.status === 401) location.assign("/login");
  const content = await answer.json().catch(() => null);
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
