// One line of JSON in is one unary call, one line of JSON out is what became of it.
//
//   in:  {"id": 1, "method": "/package.Service/Method", "body": base64, "timeout_ms": 1000,
//         "cancel_after_ms": 10}
//   out: {"id": 1, "code": 0, "details": "", "body": base64, "trailers": {...}}
import * as readline from "node:readline";
import grpc from "@grpc/grpc-js";

const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": -1,
});
const asBytes = (buffer) => buffer;

function call({ id, method, body, timeout_ms, cancel_after_ms }) {
  const answer = { id, code: 0, details: "", body: "", trailers: {} };
  let pending = 2; // the callback and the status event
  const done = () => {
    if (--pending === 0) console.log(JSON.stringify(answer));
  };
  const options = timeout_ms ? { deadline: Date.now() + timeout_ms } : {};
  const running = client.makeUnaryRequest(
    method, asBytes, asBytes, Buffer.from(body, "base64"), new grpc.Metadata(), options,
    (error, response) => {
      if (response) answer.body = response.toString("base64");
      done();
    },
  );
  running.on("status", (status) => {
    answer.code = status.code;
    answer.details = status.details;
    answer.trailers = status.metadata.toJSON();
    done();
  });
  if (cancel_after_ms !== undefined) setTimeout(() => running.cancel(), cancel_after_ms);
}

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => call(JSON.parse(line)));
lines.on("close", () => client.close());
