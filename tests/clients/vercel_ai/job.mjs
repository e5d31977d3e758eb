// The Vercel AI SDK with three of its providers: text, streams, tools, objects, three APIs.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

import {
  BASE,
  MERGE,
  QUESTION,
  ROUTED,
  SAID,
  ensure,
  ensureAnswer,
  ensureMerge,
  ensurePerson,
  run,
  server,
} from "./asked.mjs";

const Person = z.object({ name: z.enum(["Ann", "Bob"]), age: z.number().int().min(0).max(99) });
const place = { baseURL: `${server()}/v1`, apiKey: "unused" };
const options = { maxRetries: 0, maxOutputTokens: 60, temperature: 0 };
const merged = { providerOptions: { tta: { merge: MERGE } } };

// The SDK drops fields it does not know, unless an extractor keeps them.
const metadataExtractor = {
  extractMetadata: async ({ parsedBody }) => ({ tta: { merge: parsedBody.merge } }),
  createStreamExtractor() {
    let merge;
    return {
      processChunk: (chunk) => (merge = chunk?.merge ?? merge),
      buildMetadata: () => ({ tta: { merge } }),
    };
  },
};
const tta = createOpenAICompatible({
  name: "tta",
  ...place,
  includeUsage: true,
  supportsStructuredOutputs: true,
  metadataExtractor,
});
const openai = createOpenAI(place);
const anthropic = createAnthropic(place);

/** One answer, with the merge that the client chose. */
async function text() {
  const asking = { model: tta(ROUTED), prompt: QUESTION, ...options, ...merged };
  const answer = await generateText(asking);
  ensureAnswer(answer.text);
  ensureMerge(answer.providerMetadata.tta.merge);
  ensure(answer.usage.outputTokens > 0, "no usage");
}

/** The same as a stream; the merge comes with its last chunk. */
async function stream() {
  const answer = streamText({ model: tta(ROUTED), prompt: QUESTION, ...options, ...merged });
  const pieces = [];
  for await (const piece of answer.textStream) pieces.push(piece);
  ensureAnswer(pieces.join(""));
  ensure(pieces.length > 3, `${pieces.length} pieces are no stream`);
  ensureMerge((await answer.providerMetadata).tta.merge);
  ensure((await answer.usage).outputTokens > 0, "no usage");
}

/** A tool that must be called; the SDK calls the function itself. */
async function tools() {
  const kept = [];
  const remember = tool({
    description: "Keep a person.",
    inputSchema: Person,
    execute: async (person) => kept.push(person),
  });
  const asking = { model: tta(BASE), prompt: SAID, tools: { remember }, toolChoice: "required" };
  await generateText({ ...asking, ...options });
  ensure(kept.length === 1, `called ${kept.length} times`);
  ensurePerson(kept[0]);
}

/** The same as a stream of pieces of arguments. */
async function toolStream() {
  const remember = tool({ description: "Keep a person.", inputSchema: Person });
  const asking = { model: tta(BASE), prompt: SAID, tools: { remember }, toolChoice: "required" };
  const calls = await streamText({ ...asking, ...options }).toolCalls;
  ensure(calls.length === 1, `called ${calls.length} times`);
  ensurePerson(calls[0].input);
}

/** An object in a schema. */
async function object() {
  const output = Output.object({ schema: Person });
  const answer = await generateText({ model: tta(BASE), prompt: SAID, output, ...options });
  ensurePerson(answer.output);
}

/** OpenAI's own provider, over chat completions. */
async function chat() {
  const answer = await generateText({ model: openai.chat(ROUTED), prompt: QUESTION, ...options });
  ensureAnswer(answer.text);
}

/** OpenAI's own provider, over responses, whole and streamed. */
async function responses() {
  const asking = { model: openai.responses(ROUTED), prompt: QUESTION, ...options };
  ensureAnswer((await generateText(asking)).text);
  ensureAnswer(await streamText(asking).text);
}

/** Anthropic's own provider, whole and streamed. */
async function messages() {
  const asking = { model: anthropic(ROUTED), prompt: QUESTION, ...options };
  ensureAnswer((await generateText(asking)).text);
  ensureAnswer(await streamText(asking).text);
}

await run(text, stream, tools, toolStream, object, chat, responses, messages);
