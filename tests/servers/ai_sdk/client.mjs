// Vercel's AI SDK as a client of an OpenAI-compatible server: argv is its address. Prints JSON.
import { generateText, streamText, tool, jsonSchema } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const provider = createOpenAICompatible({
  name: "vprm", baseURL: process.argv[2], apiKey: "none", includeUsage: true,
});
const pixel = process.argv[3];
const messages = [{
  role: "user",
  content: [{ type: "image", image: pixel }, { type: "text", text: "3 + 4?" }],
}];

const whole = await generateText({ model: provider("m"), messages, maxRetries: 0 });

const streamed = streamText({ model: provider("m"), messages, maxRetries: 0 });
let text = "", reasoning = "", errors = [];
for await (const part of streamed.fullStream) {
  if (part.type === "text-delta") text += part.text;
  if (part.type === "reasoning-delta") reasoning += part.text;
  if (part.type === "error") errors.push(String(part.error));
}
const usage = await streamed.usage;

const called = await generateText({
  model: provider("tools"), prompt: "3 + 4?", maxRetries: 0,
  tools: {
    add: tool({
      description: "Add.",
      inputSchema: jsonSchema({
        type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } },
      }),
    }),
  },
});

let refused = "";
try {
  await generateText({ model: provider("nosuch"), messages, maxRetries: 0 });
} catch (error) {
  refused = error.message;
}

console.log(JSON.stringify({
  whole: whole.text, finish: whole.finishReason, text, reasoning, errors,
  total: usage.totalTokens,
  calls: called.toolCalls.map((call) => [call.toolName, call.input]),
  refused,
}));
