#!/usr/bin/env python3
"""Speed of the peer: llama.cpp's server with a LoRA adapter named in each request, CPU.

Usage:  cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF && cmake --build build --target llama-server
        pip install torch transformers safetensors
        python bench_llama_server.py LLAMA_CPP_FOLDER SERVER FILE.gguf HF_FOLDER ADAPTER_FOLDER... [--clients 16]
            [--requests 96] [--prompt 64] [--new 64] [--threads 2]

Adapters are in PEFT's format; llama.cpp's own script converts them for the base whose configuration lies in HF_FOLDER.
Clients ask one text after the other, of random prompts, greedy, exactly --new tokens each. Prints JSON: tokens a second with
the base alone, with one adapter for all, and with the adapters taking turns.
"""
import argparse, json, random, socket, subprocess, sys, tempfile, threading, time, urllib.request
from pathlib import Path

ap = argparse.ArgumentParser()
ap.add_argument("llama_cpp", type=Path)
ap.add_argument("server")
ap.add_argument("file")
ap.add_argument("hf")
ap.add_argument("adapters", nargs="+")
ap.add_argument("--clients", type=int, default=16)
ap.add_argument("--requests", type=int, default=96)
ap.add_argument("--prompt", type=int, default=64)
ap.add_argument("--new", type=int, default=64)
ap.add_argument("--threads", type=int, default=2)
a = ap.parse_args()
folder = tempfile.TemporaryDirectory()
converted = [str(Path(folder.name) / f"{number}.gguf") for number in range(len(a.adapters))]
for adapter, outfile in zip(a.adapters, converted):
    convert = [sys.executable, a.llama_cpp / "convert_lora_to_gguf.py", adapter, "--base", a.hf]
    subprocess.run([*convert, "--outtype", "f16", "--outfile", outfile], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
log = open(Path(folder.name) / "log", "w+")
context = a.clients * (a.prompt + a.new + 8)
server = subprocess.Popen(
    [a.server, "-m", a.file, "--lora", ",".join(converted), "--lora-init-without-apply", "-np", str(a.clients), "-c", str(context),
     "-t", str(a.threads), "-tb", str(a.threads), "--host", "127.0.0.1", "--port", str(port), "--no-webui"],
    stdout=log, stderr=log)


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def wait():
    for _ in range(600):
        try:
            return ask("/health")
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    log.seek(0)
    sys.exit("the server did not start:\n" + log.read()[-4000:])


def speed(lora, requests):
    """Tokens a second of so many requests, of which number n uses the adapters lora(n)."""
    numbers, lock, tokens = iter(range(requests)), threading.Lock(), []

    def client():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            choose = random.Random(number)
            prompt = [choose.randrange(100, 40000) for _ in range(a.prompt)]
            body = {"prompt": prompt, "n_predict": a.new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
            answer = ask("/completion", {**body, "lora": [{"id": id, "scale": 1.0} for id in lora(number)]})
            if answer["tokens_predicted"] != a.new:
                sys.exit(f"{answer['tokens_predicted']} tokens instead of {a.new}")
            with lock:
                tokens.append(a.new)

    threads = [threading.Thread(target=client) for _ in range(a.clients)]
    start = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(tokens) != requests:
        sys.exit("some requests failed")
    return round(sum(tokens) / (time.time() - start), 1)


try:
    wait()
    speed(lambda number: [], a.clients)
    result = {"peer": "llama.cpp", "adapters": len(a.adapters), "clients": a.clients}
    result["base"] = speed(lambda number: [], a.requests)
    result["one"] = speed(lambda number: [0], a.requests)
    result["mixed"] = speed(lambda number: [number % len(a.adapters)], a.requests)
    build = subprocess.run([a.server, "--version"], capture_output=True, text=True)
    result["version"] = (build.stdout + build.stderr).strip().splitlines()[0]
    print(json.dumps(result))
finally:
    server.terminate()
    server.wait()
