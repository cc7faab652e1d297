/** How the page asks its service. */

let proof = "";

/** An answer that is no. */
export class Refused extends Error {
  constructor(told, status) {
    super(told.message);
    this.reason = told.reason;
    this.advice = told.advice;
    this.status = status;
  }
}

export function keepProof(given) {
  proof = given;
}

/** Asks for data. */
export const ask = (path, signal) => answered(fetch(path, { signal, headers: { accept: "application/json" } }));

/** Asks for a change. */
export const change = (path, body = {}) =>
  answered(
    fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-fedrecon-proof": proof },
      body: JSON.stringify(body),
    }),
  );

async function answered(asking) {
  let response;
  try {
    response = await asking;
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Refused({ reason: "CONSOLE_AWAY", message: "The console does not answer.", advice: "It is tried again." }, 0);
  }
  const told = await response.json();
  if (!response.ok) {
    throw new Refused(told, response.status);
  }
  return told;
}

export const taskPath = (name, rest = "") => `/api/tasks/${encodeURIComponent(name)}${rest}`;
export const roundLink = (name, round) => `/tasks/${encodeURIComponent(name)}/rounds/${round}`;
