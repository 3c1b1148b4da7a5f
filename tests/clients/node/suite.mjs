// OpenAI's Node client against a server at MODELYARD_URL: what people do with it, streamed and not.
// `yard-*` are real models on the real llama.cpp; `skilled` calls tools and keeps to schemas; `cut`
// breaks its streams off. Run by tests/clients/test_openai_node.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.MODELYARD_URL}/v1`,
  apiKey: "any",
  maxRetries: 0,
  timeout: 60_000,
});

const user = (content) => [{ role: "user", content }];

const place = { type: "object", properties: { place: { type: "string" } } };
const weather = { name: "weather", description: "The weather at a place.", parameters: place };

const mood = {
  name: "mood",
  strict: true,
  schema: {
    type: "object",
    properties: { mood: { type: "string", enum: ["good", "bad"] } },
    required: ["mood"],
    additionalProperties: false,
  },
};

test("models are listed", async () => {
  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);

  for (const id of ["skilled", "yard-chat", "yard-embed"]) assert.ok(listed.includes(id), id);
  assert.equal((await client.models.retrieve("yard-chat")).object, "model");
});

test("a chat says the same whole and streamed", async () => {
  const asked = { model: "yard-chat", messages: user("What is 2 + 3?"), temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  const parts = [];
  let usage = null;
  const options = { ...asked, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(options)) {
    parts.push(chunk.choices[0]?.delta.content ?? "");
    usage = chunk.usage ?? usage;
  }

  assert.equal(whole.choices[0].message.content, "2 + 3 = 5.");
  assert.equal(parts.join(""), "2 + 3 = 5.");
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the stream helper gathers a chat", async () => {
  const stream = client.chat.completions.stream({
    model: "skilled",
    messages: user("one two three"),
  });
  const pieces = [];
  stream.on("content", (piece) => pieces.push(piece));

  assert.equal(await stream.finalContent(), "skilled: one two three");
  assert.equal(pieces.join(""), "skilled: one two three");
});

test("a loop of tools runs to its end", async () => {
  const seen = [];
  const get = ({ place }) => {
    seen.push(place);
    return "rain today";
  };
  const tool = { type: "function", function: { ...weather, function: get, parse: JSON.parse } };
  const asked = { model: "skilled", messages: user("Use weather for Ulm."), tools: [tool] };

  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({ ...asked, stream });
    assert.equal(await runner.finalContent(), "skilled: rain today");
  }
  assert.deepEqual(seen, ["the place", "the place"]);
});

test("a structured chat keeps to its schema", async () => {
  const answer = await client.chat.completions.create({
    model: "yard-chat",
    messages: user("Hello"),
    response_format: { type: "json_schema", json_schema: mood },
    max_tokens: 200,
  });

  assert.ok(["good", "bad"].includes(JSON.parse(answer.choices[0].message.content).mood));
});

test("embeddings are the same as numbers and packed", async () => {
  const asked = { model: "yard-embed", input: ["hello", "world"] };
  const packed = await client.embeddings.create(asked); // asks for base64 by itself
  const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });

  assert.equal(packed.data.length, 2);
  const [a, b] = [packed.data[1].embedding, plain.data[1].embedding];
  assert.equal(a.length, b.length);
  a.forEach((number, index) => assert.ok(Math.abs(number - b[index]) < 1e-5));
});

test("a response says the same whole and streamed", async () => {
  const asked = { model: "yard-chat", input: "What is 2 + 3?", temperature: 0, store: false };
  const whole = await client.responses.create(asked);
  const types = [];
  const parts = [];
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    types.push(event.type);
    if (event.type === "response.output_text.delta") parts.push(event.delta);
  }
  const gathered = await client.responses.stream(asked).finalResponse();

  assert.equal(whole.output_text, "2 + 3 = 5.");
  assert.equal(parts.join(""), "2 + 3 = 5.");
  assert.equal(gathered.output_text, "2 + 3 = 5.");
  assert.equal(types[0], "response.created");
  assert.equal(types.at(-1), "response.completed");
});

test("a loop of tools runs to its end by responses", async () => {
  const tools = [{ type: "function", strict: false, ...weather }];
  const input = user("Use weather for Ulm.");
  const first = await client.responses.create({ model: "skilled", input, tools });
  const [call] = first.output;
  assert.equal(call.type, "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { place: "the place" });

  input.push(call, { type: "function_call_output", call_id: call.call_id, output: "rain today" });
  const stream = client.responses.stream({ model: "skilled", input, tools });
  assert.equal((await stream.finalResponse()).output_text, "skilled: rain today");
});

test("a structured response keeps to its schema", async () => {
  const answer = await client.responses.parse({
    model: "yard-chat",
    input: "Hello",
    text: { format: { type: "json_schema", ...mood } },
    max_output_tokens: 200,
  });

  assert.ok(["good", "bad"].includes(JSON.parse(answer.output_text).mood));
});

test("reasoning comes before words", async () => {
  const asked = { model: "skilled", input: "Hi", reasoning: { effort: "low" } };
  const answer = await client.responses.create(asked);

  assert.deepEqual(
    answer.output.map((item) => item.type),
    ["reasoning", "message"],
  );
  assert.equal(answer.output[0].content[0].text, "I think first.");
});

test("the length of an input is counted", async () => {
  const asked = { model: "yard-chat", input: "Hello there" };
  const counted = await client.responses.inputTokens.count(asked);
  const answer = await client.responses.create(asked);

  assert.equal(counted.input_tokens, answer.usage.input_tokens);
});

test("errors are the client's own", async () => {
  const unknown = { model: "nobody", messages: user("hi") };
  await assert.rejects(client.chat.completions.create(unknown), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.code, error.param], ["model_not_found", "model"]);
    assert.ok(error.requestID);
    return true;
  });
  const stored = { model: "skilled", input: "hi", previous_response_id: "resp_1" };
  await assert.rejects(client.responses.create(stored), OpenAI.BadRequestError);
  await assert.rejects(client.responses.retrieve("resp_1"), OpenAI.NotFoundError);
  const wrong = { model: "yard-chat", input: "hi" };
  await assert.rejects(client.embeddings.create(wrong), OpenAI.BadRequestError);
});

test("a stream that breaks off raises after what it said", async () => {
  const input = "one two three four";
  const streams = {
    chat: await client.chat.completions.create({
      model: "cut",
      messages: user(input),
      stream: true,
    }),
    responses: await client.responses.create({ model: "cut", input, stream: true }),
  };
  for (const [name, stream] of Object.entries(streams)) {
    let parts = 0;
    await assert.rejects(async () => {
      for await (const _ of stream) parts += 1;
    }, OpenAI.APIError);
    assert.ok(parts >= 3, `${name}: ${parts} parts`);
  }
});

test("a stream can be given up", async () => {
  const asked = { model: "yard-chat", input: "What is Modelyard?", stream: true };
  const stream = await client.responses.create(asked);
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") break;
  }
  assert.ok(stream.controller.signal.aborted);
});
