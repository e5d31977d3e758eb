// promptfoo: one configuration of prompts, providers and assertions, evaluated by its command.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { ANSWER, BASE, MERGE, QUESTION, ROUTED, SAID, ensure, run, server } from "./asked.mjs";

const ENTRY = "node_modules/promptfoo/dist/src/entrypoint.js";
const PROGRAM = fileURLToPath(new URL(ENTRY, import.meta.url));
const PERSON = {
  type: "object",
  properties: {
    name: { type: "string", enum: ["Ann", "Bob"] },
    age: { type: "integer", minimum: 0, maximum: 99 },
  },
  required: ["name", "age"],
  additionalProperties: false,
};

/** A provider of one kind and model, greedy and short. */
function provider(kind, model, more = {}) {
  const common = { apiBaseUrl: `${server()}/v1`, apiKey: "unused", temperature: 0, max_tokens: 60 };
  return { id: `openai:${kind}:${model}`, config: { ...common, ...more } };
}

/** Anthropic's provider, which has other names for the same. */
function messagesProvider() {
  const config = { apiBaseUrl: server(), apiKey: "unused", temperature: 0, max_tokens: 60 };
  return { id: `anthropic:messages:${ROUTED}`, config };
}

/** The results of one question to one provider. */
function evaluate(asking, prompt, assertion) {
  const folder = mkdtempSync(join(tmpdir(), "promptfoo-"));
  try {
    const config = { prompts: [prompt], providers: [asking], tests: [{ assert: [assertion] }] };
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    const environment = {
      ...process.env,
      PROMPTFOO_CONFIG_DIR: folder,
      PROMPTFOO_DISABLE_TELEMETRY: "1",
      PROMPTFOO_DISABLE_UPDATE: "1",
      PROMPTFOO_DISABLE_REMOTE_GENERATION: "1",
      PROMPTFOO_CACHE_ENABLED: "false",
      PROMPTFOO_REQUEST_BACKOFF_MS: "100",
    };
    const words = ["eval", "-c", "config.json", "-o", "out.json", "--no-cache", "--no-write"];
    const done = spawnSync(process.execPath, [PROGRAM, ...words, "--no-progress-bar"], {
      cwd: folder,
      env: environment,
      encoding: "utf8",
    });
    console.error(done.stdout, done.stderr);
    const { results } = JSON.parse(readFileSync(join(folder, "out.json"), "utf8"));
    return results.results[0];
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The answer must be the demo's. */
function ensureRight(asking) {
  const found = evaluate(asking, QUESTION, { type: "equals", value: ANSWER });
  ensure(found.success, found.error ?? `answered ${JSON.stringify(found.response?.output)}`);
  return found;
}

/** Chat completions, with the merge that the client chose. */
function chat() {
  ensureRight(provider("chat", ROUTED, { passthrough: { merge: MERGE } }));
}

/** Completions, of a text that has no chat around it. */
function completions() {
  const assertion = { type: "contains", value: "Paris" };
  const found = evaluate(provider("completion", BASE), "The capital of France is", assertion);
  ensure(found.success, found.error ?? `answered ${JSON.stringify(found.response?.output)}`);
}

/** An answer in a JSON schema, checked by promptfoo against the same. */
function structured() {
  const named = { name: "person", schema: PERSON, strict: true };
  const form = { type: "json_schema", json_schema: named };
  const asking = provider("chat", BASE, { response_format: form });
  const found = evaluate(asking, SAID, { type: "is-json", value: PERSON });
  ensure(found.success, found.error ?? `answered ${JSON.stringify(found.response?.output)}`);
}

/** A tool that must be called, checked by promptfoo against its schema. */
function tools() {
  const remember = { name: "remember", description: "Keep a person.", parameters: PERSON };
  const asked = { tools: [{ type: "function", function: remember }], tool_choice: "required" };
  const assertion = { type: "is-valid-openai-tools-call" };
  const found = evaluate(provider("chat", BASE, asked), SAID, assertion);
  ensure(found.success, found.error ?? `answered ${JSON.stringify(found.response?.output)}`);
}

/** The Responses API. */
function responses() {
  ensureRight(provider("responses", ROUTED, { max_output_tokens: 60 }));
}

/** The Messages API. */
function messages() {
  ensureRight(messagesProvider());
}

await run(chat, completions, structured, tools, responses, messages);
