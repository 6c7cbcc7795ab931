// One line of JSON in is one call, one line of JSON out is what became of it.
//
//   in:  {"id": 1, "channel": {"address": "host:port", "ca": PEM, "options": {...}},
//         "method": "/package.Service/Method", "messages": [base64, ...], "stream": false,
//         "metadata": {"key": "value"}, "timeout_ms": 1000,
//         "cancel_after_ms": 10, "cancel_after_messages": 2}
//   out: {"id": 1, "code": 0, "details": "", "messages": [base64, ...], "headers": {...},
//         "trailers": {...}}
//
// Calls of one channel share its connection. Without `stream` a call is unary.
import * as readline from "node:readline";
import grpc from "@grpc/grpc-js";

const clients = new Map();
const asBytes = (buffer) => buffer;

function clientOf(channel) {
  const key = JSON.stringify(channel);
  if (!clients.has(key)) {
    const credentials = channel.ca
      ? grpc.credentials.createSsl(Buffer.from(channel.ca))
      : grpc.credentials.createInsecure();
    clients.set(key, new grpc.Client(channel.address, credentials, channel.options));
  }
  return clients.get(key);
}

function metadataOf(pairs) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of Object.entries(pairs ?? {})) {
    metadata.set(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
  }
  return metadata;
}

function plain(metadata) {
  const pairs = metadata.toJSON();
  for (const [key, values] of Object.entries(pairs)) {
    if (key.endsWith("-bin")) pairs[key] = values.map((value) => value.toString("base64"));
  }
  return pairs;
}

function begin(call, messages, done) {
  const client = clientOf(call.channel);
  const metadata = metadataOf(call.metadata);
  const options = { deadline: Date.now() + call.timeout_ms };
  if (!call.stream) {
    return client.makeUnaryRequest(
      call.method, asBytes, asBytes, messages[0], metadata, options,
      (error, response) => done(response),
    );
  }
  const running = client.makeBidiStreamRequest(call.method, asBytes, asBytes, metadata, options);
  for (const message of messages) running.write(message);
  running.end();
  return running;
}

function answer(call) {
  const told = { id: call.id, code: 0, details: "", messages: [], headers: {}, trailers: {} };
  let pending = call.stream ? 1 : 2; // the status event, and the callback of a unary call
  const finish = () => {
    if (--pending === 0) console.log(JSON.stringify(told));
  };
  const running = begin(call, call.messages.map((text) => Buffer.from(text, "base64")), (reply) => {
    if (reply) told.messages.push(reply.toString("base64"));
    finish();
  });
  running.on("metadata", (headers) => { told.headers = plain(headers); });
  running.on("status", (status) => {
    told.code = status.code;
    told.details = status.details;
    told.trailers = plain(status.metadata);
    finish();
  });
  if (call.stream) {
    running.on("error", () => {}); // the status tells it
    running.on("data", (message) => {
      told.messages.push(message.toString("base64"));
      if (told.messages.length === call.cancel_after_messages) running.cancel();
    });
  }
  if (call.cancel_after_ms !== undefined) setTimeout(() => running.cancel(), call.cancel_after_ms);
}

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => answer(JSON.parse(line)));
lines.on("close", () => clients.forEach((client) => client.close()));
