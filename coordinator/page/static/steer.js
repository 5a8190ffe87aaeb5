// Steering: calls of the control service, for who shows the operator's token. The token is kept nowhere but in its field.

import { element } from "./format.js";
import { authorization } from "./stream.js";

const RULES = { EXCLUDE: "Exclude", INCLUDE: "Always include", AUTOMATIC: "Let the run decide" };
const at = (id) => document.getElementById(id);

let ownToken = "", roundNow = () => 0;

/** True if the coordinator lets an operator steer: it names its policies then. */
export const steerable = (about) => Boolean(about.live && Array.isArray(about.policies) && about.policies.length);

/** Offer what the coordinator permits; `round` says which round is shown, 0 for the latest. */
export function offer(about, token, round) {
  ownToken = token;
  roundNow = round;
  const policies = steerable(about) ? about.policies : [];
  at("policy").replaceChildren(...policies.map((name) => element("option", { value: name, text: name, selected: name === about.policy })));
}

async function call(method, message) {
  const headers = { ...authorization(at("operator").value.trim() || ownToken), "Content-Type": "application/json" };
  let text;
  try {
    const reply = await fetch(`control/${method}`, { method: "POST", headers, body: JSON.stringify(message) });
    text = `${method}: ${(await reply.text()).trim()}`;
  } catch (error) {
    text = `${method}: ${error.message}`;
  }
  at("steer").open = true;
  at("steered").textContent = text;
}

/** Buttons for the rule of a node, where it may be set. */
export function rules(node) {
  if (at("steer").hidden) return null;
  return element("div", { class: "rules" }, ...Object.entries(RULES).map(([rule, text]) => element("button", {
    type: "button", text, onclick: () => call("SetNodeRule", { nodeId: node, rule }) })));
}

at("steer").addEventListener("click", ({ target }) => {
  const method = target.dataset?.call;
  const policy = at("policy").value, messages = { SetPolicy: () => ({ policy }), WhatIf: () => ({ policy, round: roundNow() }) };
  if (method) call(method, messages[method]?.() ?? {});
});
at("steer").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
