"""A small server with the OpenAI-compatible API, whose completions come from a model here."""

import contextlib
import dataclasses
import functools
import http.server
import json
import threading
import time
from typing import Any

import jax
import numpy as np

from metajax import lm


@dataclasses.dataclass
class StandIn:
    """What it serves, how it misbehaves, and what it was asked."""

    model: Any
    params: Any
    tokenizer: Any = None
    text_alone: bool = False
    """Takes and gives text, as transformers serve and OpenAI do."""
    log_probs: bool = True
    tempered: bool = False
    """Log-probabilities at the temperature of sampling, as SGLang's are."""
    serves_base: bool = False
    """Forgets which adapter was asked for."""
    faults: list[Any] = dataclasses.field(default_factory=list)
    """What the first requests get instead of an answer: a status, or None for a cut connection."""
    seconds: float = 0.0
    """Before each answer."""
    asked: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    adapters: dict[str, Any] = dataclasses.field(default_factory=dict)
    url: str = ""
    together: int = 0
    most_together: int = 0

    def __post_init__(self):
        self.lock = threading.Lock()

    def answer(self, path, body, headers):
        """Status and content."""
        self.asked.append((path, body))
        if path == "/v1/models":
            listed = [{"id": "base"}, *({"id": name, "parent": "base"} for name in self.adapters)]
            return 200, {"data": listed}
        if path.endswith("/unload_lora_adapter"):
            del self.adapters[body["lora_name"]]
            return 200, "Success"
        if path.endswith("/load_lora_adapter"):
            if body["lora_name"] in self.adapters:
                return 400, {"message": "The lora adapter has already been loaded."}
            self.adapters[body["lora_name"]] = lm.load_adapters(
                body["lora_path"], config=self.model.config
            )
            return 200, "Success: LoRA adapter added successfully."
        if headers.get("Authorization") == "Bearer wrong":
            return 401, {"error": "Unauthorized"}
        name = body["model"].removeprefix("base:")
        if name != "base" and name not in self.adapters:
            return 404, {"message": f"The model {name} does not exist."}
        lora = None if self.serves_base else self.adapters.get(name)
        time.sleep(self.seconds)
        with self.lock:
            return 200, self.complete(path, body, lora)

    def complete(self, path, body, lora):
        prompt = body.get("prompt")
        if "messages" in body:
            prompt = self.tokenizer.encode(self.tokenizer.apply_chat_template(body["messages"]))
        elif isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt)
        own = json.loads(body.get("generation_config", "{}"))
        if own:
            temperature = own["temperature"] if own.get("do_sample") else None
            end = own["eos_token_id"]
        else:
            temperature = body["temperature"] or None
            end = body.get("stop_token_ids", [2])[0]
        drawn = lm.generate(
            self.model,
            self.params,
            [prompt],
            jax.random.key(body["seed"]),
            max_new_tokens=body["max_tokens"],
            sampling=lm.SamplingParams(temperature, stop_tokens=(end,)),
            lora=lora,
        )
        count = int(drawn.lengths[0, 0])
        tokens = np.asarray(drawn.tokens)[0, 0, :count].tolist()
        found = np.asarray(drawn.log_probs)[0, 0, :count].tolist()
        if self.tempered:
            found = log_probs_of(
                self.model, self.params, lora, prompt, tokens, temperature
            ).tolist()
        choice = {"index": 0, "finish_reason": "stop" if tokens[-1] == end else "length"}
        text = (
            ""
            if self.tokenizer is None
            else self.tokenizer.decode(tokens, skip_special_tokens=True)
        )
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            given = {"content": [{"token": "", "logprob": each} for each in found]}
        else:
            choice["text"] = text
            given = {"token_logprobs": found}
        if self.log_probs and "logprobs" in body:
            choice["logprobs"] = given
        if not self.text_alone:
            choice["token_ids"] = tokens
        usage = {"completion_tokens": count, "prompt_tokens": len(prompt)}
        return {"choices": [choice], "usage": usage}


@functools.cache
def _pass_of(model):
    return jax.jit(model.apply)


def log_probs_of(model, params, lora, prompt, tokens, temperature=1.0):
    """Of each token after the prompt, by one pass without a cache."""
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    text = np.zeros((1, 32), np.int32)  # one shape, so that one program is compiled
    text[0, : len(prompt) + len(tokens)] = [*prompt, *tokens]
    logits = np.asarray(_pass_of(model)(variables, text))[0, len(prompt) - 1 :] / temperature
    found = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found[np.arange(len(tokens)), np.asarray(tokens)]


@contextlib.contextmanager
def serving(stand_in):
    """Runs it on a free port of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            with stand_in.lock:
                fault = stand_in.faults.pop(0) if stand_in.faults else 200
                stand_in.together += 1
                stand_in.most_together = max(stand_in.most_together, stand_in.together)
            try:
                if fault is None:
                    return
                status, content = fault, {"error": "a fault"}
                if fault == 200:
                    status, content = stand_in.answer(self.path, body, self.headers)
            finally:
                with stand_in.lock:
                    stand_in.together -= 1
            text = content if isinstance(content, str) else json.dumps(content)
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                if fault != 200:
                    self.send_header("Retry-After", "0.01")
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
