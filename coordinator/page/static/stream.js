// The records of the run, as server-sent events. EventSource cannot show a token: this reads them with fetch.

const SILENCE = 25_000; // ms; the server says something every 10 s
const TOKEN = "hypergpu-token";

/** The token of this page: from the address, where it does not stay, or from before a reload. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * Follow the run for good. `on.message(kind, data)` gets each event; `on.status(state, text)` hears of the connection:
 * connected, lost, refused (the token is missing or wrong).
 */
export async function follow(path, token, on) {
  let place = "";
  for (let failures = 0; ; failures += 1) {
    const aborter = new AbortController();
    try {
      const headers = { ...authorization(token), ...(place ? { "Last-Event-ID": place } : {}) };
      const reply = await fetch(path, { headers, signal: aborter.signal, cache: "no-store" });
      if (reply.status === 401 || reply.status === 403) {
        on.status("refused", (await reply.text()).trim());
        return;
      }
      if (!reply.ok) throw new Error((await reply.text()).trim());
      on.status("connected", "");
      failures = 0;
      await read(reply.body, aborter, (kind, data, id) => {
        place = id || place;
        if (kind !== "place") on.message(kind, data);
      });
      on.status("lost", "the connection has ended");
    } catch (error) {
      on.status("lost", error.message);
    } finally {
      aborter.abort();
    }
    await new Promise((resolve) => { setTimeout(resolve, Math.min(10_000, 300 * 2 ** Math.min(failures, 6))); });
  }
}

async function read(body, aborter, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const silence = setTimeout(() => aborter.abort(), SILENCE);
    const { value, done } = await reader.read();
    clearTimeout(silence);
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) parse(block, onEvent);
  }
}

function parse(block, onEvent) {
  let kind = "message", data = "", id = "";
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon), value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") kind = value;
    else if (name === "data") data += value;
    else if (name === "id") id = value;
  }
  if (kind !== "message") onEvent(kind, data, id);
}
